//! Randomised SVD beside faer's thin SVD on the spectrum of a real layer, and products with two thin factors beside the
//! dense matrix they stand for, each in turns on one thread in one run.
//!
//! `--test` runs everything once, small, and checks the results.

use std::hint::black_box;
use std::time::Instant;

use criterion::Criterion;
use tensorpress_tensor::linalg::{self, Par, RandomizedSvd, Svd, gaussian};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Dense, Product, decode};
use tensorpress_tensor::{Accum, DType, Node, Scratch};

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    if !std::env::args().any(|arg| arg == "multiply") {
        decompose(if test { 256 } else { 4096 }, if test { 16 } else { 256 });
    }
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)] {
        multiply(if test { 256 } else { 8192 }, name, dtype, if test { 1 } else { 7 });
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let small = spectral(if test { 64 } else { 1024 });
    criterion.bench_function("randomised SVD, rank 32", |b| {
        b.iter(|| linalg::svd_randomized(small.view(), RandomizedSvd::rank(32), Par::Seq));
    });
    criterion.final_summary();
}

/// Singular values of all-MiniLM-L6-v2's second feed-forward matrix (`encoder.layer.2.intermediate.dense`), relative to
/// the largest, at sixteenths of their number.
const SPECTRUM: [f64; 17] = [
    1.0000, 0.3975, 0.3374, 0.3044, 0.2767, 0.2556, 0.2342, 0.2159, 0.1990, 0.1828, 0.1679, 0.1534,
    0.1378, 0.1216, 0.1042, 0.0821, 0.0492,
];

fn singular_values(n: usize) -> Vec<f64> {
    let at = |i: usize| {
        let place = i as f64 / (n - 1) as f64 * 16.0;
        let below = (place as usize).min(15);
        let share = place - below as f64;
        SPECTRUM[below] * (1.0 - share) + SPECTRUM[below + 1] * share
    };
    (0..n).map(at).collect()
}

/// A matrix with that spectrum and random singular vectors: signs and Walsh-Hadamard matrices on both sides.
fn spectral(n: usize) -> Array2<f32> {
    let mut a = Array2::<f32>::zeros((n, n));
    for (i, s) in singular_values(n).into_iter().enumerate() {
        a[[i, i]] = s as f32;
    }
    for seed in [1, 2] {
        // Twice, so that no column is a pattern of signs.
        for pass in 0..2 {
            let sign =
                |c: usize| if gaussian(seed * 10 + pass, c as u64) < 0.0 { -1.0 } else { 1.0 };
            for mut row in a.rows_mut() {
                row.iter_mut().enumerate().for_each(|(c, v)| *v *= sign(c));
            }
            linalg::hadamard_rows(a.view_mut(), n, Par::Seq);
        }
        a = a.reversed_axes().as_standard_layout().into_owned();
    }
    a
}

fn error(a: ArrayView2<'_, f32>, svd: &Svd<f32>) -> f64 {
    let apart = &a - &svd.reconstruct();
    apart.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

fn timed<R>(f: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = f();
    (start.elapsed().as_secs_f64(), result)
}

fn decompose(n: usize, rank: usize) {
    let a = spectral(n);
    let optimal = singular_values(n)[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
    let (exact_time, exact) = timed(|| linalg::svd_truncated(a.view(), rank).expect("decomposes"));
    let exact_error = error(a.view(), &exact) / optimal;
    println!(
        "{n} x {n}, rank {rank}: faer's thin SVD {exact_time:.2} s, error {exact_error:.5} of the optimum"
    );
    assert!((exact_error - 1.0).abs() < 1e-3);
    for (iterations, oversample) in [(1, 10), (2, 10), (2, rank / 8), (4, rank / 8)] {
        let how = RandomizedSvd::rank(rank)
            .with_power_iterations(iterations)
            .with_oversample(oversample.max(10));
        let run = || timed(|| linalg::svd_randomized(a.view(), how, Par::Seq).expect("decomposes"));
        let [(first, svd), (second, _)] = [run(), run()];
        let time = first.min(second);
        let ratio = error(a.view(), &svd) / optimal;
        println!(
            "  {iterations} power iterations, {} directions more: {time:.2} s = {:.1} times as fast, error {ratio:.5} of the optimum",
            oversample.max(10),
            exact_time / time
        );
        assert!((0.999..1.1).contains(&ratio), "error {ratio}");
    }
}

fn multiply(n: usize, name: &str, dtype: DType, turns: usize) {
    let rank = n / 4;
    let random = |rows, cols, seed| {
        let values = Array2::from_shape_fn((rows, cols), |(r, c)| {
            // Cheap noise: values do not matter here.
            (((r * cols + c) as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32
                / (1u32 << 24) as f32
                - 0.5
        });
        Dense::from_f32(values.view(), dtype).expect("floats").boxed()
    };
    let product = Product::new(random(n, rank, 1), random(rank, n, 2)).expect("fits").boxed();
    let dense = random(n, n, 3);
    let x = Array2::from_shape_fn((1, n), |(_, c)| gaussian(9, c as u64) as f32);
    let mut scratch = Scratch::new(Par::Seq);
    let mut run = |node: &dyn Node| {
        let mut y = Array2::zeros((1, n));
        let (time, done) =
            timed(|| node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut scratch));
        done.expect("multiplies");
        (time, black_box(y))
    };
    let (mut slow, mut fast) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..turns {
        slow = slow.min(run(&*dense).0);
        fast = fast.min(run(&*product).0);
    }
    if n <= 256 {
        let expected = x.dot(&decode(&*product).expect("decodes").t());
        let apart = (&run(&*product).1 - &expected).mapv(|v| v * v).sum().sqrt();
        assert!(apart <= 1e-4 * expected.mapv(|v| v * v).sum().sqrt());
    }
    let bytes = (n * n * dtype.size()) as f64;
    println!(
        "one token, {n} x {n}, {name}: dense {:.2} ms = {:.1} GB/s; rank {rank}: {:.2} ms = {:.1} GB/s, {:.2} times as fast",
        slow * 1e3,
        bytes / slow / 1e9,
        fast * 1e3,
        bytes / 2.0 / fast / 1e9,
        slow / fast
    );
}
