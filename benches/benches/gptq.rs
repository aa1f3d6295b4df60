//! GPTQ of one layer beside faer's f32 matrix product, taking turns in one run.
//!
//! Operations are counted as 4/3 n³ (the textbook's two Cholesky factors and inverse) + m n² (the sweep's updates); the
//! rate is given as a share of the product's rate on the same matrix, one thread and two. `--test` runs it once, small,
//! and checks the result: the sweep's error must lie below that of rounding to nearest.

use std::time::Instant;

use criterion::{Criterion, Throughput};
use tensorpress_quant::{Gptq, GridSpec, Rtn};
use tensorpress_tensor::linalg::{self, Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{Compress, Group, Target};

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let layer = Layer::new(if test { 256 } else { 4096 });
    layer.check();
    if !test {
        for par in [Par::Seq, Par::Threads(2)] {
            layer.table(par);
        }
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let small = Layer::new(if test { 128 } else { 1024 });
    let mut group = criterion.benchmark_group("gptq");
    group.throughput(Throughput::Elements((small.n * small.n) as u64));
    group
        .bench_function(format!("{0}x{0} group 128", small.n), |b| b.iter(|| small.gptq(Par::Seq)));
    group.finish();
    criterion.final_summary();
}

struct Layer {
    n: usize,
    weight: Array2<f32>,
    gram: Array2<f32>,
}

impl Layer {
    fn new(n: usize) -> Self {
        let random = |rows: usize, seed| {
            Array2::from_shape_fn((rows, n), |(r, c)| gaussian(seed, (r * n + c) as u64) as f32)
        };
        let mut x = random(n + n / 8, 1);
        // Channels that go together, as those of real layers do.
        for mut row in x.rows_mut() {
            for c in 1..n {
                row[c] += 0.8 * row[c - 1];
            }
        }
        let mut gram = Array2::zeros((n, n));
        linalg::matmul_tn(x.view(), x.view(), gram.view_mut(), false, Par::Rayon);
        Self { n, weight: random(n, 2), gram }
    }

    /// Compresses the layer; returns the seconds it took and the decoded result where asked.
    fn gptq(&self, par: Par) -> f64 {
        self.run(par).0
    }

    fn run(&self, par: Par) -> (f64, Array2<f32>) {
        let calibration = Calibration::from_gram(self.gram.clone(), 1).expect("finite");
        let mut group = Group::single(Target::new("w", self.weight.view()), calibration);
        group.par = par;
        let start = Instant::now();
        let result = Gptq::new(GridSpec::new(4, 128)).compress_group(group).expect("compresses");
        let seconds = start.elapsed().as_secs_f64();
        let decoded = if self.n <= 256 {
            decode(&*result.layers[0].node).expect("decodes")
        } else {
            Array2::zeros((0, 0))
        };
        (seconds, decoded)
    }

    fn product(&self, par: Par) -> f64 {
        let mut y = Array2::<f32>::zeros((self.n, self.n));
        let start = Instant::now();
        linalg::matmul_nt(self.weight.view(), self.gram.view(), y.view_mut(), false, par);
        start.elapsed().as_secs_f64()
    }

    /// tr(D H Dᵀ) of a result.
    fn error(&self, decoded: ArrayView2<'_, f32>) -> f64 {
        let d = (&self.weight - &decoded).mapv(f64::from);
        let dh = d.dot(&self.gram.mapv(f64::from));
        (&d * &dh).sum()
    }

    fn check(&self) {
        if self.n > 256 {
            return;
        }
        let (_, decoded) = self.run(Par::Seq);
        let rounded = Rtn::new(GridSpec::new(4, 128))
            .compress(self.weight.view(), &Calibration::none(self.n))
            .expect("rounds");
        let rounded = decode(&rounded.node).expect("decodes");
        let (ours, plain) = (self.error(decoded.view()), self.error(rounded.view()));
        assert!(ours < 0.8 * plain, "gptq {ours}, rounding {plain}");
    }

    /// Five turns of each; the fastest counts, since what slows a run down is other work on the machine.
    fn table(&self, par: Par) {
        let (mut product, mut gptq) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..5 {
            product = product.min(self.product(par));
            gptq = gptq.min(self.gptq(par));
        }
        let cube = (self.n as f64).powi(3);
        let rates = [2.0 * cube / product, (4.0 / 3.0 + 1.0) * cube / gptq];
        println!(
            "{0} x {0}, group 128, {par:?}: product {1:.1} GFLOP/s, gptq {gptq:.2} s = {2:.1} GFLOP/s = {3:.3} of it",
            self.n,
            rates[0] / 1e9,
            rates[1] / 1e9,
            rates[1] / rates[0],
        );
    }
}
