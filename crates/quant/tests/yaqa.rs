//! Feedback among rows: against the least loss over all that is still to come in f64, what it gains by method, and what it says
//! where it does nothing.

mod reference;

use std::sync::Arc;

use tensorpress_quant::{
    Codes, Gptq, GridSpec, GroupedAffine, Nf4, Qtip, Rtn, Spqr, Watersic, Yaqa,
};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array1, Array2};
use tensorpress_tensor::node::{Mask, as_node, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{
    Compress, Compressed, DynCompress, ErrorKind, Group, Node, Storage, Target,
};

use reference::{Costs, second_moments};

type Matrix = Array2<f64>;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Inputs, or gradients, whose channels depend on each other and differ in size.
fn stream(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
    let (raw, shared) = (random(tokens, channels, seed), random(tokens, 3, seed + 100));
    Array2::from_shape_fn((tokens, channels), |(t, c)| {
        let size = (((c * 7) % 13) as f32 / 8.0 - 0.75).exp2();
        size * (raw[[t, c]] + 1.5 * shared[[t, c % 3]])
    })
}

struct Case {
    weight: Array2<f32>,
    inputs: Array2<f32>,
    costs: Option<Array2<f32>>,
}

impl Case {
    fn new(rows: usize, cols: usize) -> Self {
        let costs = second_moments(&stream(3 * rows + 5, rows, 3)).mapv(|g| g as f32 * 1e-3);
        let inputs = stream(3 * cols + 5, cols, 2);
        Self { weight: random(rows, cols, 1), inputs, costs: Some(costs) }
    }

    fn compress(&self, method: &dyn DynCompress, par: Par) -> Compressed {
        let mut calibration = Calibration::from_samples(self.inputs.clone(), Par::Seq);
        if let Some(costs) = &self.costs {
            calibration = calibration.with_supplied(Arc::new(Costs(costs.clone())));
        }
        let mut group = Group::single(Target::new("w", self.weight.view()), calibration);
        group.par = par;
        method.compress_group_dyn(group).unwrap().layers.remove(0)
    }

    /// tr(G E A Eᵀ).
    fn loss(&self, node: &dyn Node) -> f64 {
        let error = (decode(node).unwrap() - &self.weight).mapv(f64::from);
        let costs = self.costs.as_ref().unwrap().mapv(f64::from);
        (costs.dot(&error).dot(&second_moments(&self.inputs)) * &error).sum()
    }
}

/// x with A x = b, by elimination; A is positive definite.
fn solve(mut a: Matrix, mut b: Array1<f64>) -> Array1<f64> {
    let n = b.len();
    for k in 0..n {
        for i in k + 1..n {
            let factor = a[[i, k]] / a[[k, k]];
            for j in k..n {
                a[[i, j]] -= factor * a[[k, j]];
            }
            b[i] -= factor * b[k];
        }
    }
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| a[[k, j]] * b[j]).sum();
        b[k] = (b[k] - known) / a[[k, k]];
    }
    b
}

/// Bands of a column after each other, column after column: each is rounded to the nearest of what makes good for all errors
/// before by least squares over all entries that are still to come.
#[test]
fn bands_make_good_for_those_before() {
    for (rows, cols) in [(40, 5), (17, 7), (16, 3), (1, 9), (33, 1)] {
        let case = Case::new(rows, cols);
        let method = Yaqa::new(Gptq::new(GridSpec::new(3, 0)).with_damp(0.0)).with_damp(0.0);
        let made = case.compress(&method, Par::Seq);
        assert_eq!(made.fallback, None);
        let node = as_node::<GroupedAffine>(&made.node).unwrap();
        let decoded = decode(node).unwrap();
        let costs = case.costs.as_ref().unwrap().mapv(f64::from);
        let inputs = second_moments(&case.inputs);
        let size = rows * cols;
        // Entry (r, c) is number c * rows + r.
        let hessian = Matrix::from_shape_fn((size, size), |(a, b)| {
            inputs[[a / rows, b / rows]] * costs[[a % rows, b % rows]]
        });
        let weight: Vec<f64> =
            (0..size).map(|i| f64::from(case.weight[[i % rows, i / rows]])).collect();
        let ours: Vec<f64> = (0..size).map(|i| f64::from(decoded[[i % rows, i / rows]])).collect();
        let mut first = 0;
        let mut moved = 0;
        while first < size {
            let end = size.min(first + 16).min((first / rows + 1) * rows);
            let rest = hessian.slice(tensorpress_tensor::ndarray::s![first.., first..]).to_owned();
            let pull = Array1::from_shape_fn(size - first, |i| {
                (0..first).map(|k| hessian[[first + i, k]] * (ours[k] - weight[k])).sum::<f64>()
            });
            let fed = solve(rest, pull);
            for i in first..end {
                let target = weight[i] - fed[i - first];
                let step = f64::from(node.scales()[i % rows]);
                let least = ours[i] - target;
                // Ends of the range are as far away as they are.
                let row = decoded.row(i % rows);
                let inner = row.iter().any(|v| f64::from(*v) < target)
                    && row.iter().any(|v| f64::from(*v) > target);
                if inner {
                    assert!(least.abs() < 0.501 * step, "{rows} x {cols}, {i}: {least} of {step}");
                }
                moved += usize::from((target - weight[i]).abs() > 0.5 * step);
            }
            first = end;
        }
        assert!(moved > 0 || size < 50, "{rows} x {cols}: nothing was fed");
    }
}

fn methods() -> Vec<(Box<dyn DynCompress>, Box<dyn DynCompress>)> {
    fn both<M: Compress + Copy + 'static>(method: M) -> (Box<dyn DynCompress>, Box<dyn DynCompress>)
    where
        M::Node: 'static,
    {
        (Box::new(method), Box::new(Yaqa::new(method).with_damp(0.1)))
    }
    let grid = GridSpec::new(3, 32);
    vec![
        both(Gptq::new(grid)),
        both(Gptq::new(grid).with_act_order(true)),
        both(Spqr::default()),
        both(Nf4::default().with_codes(Codes::feedback())),
        both(Qtip::bits(2)),
        both(Qtip::bits(3).with_rotate(None)),
    ]
}

#[test]
fn every_method_with_feedback_gains() {
    let case = Case::new(150, 96);
    for (alone, fed) in methods() {
        let [alone, both] = [&alone, &fed].map(|method| case.compress(&**method, Par::Rayon));
        assert_eq!((&alone.fallback, &both.fallback), (&None, &None), "{fed:?}");
        let [before, after] = [&alone, &both].map(|made| case.loss(&*made.node));
        assert!(after < 0.8 * before, "{fed:?}: {before} -> {after}");
        let bits = |made: &Compressed| Storage::of(&*made.node).unwrap().bits();
        // Only the number of outliers may differ.
        assert!(bits(&alone).abs_diff(bits(&both)) < bits(&alone) / 100, "{fed:?}");
        let again = case.compress(&*fed, Par::Seq);
        assert_eq!(decode(&*again.node).unwrap(), decode(&*both.node).unwrap(), "{fed:?}");
    }
}

/// Rows that have nothing to do with each other feed each other nothing, however much they cost.
#[test]
fn a_diagonal_changes_nothing() {
    let mut case = Case::new(37, 64);
    let costs = Array2::from_shape_fn((37, 37), |(i, j)| if i == j { 1.0 + i as f32 } else { 0.0 });
    case.costs = Some(costs);
    // A rotation of the outputs makes them depend on each other.
    for (alone, fed) in
        methods().into_iter().filter(|(alone, _)| !format!("{alone:?}").contains("Both"))
    {
        let [alone, both] = [&alone, &fed].map(|method| case.compress(&**method, Par::Seq));
        assert_eq!(decode(&*alone.node).unwrap(), decode(&*both.node).unwrap(), "{fed:?}");
    }
}

#[test]
fn what_cannot_be_fed_is_said() {
    let mut case = Case::new(20, 32);
    let gptq = Gptq::new(GridSpec::new(3, 32));
    let plain = decode(&*case.compress(&gptq, Par::Seq).node).unwrap();
    let told = |case: &Case, method: &dyn DynCompress, what: &str| {
        let made = case.compress(method, Par::Seq);
        let said = made.fallback.unwrap_or_default();
        assert!(said.contains(what), "{method:?}: {said}");
        decode(&*made.node).unwrap()
    };
    told(&case, &Yaqa::new(Rtn::default()), "rtn feeds no errors among rows");
    told(&case, &Yaqa::new(Watersic::bits(4.0)), "watersic feeds no errors among rows");
    let fed = Yaqa::new(gptq);
    let diagonal = case.costs.as_ref().unwrap().diag().to_owned();
    case.costs = Some(diagonal.insert_axis(tensorpress_tensor::ndarray::Axis(0)));
    assert_eq!(told(&case, &fed, "only the diagonal"), plain);
    case.costs = Some(Array2::zeros((20, 20)));
    assert_eq!(told(&case, &fed, "output Fisher matrix is 0"), plain);
    case.costs = Some(Array2::from_elem((20, 20), f32::NAN));
    assert_eq!(told(&case, &fed, "is NaN"), plain);
    case.costs = None;
    assert_eq!(told(&case, &fed, "no output_fisher was supplied"), plain);
}

#[test]
fn bad_input_is_named() {
    let case = Case::new(20, 32);
    let method = Yaqa::new(Gptq::default()).with_damp(f32::NAN);
    let group = || Group::single(Target::new("w", case.weight.view()), Calibration::none(32));
    assert_eq!(method.compress_group(group()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    // Of another matrix.
    let mut case = Case::new(20, 32);
    case.costs = Some(Array2::eye(7));
    let calibration = Calibration::from_samples(case.inputs.clone(), Par::Seq)
        .with_supplied(Arc::new(Costs(case.costs.clone().unwrap())));
    let group = Group::single(Target::new("w", case.weight.view()), calibration);
    let error = Yaqa::new(Gptq::default()).compress_group(group).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::ShapeMismatch, Some("w")));
}

/// Rows that stay singular, all of one direction, and a mask.
#[test]
fn hard_cases_have_finite_results() {
    let mut case = Case::new(48, 40);
    let one = random(1, 48, 9);
    case.costs = Some(one.t().dot(&one));
    let keep = Array2::from_shape_fn((48, 40), |(r, c)| (r + c) % 3 != 0);
    let mask = Mask::from_bools(keep.view());
    for (_, fed) in methods() {
        let made = case.compress(&*fed, Par::Seq);
        assert!(decode(&*made.node).unwrap().iter().all(|v| v.is_finite()), "{fed:?}");
    }
    let calibration = Calibration::from_samples(case.inputs.clone(), Par::Seq)
        .with_supplied(Arc::new(Costs(case.costs.clone().unwrap())));
    let target = Target { mask: Some(&mask), ..Target::new("w", case.weight.view()) };
    let made = Yaqa::new(Gptq::new(GridSpec::new(3, 8)))
        .compress_group(Group::single(target, calibration))
        .unwrap();
    assert!(decode(&*made.layers[0].node).unwrap().iter().all(|v| v.is_finite()));
}
