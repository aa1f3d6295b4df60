//! CHESS: thresholds beside a sort of everything, products that skip beside dense ones in f64.

use tensorpress_prune::activation::{Activation, Chess, FeedForward, SkippingLinear, Thresholds};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, array, s};
use tensorpress_tensor::{DType, Error, ErrorKind, Scratch};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn kind(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

fn near(found: &Array2<f32>, exact: &Array2<f64>, within: f64) {
    assert_eq!(found.dim(), exact.dim());
    let within = within * (1.0 + exact.iter().fold(0.0_f64, |most, v| most.max(v.abs())));
    for (found, exact) in found.iter().zip(exact) {
        assert!((f64::from(*found) - exact).abs() <= within, "{found} {exact}");
    }
}

/// Gates and ups whose channels are of very different sizes.
fn calibration(tokens: usize, channels: usize, seed: u64) -> (Array2<f32>, Array2<f32>) {
    let size = |c: usize| 2.0_f32.powi(c as i32 % 7 - 3);
    let (mut gates, mut ups) = (random(tokens, channels, seed), random(tokens, channels, seed + 1));
    gates.indexed_iter_mut().for_each(|((_, c), v)| *v *= size(3 * c));
    ups.indexed_iter_mut().for_each(|((_, c), v)| *v *= size(c));
    (gates, ups)
}

/// q / E|up| with q of all costs sorted; E|up| is what a plain threshold on gates lacks.
#[test]
fn thresholds_are_those_of_the_formula() {
    for (tokens, channels) in [(1, 1), (1, 9), (7, 1), (50, 13)] {
        let (gates, ups) = calibration(tokens, channels, 1);
        let means: Vec<f64> = ups
            .axis_iter(Axis(1))
            .map(|up| up.iter().map(|v| f64::from(v.abs())).sum::<f64>() / tokens as f64)
            .collect();
        let mut costs: Vec<f64> =
            gates.indexed_iter().map(|((_, c), gate)| f64::from(gate.abs()) * means[c]).collect();
        costs.sort_by(f64::total_cmp);
        for sparsity in [0.0, 0.1, 0.5, 0.93] {
            // The smallest value with F(value) >= sparsity, by trying all.
            let share = |value: f64| costs.iter().filter(|c| **c <= value).count() as f64;
            let cut = costs.iter().find(|v| share(**v) >= sparsity * costs.len() as f64).unwrap();
            let chess = Chess::default().with_sparsity(sparsity);
            let mut whole = chess.collector(channels).unwrap();
            whole.update(gates.view(), ups.view()).unwrap();
            let whole = whole.finish().unwrap();
            for (threshold, mean) in whole.values().iter().zip(&means) {
                let exact = cut / mean;
                assert!(
                    (f64::from(*threshold) - exact).abs() <= 1e-6 * exact,
                    "{threshold} {exact}"
                );
            }
            let mut parts = chess.collector(channels).unwrap();
            for token in 0..tokens {
                let one = token..token + 1;
                parts.update(gates.slice(s![one.clone(), ..]), ups.slice(s![one, ..])).unwrap();
            }
            let parts = parts.finish().unwrap();
            for (a, b) in parts.values().iter().zip(whole.values()) {
                assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
            }
        }
    }
}

/// As many gates are skipped as asked for, also where a sample of the tokens was kept.
#[test]
fn the_budget_is_met() {
    let (gates, ups) = calibration(900, 24, 3);
    for (sample, within) in [(900, 1e-3), (100, 0.03)] {
        for sparsity in [0.0, 0.3, 0.5, 0.8] {
            let chess = Chess::default().with_sparsity(sparsity).with_sample(sample).with_seed(4);
            let mut collector = chess.collector(24).unwrap();
            collector.update(gates.view(), ups.view()).unwrap();
            let thresholds = collector.finish().unwrap();
            let active = |row: &[f32]| thresholds.active(row).len();
            let active: usize = gates.outer_iter().map(|row| active(row.as_slice().unwrap())).sum();
            let skipped = 1.0 - active as f64 / gates.len() as f64;
            assert!((skipped - sparsity).abs() <= within, "{sparsity}: {skipped}");
        }
    }
}

struct Case {
    gate: Array2<f32>,
    up: Array2<f32>,
    down: Array2<f32>,
    x: Array2<f32>,
}

fn case(hidden: usize, channels: usize, tokens: usize, seed: u64) -> Case {
    let mut up = random(channels, hidden, seed + 1);
    up.indexed_iter_mut().for_each(|((c, _), v)| *v *= 2.0_f32.powi(c as i32 % 7 - 3));
    let gate = random(channels, hidden, seed);
    Case { gate, up, down: random(hidden, channels, seed + 2), x: random(tokens, hidden, seed + 3) }
}

impl Case {
    fn network(&self, dtype: DType) -> FeedForward {
        let Self { gate, up, down, .. } = self;
        FeedForward::new(Some(gate.view()), up.view(), down.view(), Activation::Silu, dtype)
            .unwrap()
    }

    /// silu(G x), U x: in f64.
    fn parts(&self) -> (Array2<f64>, Array2<f64>) {
        let wide = |m: &Array2<f32>| m.mapv(f64::from);
        let gates = wide(&self.x).dot(&wide(&self.gate).t()).mapv(|z| z / (1.0 + (-z).exp()));
        (gates, wide(&self.x).dot(&wide(&self.up).t()))
    }

    fn thresholds(&self, chess: Chess) -> Thresholds {
        let (gates, ups) = self.parts();
        let mut collector = chess.collector(self.gate.nrows()).unwrap();
        let narrow = |m: Array2<f64>| m.mapv(|v| v as f32);
        collector.update(narrow(gates).view(), narrow(ups).view()).unwrap();
        collector.finish().unwrap()
    }
}

/// D (gates kept ⊙ ups), every sum in full.
fn slow(case: &Case, keep: impl Fn(f64, usize) -> bool) -> Array2<f64> {
    let (mut gates, ups) = case.parts();
    gates.indexed_iter_mut().for_each(|((_, c), g)| *g = if keep(*g, c) { *g } else { 0.0 });
    (gates * ups).dot(&case.down.mapv(f64::from).t())
}

/// Several tokens at once are each answered as if alone, to the bit.
#[test]
fn a_step_is_the_dense_network_with_gates_at_zero() {
    for (hidden, channels, tokens) in [(1, 1, 1), (5, 9, 1), (16, 33, 6), (70, 130, 3)] {
        let case = case(hidden, channels, tokens, 10);
        // A little lower: the gate that the quantile is must not depend on rounding.
        let thresholds = case.thresholds(Chess::default());
        let thresholds = thresholds.values().iter().map(|v| 0.999 * v).collect();
        let thresholds = Thresholds::new(thresholds).unwrap();
        let network = case.network(DType::F32);
        let mut scratch = Scratch::new(Par::Threads(2));
        let step = thresholds.apply(&network, case.x.view(), &mut scratch).unwrap();
        let values = thresholds.values();
        near(&step.output, &slow(&case, |g, c| g.abs() >= f64::from(values[c])), 1e-5);
        let mut union = vec![];
        for (token, x) in case.x.axis_chunks_iter(Axis(0), 1).enumerate() {
            let one = thresholds.apply(&network, x, &mut scratch).unwrap();
            assert_eq!(one.output.row(0), step.output.row(token));
            union.extend(one.channels);
        }
        union.sort_unstable();
        union.dedup();
        assert_eq!(step.channels, union);
        // Nothing skipped: the whole network.
        let none = Thresholds::new(vec![0.0; channels]).unwrap();
        let whole = none.apply(&network, case.x.view(), &mut scratch).unwrap();
        assert_eq!(whole.output, network.apply(case.x.view(), &mut scratch).unwrap());
        near(&whole.output, &slow(&case, |_, _| true), 1e-5);
    }
}

/// At the same number of gates skipped, thresholds by channel lose less than one for all: the step that makes CHESS.
#[test]
fn ups_decide_which_gates_go() {
    let case = case(32, 96, 200, 20);
    let thresholds = case.thresholds(Chess::default());
    let (gates, _) = case.parts();
    let plain = Chess::default().inputs(gates.mapv(|g| g as f32).view()).unwrap();
    let error = |thresholds: &Thresholds| {
        let values = thresholds.values();
        let lost = slow(&case, |_, _| true) - slow(&case, |g, c| g.abs() >= f64::from(values[c]));
        lost.iter().map(|v| v * v).sum::<f64>()
    };
    let (by_channel, one_for_all) = (error(&thresholds), error(&plain));
    assert!(by_channel < 0.5 * one_for_all, "{by_channel} {one_for_all}");
}

/// Weights of a skipped channel are NaN: a product that read them would be too.
#[test]
fn skipped_weights_are_not_read() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut case = case(24, 40, 5, 30);
        for channel in (0..40).step_by(2) {
            case.up.row_mut(channel).fill(f32::NAN);
            case.down.column_mut(channel).fill(f32::NAN);
        }
        let skip = |c| if c % 2 == 0 { f32::INFINITY } else { 0.0 };
        let thresholds = Thresholds::new((0..40).map(skip).collect()).unwrap();
        let network = case.network(dtype);
        let step = thresholds.apply(&network, case.x.view(), &mut Scratch::default()).unwrap();
        assert!(step.output.iter().all(|y| y.is_finite()));
        assert_eq!(step.channels, (1..40).step_by(2).collect::<Vec<_>>());
    }
}

/// Attention's inputs: one quantile of all |x|; a linear with the others at 0.
#[test]
fn inputs_below_one_threshold_are_skipped() {
    let (weight, x) = (random(11, 30, 40), random(9, 30, 41));
    let thresholds = Chess::default().with_sparsity(0.4).inputs(x.view()).unwrap();
    let mut sizes: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let cut = sizes[(0.4 * 270.0) as usize - 1];
    assert!(thresholds.values().iter().all(|v| *v == cut));
    let linear = SkippingLinear::new(weight.view(), thresholds, DType::F32).unwrap();
    let step = linear.apply(x.view(), &mut Scratch::default()).unwrap();
    let kept = x.mapv(|v| if v.abs() < cut { 0.0 } else { f64::from(v) });
    near(&step.output, &kept.dot(&weight.mapv(f64::from).t()), 1e-5);
}

#[test]
fn what_cannot_be_is_refused_and_the_rest_defined() {
    let finish = |gates: ArrayView2<'_, f32>, ups: ArrayView2<'_, f32>| {
        let mut collector = Chess::default().collector(gates.ncols()).unwrap();
        collector.update(gates, ups).map(|()| collector.finish().unwrap())
    };
    // No tokens, or nothing but zeros: nothing is skipped.
    let none = Array2::zeros((0, 3));
    assert_eq!(finish(none.view(), none.view()).unwrap().values(), [0.0; 3]);
    let zeros = Array2::zeros((4, 3));
    let thresholds = finish(zeros.view(), zeros.view()).unwrap();
    assert_eq!(thresholds.values(), [0.0; 3]);
    assert_eq!(thresholds.active(&[0.0, f32::NAN, 1.0]), [1, 2]);
    assert_eq!(Chess::default().inputs(none.view()).unwrap().values(), [0.0; 3]);
    // A channel that never adds anything.
    let thresholds =
        finish(array![[1.0, 1.0], [3.0, 2.0]].view(), array![[1.0, 0.0], [1.0, 0.0]].view());
    let thresholds = thresholds.unwrap();
    assert_eq!(thresholds.values()[1], 0.0);
    let all = array![[1.0, 9.0, 1.0, 1.0], [2.0, 9.0, 2.0, 2.0]];
    let dead = array![[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]];
    assert_eq!(finish(all.view(), dead.view()).unwrap().values(), [1.0, f32::INFINITY, 1.0, 1.0]);

    for sparsity in [-0.1, 1.0, f64::NAN] {
        let bad = Chess::default().with_sparsity(sparsity);
        kind(&bad.collector(1).unwrap_err(), ErrorKind::InvalidArgument, "sparsity");
        kind(&bad.inputs(none.view()).unwrap_err(), ErrorKind::InvalidArgument, "sparsity");
    }
    let bad = Chess::default().with_sample(0).collector(1).unwrap_err();
    kind(&bad, ErrorKind::InvalidArgument, "sample");
    let nan = array![[0.0, f32::NAN]];
    let fine = array![[0.0, 1.0]];
    kind(&finish(nan.view(), fine.view()).unwrap_err(), ErrorKind::Numerical, "gates");
    kind(&finish(fine.view(), nan.view()).unwrap_err(), ErrorKind::Numerical, "ups");
    kind(&finish(fine.view(), zeros.view()).unwrap_err(), ErrorKind::ShapeMismatch, "ups");
    kind(&Thresholds::new(vec![-1.0]).unwrap_err(), ErrorKind::InvalidArgument, "threshold");
    let (a, b) = (random(3, 2, 1), random(2, 3, 2));
    let new = |gate: &Array2<f32>, up: &Array2<f32>, down: &Array2<f32>, dtype| {
        FeedForward::new(Some(gate.view()), up.view(), down.view(), Activation::Silu, dtype)
    };
    kind(&new(&b, &a, &b, DType::F32).unwrap_err(), ErrorKind::ShapeMismatch, "gate");
    kind(&new(&a, &a, &a, DType::F32).unwrap_err(), ErrorKind::ShapeMismatch, "output");
    kind(&new(&a, &a, &b, DType::F64).unwrap_err(), ErrorKind::Unsupported, "F64");
    let network = new(&a, &a, &b, DType::F32).unwrap();
    let mut scratch = Scratch::default();
    let wide = network.ups(b.view(), &[0], &mut scratch).unwrap_err();
    kind(&wide, ErrorKind::ShapeMismatch, "input");
    let beyond = network.ups(a.view(), &[3], &mut scratch).unwrap_err();
    kind(&beyond, ErrorKind::InvalidArgument, "channel");
    let plain = FeedForward::new(None, a.view(), b.view(), Activation::Relu, DType::F32).unwrap();
    let gates = plain.gates(a.view(), &mut scratch).unwrap_err();
    kind(&gates, ErrorKind::Unsupported, "gate");
}
