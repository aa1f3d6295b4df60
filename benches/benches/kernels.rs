//! The kernels of `tensorpress-tensor`.
//!
//! First a table: one token (and a few) times a 4-bit matrix larger than every cache, beside a
//! plain read of as many bytes and beside candle's Q4_K, all taking turns on one thread in one
//! run. Then criterion's figures of the small kernels. `--test` runs everything once, small.
//! Every product is checked against a slow one before it is timed.

// Reading at the speed of memory needs vector loads and prefetches.
#![allow(unsafe_code)]

mod turns;

use std::hint::black_box;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use tensorpress_tensor::kernels::{
    self, Activations, AffinePanels, AffineRows, ErrorNorm, Isa, Par, Work, packed_len,
};
use turns::{Contender, read, take_turns};

fn main() {
    // SAFETY: the first thing the program does; no other thread exists yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", "1") };
    let test = std::env::args().any(|arg| arg == "--test");
    println!(
        "{}",
        kernels::cpu_name().unwrap_or_else(|| "a CPU that does not say its name".into())
    );
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    few_tokens(test);
    let mut criterion = Criterion::default().configure_from_args();
    small_kernels(&mut criterion);
    criterion.final_summary();
}

/// Deterministic noise (xorshift).
struct Noise(u64);

impl Noise {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// A random matrix on a 4-bit grid in groups of 128.
struct Matrix {
    packed: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    rows: usize,
    cols: usize,
}

const GROUP: usize = 128;

impl Matrix {
    fn new(rows: usize, cols: usize) -> Self {
        let mut noise = Noise(7);
        let groups = rows * cols.div_ceil(GROUP);
        let scale = |v: f32| half::f16::from_f32(0.01 + 0.002 * v).to_f32();
        Self {
            packed: (0..rows * packed_len(cols, 4)).map(|_| noise.word() as u8).collect(),
            scales: (0..groups).map(|_| scale(noise.float())).collect(),
            zeros: (0..groups).map(|_| (noise.word() % 16) as f32).collect(),
            rows,
            cols,
        }
    }

    fn rows(&self) -> AffineRows<'_> {
        AffineRows {
            packed: &self.packed,
            bits: 4,
            rows: self.rows,
            cols: self.cols,
            group: GROUP,
            scales: &self.scales,
            zeros: &self.zeros,
        }
    }

    /// The relative error of `y = x Wᵀ` over some of the rows, against f64.
    fn error(&self, x: &[f32], t: usize, y: &[f32]) -> f64 {
        let (mut error, mut size) = (0.0, 0.0);
        let mut row = vec![0.0f32; self.cols];
        let (bytes, groups) = (packed_len(self.cols, 4), self.cols.div_ceil(GROUP));
        for r in (0..self.rows).step_by(self.rows.div_ceil(40)) {
            let grids = r * groups..(r + 1) * groups;
            let packed = &self.packed[r * bytes..(r + 1) * bytes];
            let (scales, zeros) = (&self.scales[grids.clone()], &self.zeros[grids]);
            kernels::decode_affine(packed, 4, 0, scales, zeros, GROUP, &mut row, false);
            for token in 0..t {
                let x = &x[token * self.cols..(token + 1) * self.cols];
                let exact: f64 =
                    x.iter().zip(&row).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                error += (f64::from(y[token * self.rows + r]) - exact).powi(2);
                size += exact * exact;
            }
        }
        (error / size).sqrt()
    }
}

fn few_tokens(test: bool) {
    let (rows, cols, rounds) = if test { (64, 1024, 2) } else { (8192, 28_672, 31) };
    let matrix = Matrix::new(rows, cols);
    let w = matrix.rows();
    let panels = AffinePanels::new(&w, Par::Seq).expect("4 bits in groups of 128");
    let buffer = vec![1u8; panels.bytes()];
    let x = Noise(8).floats(8 * cols);
    let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");

    let rival = {
        let w = Tensor::from_vec(Noise(9).floats(rows * cols), (rows, cols), &Device::Cpu);
        let w = QTensor::quantize(&w.expect("a matrix"), GgmlDType::Q4K).expect("Q4_K");
        QMatMul::from_qtensor(w).expect("a product")
    };
    let rival_x = Tensor::from_slice(&x[..cols], (1, cols), &Device::Cpu).expect("a vector");

    let bytes = panels.bytes();
    let mut contenders = vec![
        Contender::new("plain read", bytes, || {
            black_box(read::<0>(&buffer));
        }),
        Contender::new("plain read, asking 4 KiB ahead", bytes, || {
            black_box(read::<4096>(&buffer));
        }),
        Contender::new("plain read, asking 8 KiB ahead", bytes, || {
            black_box(read::<8192>(&buffer));
        }),
    ];
    for (label, mode, tolerance) in
        [("16-bit", Activations::Int16, 1e-4), ("8-bit", Activations::Int8, 2e-2)]
    {
        for t in [1, 2, 4, 8] {
            let (x, panels) = (&x[..t * cols], &panels);
            let mut y = vec![0.0; t * rows];
            let mut work = Work::new(Par::Seq);
            panels.matmul(0..rows, x, t, &mut y, false, mode, &mut work);
            let error = matrix.error(x, t, &y);
            assert!(error < tolerance, "{label} activations: relative error {error:e}");
            let name = format!("panels, {label} activations, {t} tokens");
            contenders.push(Contender::new(&name, bytes, move || {
                panels.matmul(0..rows, x, t, &mut y, false, mode, &mut work);
            }));
        }
    }
    let (one, w, panels, two) = (&x[..cols], &w, &panels, &two);
    let (mut y, mut work) = (vec![0.0; rows], Work::new(Par::Rayon));
    let name = "panels, 16-bit activations, 1 token, two threads";
    contenders.push(Contender::new(name, bytes, move || {
        let (y, mode) = (&mut y, Activations::Int16);
        two.install(|| panels.matmul(0..rows, one, 1, y, false, mode, &mut work));
    }));
    let (mut y, mut work) = (vec![0.0; rows], Work::new(Par::Seq));
    kernels::affine_matmul(w, 0..rows, one, 1, &mut y, false, &mut work);
    let error = matrix.error(one, 1, &y);
    assert!(error < 1e-5, "packed rows: relative error {error:e}");
    let name = "packed rows, f32 activations, 1 token";
    contenders.push(Contender::new(name, matrix.packed.len(), move || {
        kernels::affine_matmul(w, 0..rows, one, 1, &mut y, false, &mut work);
    }));
    // 144 bytes for 256 weights.
    contenders.push(Contender::new("candle Q4_K, 1 token", rows * cols / 256 * 144, || {
        black_box(rival.forward(&rival_x).expect("a product"));
    }));

    take_turns(&mut contenders, rounds);
    table(&contenders, rows, cols);
}

fn table(contenders: &[Contender<'_>], rows: usize, cols: usize) {
    let (reads, last) = (&contenders[..3], &contenders[contenders.len() - 1]);
    let read = reads.iter().map(|c| c.best()).fold(f64::INFINITY, f64::min);
    let read_median = reads.iter().map(|c| c.median()).fold(f64::INFINITY, f64::min);
    let (rival, rival_median) = (last.best(), last.median());
    println!("\n4-bit weights {rows} x {cols} in groups of {GROUP}; best (median) of the rounds");
    println!("{:50} {:>17} {:>6} {:>15} {:>15}", "", "ms", "GB/s", "of the read", "x candle");
    for c in contenders {
        let (best, median) = (c.best(), c.median());
        println!(
            "{:50} {:7.3} ({:7.3}) {:6.1} {:6.3} ({:6.3}) {:6.2} ({:6.2})",
            c.name,
            best * 1e3,
            median * 1e3,
            c.bytes as f64 / best / 1e9,
            read / best,
            read_median / median,
            rival / best,
            rival_median / median,
        );
    }
    println!();
}

fn small_kernels(criterion: &mut Criterion) {
    const N: usize = 1 << 16;
    let x = Noise(1).floats(N);
    let mut y = Noise(2).floats(N);
    let codes: Vec<u8> = (0..N).map(|i| (i * 7 % 16) as u8).collect();

    let mut group = criterion.benchmark_group("floats");
    group.throughput(Throughput::Elements(N as u64));
    group.bench_function("dot", |b| b.iter(|| kernels::dot(&x, &y)));
    let mut half = vec![half::f16::ZERO; N];
    group.bench_function("f32 to f16", |b| b.iter(|| kernels::f32_to_f16(&x, &mut half)));
    group.bench_function("f16 to f32", |b| b.iter(|| kernels::f16_to_f32(&half, &mut y)));
    let mut brain = vec![half::bf16::ZERO; N];
    group.bench_function("f32 to bf16", |b| b.iter(|| kernels::f32_to_bf16(&x, &mut brain)));
    group.bench_function("bf16 to f32", |b| b.iter(|| kernels::bf16_to_f32(&brain, &mut y)));
    for t in [1, 4, 16] {
        let mut y = vec![0.0; t * 256];
        group.bench_function(BenchmarkId::new("gemm 256x256", t), |b| {
            b.iter(|| kernels::gemm_nt(&x[..t * 256], &x, t, 256, 256, &mut y, false));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("codes");
    group.throughput(Throughput::Elements(N as u64));
    let mut out = vec![0u8; N];
    let (scales, zeros) = (vec![0.01; N / GROUP], vec![8.0; N / GROUP]);
    for bits in [2, 3, 4, 8] {
        let mut packed = vec![0u8; packed_len(N, bits)];
        group.bench_function(BenchmarkId::new("pack", bits), |b| {
            b.iter(|| kernels::pack_bits(&codes, bits, &mut packed));
        });
        group.bench_function(BenchmarkId::new("unpack", bits), |b| {
            b.iter(|| kernels::unpack_bits(&packed, bits, 0, &mut out));
        });
        group.bench_function(BenchmarkId::new("decode", bits), |b| {
            b.iter(|| {
                kernels::decode_affine(&packed, bits, 0, &scales, &zeros, GROUP, &mut y, false);
            });
        });
    }
    group.bench_function("quantize", |b| {
        b.iter(|| kernels::quantize_affine(&x, 0.1, 8.0, 15, &mut out));
    });
    for (name, norm) in [("2", ErrorNorm::Square), ("2.4", ErrorNorm::Power2p4)] {
        group.bench_function(BenchmarkId::new("grid error", name), |b| {
            b.iter(|| kernels::grid_error(&x, 0.1, 8.0, 15, norm));
        });
    }
    group.finish();
}
