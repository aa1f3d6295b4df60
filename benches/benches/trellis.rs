//! Trellis codes: products of one token and of many on one thread beside a plain read of the same bytes, taking turns in one
//! run, 4096 x 14336 and 8192 x 28672; and how many weights a second the search for paths codes, on one thread and on all.
//! Every product is checked before it is timed. `--test` runs everything once, small.

// Reading at the speed of memory needs vector loads.
#![allow(unsafe_code)]

mod turns;

use std::hint::black_box;
use std::time::Instant;

use tensorpress_tensor::kernels::{
    self, Isa, Par, TrellisRows, Work, trellis_encode, trellis_matmul, trellis_part,
};
use tensorpress_tensor::linalg::{SplitMix, gaussian};
use turns::{Contender, read, take_turns};

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    println!(
        "{}",
        kernels::cpu_name().unwrap_or_else(|| "a CPU that does not say its name".into())
    );
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    let shapes: &[([usize; 2], usize)] = match test {
        true => &[([64, 512], 1)],
        false => &[([4096, 14_336], 15), ([8192, 28_672], 9)],
    };
    for &([rows, cols], rounds) in shapes {
        for bits in [2, 3, 4] {
            let mut random = SplitMix::new(1);
            let mut tiles = vec![0; rows * cols / 8 * bits as usize];
            for bytes in tiles.chunks_mut(8) {
                bytes.copy_from_slice(&random.next_u64().to_le_bytes()[..bytes.len()]);
            }
            for tokens in [1, 8, 64] {
                let w = TrellisRows { tiles: &tiles, bits, rows, cols, scales: &[0.02] };
                measure(&w, tokens, if tokens == 1 { rounds } else { rounds.div_ceil(5) });
            }
        }
    }
    for bits in [1, 2, 3, 4, 6, 8] {
        encode(bits, if test { 1 } else { 64 });
    }
}

fn measure(w: &TrellisRows<'_>, tokens: usize, rounds: usize) {
    let (rows, cols) = (w.rows, w.cols);
    let mut random = SplitMix::new(2);
    let x: Vec<f32> = (0..tokens * cols).map(|_| random.next_f64() as f32 - 0.5).collect();
    let (mut y, mut work) = (vec![0.0; tokens * rows], Work::new(Par::Seq));
    trellis_matmul(w, 0..rows, &x, tokens, &mut y, false, &mut work);
    let mut row = vec![0.0; cols];
    let (mut error, mut size) = (0.0, 0.0);
    for r in (0..rows).step_by(rows / 16) {
        trellis_part(w, r..r + 1, 0..cols, &mut row);
        for (token, x) in x.chunks(cols).enumerate() {
            let products = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let exact: f64 = products.sum();
            error += (f64::from(y[token * rows + r]) - exact).powi(2);
            size += exact * exact;
        }
    }
    let error = (error / size).sqrt();
    assert!(error < 1e-4, "relative error {error:e}");
    let buffer = w.tiles.to_vec();
    let read_all = || {
        black_box(read::<0>(&buffer));
    };
    let multiply = || trellis_matmul(w, 0..rows, &x, tokens, &mut y, false, &mut work);
    let mut contenders = vec![
        Contender::new("plain read", w.tiles.len(), read_all),
        Contender::new("16-bit activations", w.tiles.len(), multiply),
    ];
    take_turns(&mut contenders, rounds);
    println!(
        "\n{} bits, {rows} x {cols}, {tokens} tokens, error {error:.1e}; best (median)",
        w.bits
    );
    let read = &contenders[0];
    for c in &contenders {
        let (best, median) = (c.best(), c.median());
        println!(
            "{:18} {:9.3} ({:9.3}) ms {:6.1} GB/s  {:6.1} G weights/s  {:.3} ({:.3}) of the read",
            c.name,
            best * 1e3,
            median * 1e3,
            c.bytes as f64 / best / 1e9,
            (rows * cols * tokens) as f64 / best / 1e9,
            read.best() / best,
            read.median() / median,
        );
    }
}

fn encode(bits: u32, tiles: u64) {
    let targets: Vec<f32> = (0..tiles * 256).map(|i| gaussian(3, i) as f32 * 147.7).collect();
    let mut codes = vec![0; targets.len()];
    for par in [Par::Seq, Par::Rayon] {
        trellis_encode(bits, &targets[..256], &mut codes[..256], par);
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            trellis_encode(bits, &targets, &mut codes, par);
            best = best.min(start.elapsed().as_secs_f64());
        }
        let (threads, speed) = (par.threads(), targets.len() as f64 / best / 1e3);
        println!("paths of {bits} bits: {speed:.0} thousand weights a second on {threads} threads");
    }
}
