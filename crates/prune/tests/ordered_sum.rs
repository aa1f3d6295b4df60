//! ACM: greedy learners beside the best there are, counts beside trying all.

use tensorpress_prune::activation::{Learners, OrderedSum, OrderedSumFit, choose};
use tensorpress_tensor::linalg::{gaussian, svd};
use tensorpress_tensor::ndarray::{Array2, Axis, array};
use tensorpress_tensor::{Error, ErrorKind};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn kind(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

fn linear(learners: usize, rank: usize) -> OrderedSumFit {
    OrderedSumFit::default().with_learners(learners).with_kind(Learners::Linear { rank })
}

fn relu(learners: usize, width: usize, ridge: f64) -> OrderedSumFit {
    OrderedSumFit::default().with_learners(learners).with_kind(Learners::Relu { width, ridge })
}

/// Squared error of each prefix, from no learner on.
fn errors(sum: &OrderedSum, x: &Array2<f32>, y: &Array2<f32>) -> Vec<f64> {
    let error = |count: usize| {
        let found = sum.apply(x.view(), &vec![count; x.nrows()]).unwrap();
        (&found - y).iter().map(|v| f64::from(*v).powi(2)).sum()
    };
    (0..=sum.len()).map(error).collect()
}

/// A layer with a curve in it.
fn layer(tokens: usize, inputs: usize, outputs: usize, seed: u64) -> (Array2<f32>, Array2<f32>) {
    let x = random(tokens, inputs, seed);
    let (first, second) = (random(20, inputs, seed + 1), random(outputs, 20, seed + 2));
    let hidden = x.dot(&first.t()).mapv(|h| h.max(0.0));
    let y = hidden.dot(&second.t()) + 3.0;
    (x, y)
}

/// k learners of rank r miss what the best affine map of rank k r does (Eckart and Young, behind the normal equations):
/// fitted to anything but the residual, the second would repeat the first.
#[test]
fn prefixes_of_linear_learners_are_the_best_of_their_rank() {
    let (x, y) = layer(70, 9, 7, 1);
    let centred = |m: &Array2<f32>| {
        let m = m.mapv(f64::from);
        &m - &m.mean_axis(Axis(0)).unwrap()
    };
    let (xc, yc) = (centred(&x), centred(&y));
    // X (XᵀX)⁻¹ Xᵀ Y: the projection on the span of X.
    let basis = svd(xc.view()).unwrap().u;
    let given = basis.dot(&basis.t().dot(&yc));
    let missed: f64 = (&yc - &given).iter().map(|v| v * v).sum();
    let singular = svd(given.view()).unwrap().s;
    for rank in [1, 2, 3] {
        let sum = linear(3, rank).fit(x.view(), y.view()).unwrap();
        for (count, error) in errors(&sum, &x, &y).into_iter().enumerate().skip(1) {
            let left: f64 = singular.iter().skip(count * rank).map(|s| s * s).sum();
            let best = missed + left;
            assert!((error - best).abs() < 1e-4 * best, "{count} of {rank}: {error} {best}");
        }
    }
}

/// Each learner lowers the error, each prefix is the fit of fewer learners, and what is left has no mean.
#[test]
fn learners_are_fitted_to_what_is_left() {
    let (x, y) = layer(300, 6, 5, 4);
    let fit = relu(5, 12, 1e-3);
    let sum = fit.fit(x.view(), y.view()).unwrap();
    let found = errors(&sum, &x, &y);
    assert!(found.windows(2).all(|pair| pair[1] < pair[0]), "{found:?}");
    for learners in 1..5 {
        let fewer = fit.with_learners(learners).fit(x.view(), y.view()).unwrap();
        let counts = vec![learners; 300];
        assert_eq!(fewer.apply(x.view(), &counts).unwrap(), sum.apply(x.view(), &counts).unwrap());
        let left = &y - &fewer.apply(x.view(), &counts).unwrap();
        assert!(left.mean_axis(Axis(0)).unwrap().iter().all(|m| m.abs() < 1e-4));
    }
    // The curve is what no affine map finds.
    let best_affine = errors(&linear(1, 9).fit(x.view(), y.view()).unwrap(), &x, &y)[1];
    assert!(found[5] < 0.5 * best_affine, "{} {best_affine}", found[5]);
    // More ridge, less fit; another seed, another layer.
    let damped = relu(5, 12, 10.0).fit(x.view(), y.view()).unwrap();
    assert!(errors(&damped, &x, &y)[5] > found[5]);
    assert_ne!(fit.with_seed(1).fit(x.view(), y.view()).unwrap(), sum);
    assert_eq!(fit.fit(x.view(), y.view()).unwrap(), sum);
}

/// The first count that is near enough, by running all of them; and a token runs no more than its count.
#[test]
fn a_token_runs_as_few_as_will_do() {
    let (x, y) = layer(120, 6, 5, 7);
    let sum = relu(6, 10, 1e-3).fit(x.view(), y.view()).unwrap();
    for tolerance in [0.0, 0.05, 0.2, 0.6, 1.0] {
        let counts = sum.smallest(x.view(), y.view(), tolerance).unwrap();
        let mixed = sum.apply(x.view(), &counts).unwrap();
        for t in 0..120 {
            let (x, y) = (x.select(Axis(0), &[t]), y.select(Axis(0), &[t]).mapv(f64::from));
            let norm = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
            let ok = |count: &usize| {
                let found = sum.apply(x.view(), &[*count]).unwrap().mapv(f64::from);
                norm(&(&found - &y)) <= tolerance * norm(&y) + 1e-6
            };
            let wanted = (0..6).find(ok).unwrap_or(6);
            assert_eq!(counts[t], wanted, "token {t} at {tolerance}");
            assert_eq!(mixed.row(t), sum.apply(x.view(), &[wanted]).unwrap().row(0));
        }
    }
    let all = |tolerance| sum.smallest(x.view(), y.view(), tolerance).unwrap();
    assert!(all(0.0).iter().all(|count| *count == 6) && all(1.0).iter().all(|count| *count == 0));
    let some = all(0.2);
    assert!(some.iter().min() != some.iter().max(), "tokens differ");
}

/// Half of the tokens are answered by nothing: the gate tells them from the others by their inputs.
#[test]
fn the_gate_knows_who_needs_none() {
    let make = |seed| {
        let (mut x, mut y) = layer(200, 4, 3, seed);
        for t in 0..200 {
            x[[t, 0]] = if t % 2 == 0 { 4.0 } else { -4.0 };
            y.row_mut(t).mapv_inplace(|v| if t % 2 == 0 { v } else { 0.0 });
        }
        (x, y)
    };
    let (x, y) = make(11);
    let sum = relu(3, 40, 1e-3).fit(x.view(), y.view()).unwrap();
    let gate = sum.fit_gate(x.view(), y.view(), 0.3).unwrap();
    let guessed = choose(gate.apply(make(31).0.view()).unwrap().view(), 1);
    assert!(guessed.iter().enumerate().all(|(t, count)| (count[0] > 0) == (t % 2 == 0)));
}

#[test]
fn what_cannot_be_is_refused_and_the_rest_defined() {
    let (x, y) = layer(10, 3, 2, 50);
    let bad = |fit: OrderedSumFit, part| {
        kind(&fit.fit(x.view(), y.view()).unwrap_err(), ErrorKind::InvalidArgument, part);
    };
    bad(linear(0, 1), "learners");
    bad(linear(1, 0), "rank");
    bad(relu(1, 0, 0.0), "width");
    bad(relu(1, 1, -1.0), "ridge");
    let few = linear(1, 1).fit(x.view(), y.slice(tensorpress_tensor::ndarray::s![..4, ..]));
    kind(&few.unwrap_err(), ErrorKind::ShapeMismatch, "10 tokens");
    let nan = linear(1, 1).fit(array![[f32::NAN]].view(), array![[1.0]].view()).unwrap_err();
    kind(&nan, ErrorKind::Numerical, "inputs");
    let sum = linear(2, 1).fit(x.view(), y.view()).unwrap();
    let counts = sum.apply(x.view(), &[3; 10]).unwrap_err();
    kind(&counts, ErrorKind::InvalidArgument, "allowed are 0 to 2");
    let tolerance = sum.smallest(x.view(), y.view(), f64::NAN).unwrap_err();
    kind(&tolerance, ErrorKind::InvalidArgument, "tolerance");
    kind(&sum.apply(x.view(), &[1]).unwrap_err(), ErrorKind::ShapeMismatch, "counts");
    for fit in [linear(2, 5), relu(2, 4, 1e-3), relu(2, 40, 0.0)] {
        // No tokens: 0. One token, or inputs that are all the same: the mean.
        let none = fit
            .fit(Array2::<f32>::zeros((0, 3)).view(), Array2::<f32>::zeros((0, 2)).view())
            .unwrap();
        assert_eq!(none.apply(x.view(), &[2; 10]).unwrap(), Array2::<f32>::zeros((10, 2)));
        let one = fit.fit(Array2::ones((1, 3)).view(), array![[2.0, -1.0]].view()).unwrap();
        let mean = fit.fit(Array2::ones((2, 3)).view(), array![[1.0, 0.0], [3.0, -2.0]].view());
        for sum in [one, mean.unwrap()] {
            let y = sum.apply(Array2::ones((1, 3)).view(), &[2]).unwrap();
            assert!((y[[0, 0]] - 2.0).abs() < 1e-5 && (y[[0, 1]] + 1.0).abs() < 1e-5, "{y}");
        }
        let quiet = fit.fit(x.view(), Array2::<f32>::zeros((10, 2)).view()).unwrap();
        assert_eq!(
            quiet.smallest(x.view(), Array2::<f32>::zeros((10, 2)).view(), 0.0).unwrap(),
            [0; 10]
        );
    }
}
