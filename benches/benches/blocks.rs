//! Products straight over the blocks of ggml, 4096 x 14336, on one thread: 1 and 512 tokens with activations of 8 and of 16
//! bits, beside a plain read of the same bytes, beside candle, and beside ggml itself where `TENSORPRESS_GGML` names the
//! folder of its libraries (`cargo xtask peers` builds them), which both multiply 8-bit activations; all taking turns in one
//! run. Every product is checked before it is timed. `--test` runs everything once, small; `--quick` leaves out the 512
//! tokens; any other word runs the types alone whose names contain it.

// Reading at the speed of memory needs vector loads and prefetches.
#![allow(unsafe_code)]

mod ggml;
mod turns;

use std::hint::black_box;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use half::f16;
use tensorpress_tensor::kernels::{
    self, Activations, AffinePanels, AffineRows, BlockRows, BlockType, Isa, Par, Work,
    block_rows_matmul,
};
use tensorpress_tensor::linalg::SplitMix;
use turns::{Contender, read, take_turns};

use ggml::Ggml;

fn main() {
    // SAFETY: the first thing the program does; no other thread exists yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", "1") };
    let args: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| args.iter().any(|arg| arg == name);
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    println!(
        "{}",
        kernels::cpu_name().unwrap_or_else(|| "a CPU that does not say its name".into())
    );
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    let (rows, cols) = if given("--test") { (64, 512) } else { (4096, 14_336) };
    let runs: &[(usize, usize)] = match () {
        () if given("--test") => &[(1, 1), (9, 1)],
        () if given("--quick") => &[(1, 15)],
        () => &[(1, 31), (8, 5), (512, 2)],
    };
    let ggml = Ggml::find();
    for kind in BlockType::ALL {
        let name = format!("{kind:?}");
        if names.is_empty() || names.iter().any(|part| name.contains(part.as_str())) {
            let bytes = blocks(kind, rows, cols);
            for (tokens, rounds) in runs {
                measure(&BlockRows { kind, bytes: &bytes, rows, cols }, *tokens, *rounds, ggml);
            }
        }
    }
}

/// Random blocks with scales around 0.01.
fn blocks(kind: BlockType, rows: usize, cols: usize) -> Vec<u8> {
    let mut random = SplitMix::new(1);
    let halves: &[usize] = match kind {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
        BlockType::MXFP4 => &[],
        _ => &[0],
    };
    let mut bytes = vec![0; rows * cols / kind.block_len() * kind.block_bytes()];
    for block in bytes.chunks_mut(kind.block_bytes()) {
        for bytes in block.chunks_mut(8) {
            bytes.copy_from_slice(&random.next_u64().to_le_bytes()[..bytes.len()]);
        }
        for at in halves {
            let d = f16::from_f64(0.01 * (0.5 + random.next_f64()));
            block[*at..at + 2].copy_from_slice(&d.to_le_bytes());
        }
        if kind == BlockType::MXFP4 {
            block[0] = 118 + block[0] % 8;
        }
    }
    bytes
}

/// The same matrix in panels of 16 rows, of the 4-bit types that are a grid.
fn panels(w: &BlockRows<'_>) -> Option<AffinePanels> {
    if !matches!(w.kind, BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4_K) {
        return None;
    }
    let (mut packed, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    for block in w.bytes.chunks_exact(w.kind.block_bytes()) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        // Low nibbles are the first half of a run, high ones the second.
        let (run, from) = match w.kind {
            BlockType::Q4_0 => (16, 2),
            BlockType::Q4_1 => (16, 4),
            _ => (32, 16),
        };
        for qs in block[from..].chunks_exact(run) {
            for pair in qs.chunks_exact(2) {
                packed.push(pair[0] & 15 | pair[1] << 4);
            }
            for pair in qs.chunks_exact(2) {
                packed.push(pair[0] >> 4 | pair[1] & 0xf0);
            }
        }
        match w.kind {
            BlockType::Q4_0 => {
                scales.push(half(0));
                zeros.push(8.0);
            }
            BlockType::Q4_1 => {
                scales.push(half(0));
                zeros.push(-half(2) / half(0));
            }
            _ => {
                let s = &block[4..16];
                for j in 0..8 {
                    let (scale, minimum) = match j {
                        0..4 => (s[j] & 63, s[j + 4] & 63),
                        _ => {
                            let low = (s[j + 4] & 15, s[j + 4] >> 4);
                            (low.0 | s[j - 4] >> 6 << 4, low.1 | s[j] >> 6 << 4)
                        }
                    };
                    // A scale of 0 would leave the minimum out.
                    let scale = half(0) * f32::from(scale.max(1));
                    scales.push(scale);
                    zeros.push(half(2) * f32::from(minimum) / scale);
                }
            }
        }
    }
    let (rows, cols) = (w.rows, w.cols);
    let (packed, scales, zeros) = (&packed[..], &scales[..], &zeros[..]);
    let grid = AffineRows { packed, bits: 4, rows, cols, group: 32, scales, zeros };
    AffinePanels::new(&grid, Par::Seq)
}

/// The type of candle, where it has it.
fn rival(kind: BlockType) -> Option<GgmlDType> {
    Some(match kind {
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2_K => GgmlDType::Q2K,
        BlockType::Q3_K => GgmlDType::Q3K,
        BlockType::Q4_K => GgmlDType::Q4K,
        BlockType::Q5_K => GgmlDType::Q5K,
        BlockType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}

fn measure(w: &BlockRows<'_>, tokens: usize, rounds: usize, ggml: Option<Ggml>) {
    let (rows, cols) = (w.rows, w.cols);
    let mut random = SplitMix::new(2);
    let x: Vec<f32> = (0..tokens * cols).map(|_| random.next_f64() as f32 - 0.5).collect();
    let multiply = |rows: std::ops::Range<usize>, y: &mut [f32], activations, work: &mut Work| {
        block_rows_matmul(w, rows, &x, tokens, y, false, activations, work);
    };
    let buffer = w.bytes.to_vec();
    let read_all = || {
        black_box(read::<0>(&buffer));
    };
    let mut contenders = vec![Contender::new("plain read", w.bytes.len(), read_all)];
    let mut precise = vec![0.0; tokens * rows];
    multiply(0..rows, &mut precise, Activations::Int16, &mut Work::new(Par::Seq));
    for (name, activations, tolerance) in
        [("8-bit activations", Activations::Int8, 2e-2), ("16-bit", Activations::Int16, 1e-4)]
    {
        let (mut y, mut work) = (vec![0.0; tokens * rows], Work::new(Par::Seq));
        multiply(0..rows, &mut y, activations, &mut work);
        close(&y, &precise, tolerance, name);
        let multiply = &multiply;
        contenders.push(Contender::new(name, w.bytes.len(), move || {
            multiply(0..rows, &mut y, activations, &mut work);
        }));
    }
    if let Some(panels) = panels(w) {
        let (mut y, mut work) = (vec![0.0; tokens * rows], Work::new(Par::Seq));
        let (bytes, x) = (panels.bytes(), &x);
        let mut multiply = move || {
            let activations = Activations::Int16;
            panels.matmul(0..rows, x, tokens, &mut y, false, activations, &mut work);
            y[0]
        };
        let near = 0.05 * (cols as f32).sqrt();
        assert!(
            (multiply() - precise[0]).abs() < near,
            "panels: {} against {}",
            multiply(),
            precise[0]
        );
        contenders.push(Contender::new("16-bit, in panels", bytes, move || {
            black_box(multiply());
        }));
    }
    if let Some(dtype) = rival(w.kind) {
        let tensor = qtensor(dtype, w);
        let dense = tensor.dequantize(&Device::Cpu).expect("decodes");
        let product = QMatMul::from_qtensor(tensor).expect("a product");
        let x = Tensor::from_slice(&x, (tokens, cols), &Device::Cpu).expect("inputs");
        // What candle reads in the blocks is what we do.
        let exact = x.matmul(&dense.t().expect("a matrix")).expect("a product");
        let exact = exact.flatten_all().and_then(|y| y.to_vec1::<f32>()).expect("floats");
        close(&precise, &exact, 1e-4, "against candle's values");
        contenders.push(Contender::new("candle", w.bytes.len(), move || {
            black_box(product.forward(&x).expect("a product"));
        }));
    }
    if let Some((mut product, y)) = ggml.and_then(|ggml| ggml.product(w, &x)) {
        close(&precise, &y, 2e-2, "against ggml's values");
        contenders.push(Contender::new("ggml", w.bytes.len(), move || product.run()));
    }
    take_turns(&mut contenders, rounds);
    if rounds < 2 {
        return;
    }
    println!("\n{:?}, {rows} x {cols}, {tokens} tokens; best (median) of the rounds", w.kind);
    let read = &contenders[0];
    let rivals: Vec<_> =
        contenders.iter().filter(|c| ["candle", "ggml"].contains(&c.name.as_str())).collect();
    for c in &contenders {
        let (best, median) = (c.best(), c.median());
        let of_read =
            format!("{:.3} ({:.3}) of the read", read.best() / best, read.median() / median);
        let of_rivals: Vec<String> = rivals
            .iter()
            .map(|of| {
                let (best, median) = (of.best() / best, of.median() / median);
                format!("{best:.2} ({median:.2}) x {}", of.name)
            })
            .collect();
        let of_rivals = of_rivals.join("  ");
        println!(
            "{:18} {:9.3} ({:9.3}) ms {:6.1} GB/s  {of_read:24} {of_rivals}",
            c.name,
            best * 1e3,
            median * 1e3,
            c.bytes as f64 / best / 1e9
        );
    }
}

/// The same blocks in candle.
fn qtensor(dtype: GgmlDType, w: &BlockRows<'_>) -> QTensor {
    let shape = vec![w.rows, w.cols];
    candle_core::quantized::ggml_file::qtensor_from_ggml(dtype, w.bytes, shape, &Device::Cpu)
        .expect("whole blocks")
}

fn close(y: &[f32], exact: &[f32], tolerance: f64, what: &str) {
    let error: f64 = y.iter().zip(exact).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = exact.iter().map(|b| f64::from(*b).powi(2)).sum();
    let relative = (error / size).sqrt();
    assert!(relative < tolerance, "{what}: relative error {relative:e}");
}
