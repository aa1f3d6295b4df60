//! SmoothQuant and FPTQ: scales, regimes and products by slow references; real layers; laws; bad input.

use tensorpress_quant::activation::{ActivationRegime, ActivationRounding, Int8Rows};
use tensorpress_quant::{Fptq, Gptq, GridSpec, Rtn, SmoothQuant};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{InputRounding, Mask, Masked, decode, to_bytes};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::testing::golden::Layer;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Accum, Compress, DType, DynCompress, ErrorKind, Fold, Group, Node, Registry, Scratch, Target,
    Usable,
};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Inputs of which a few channels are far larger than the rest.
fn outliers(rows: usize, cols: usize, seed: u64, size: f32) -> Array2<f32> {
    let mut x = matrix(rows, cols, seed);
    x.columns_mut().into_iter().step_by(17).for_each(|mut c| c *= size);
    x
}

fn calibration(x: &Array2<f32>) -> Calibration {
    Calibration::from_samples(x.clone(), Par::Seq)
}

/// |X' Q^T - X W^T| over |X W^T|, by the node's own product.
fn error(node: &dyn Node, w: &Array2<f32>, x: &Array2<f32>) -> f64 {
    let mut y = Array2::zeros((x.nrows(), w.nrows()));
    node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut Scratch::default()).unwrap();
    let exact = x.mapv(f64::from).dot(&w.mapv(f64::from).t());
    let off: f64 = y.iter().zip(&exact).map(|(y, e)| (f64::from(*y) - e).powi(2)).sum();
    (off / exact.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

#[test]
fn smoothing_scales_are_those_of_the_equation() {
    let (x, a, b) = (outliers(50, 40, 1, 30.0), matrix(6, 40, 2), matrix(9, 40, 3));
    let targets = [Target::new("a", a.view()), Target::new("b", b.view())];
    for alpha in [0.0f32, 0.3, 0.5, 0.85, 1.0] {
        let smooth = SmoothQuant::default().with_alpha(alpha);
        let Usable::Yes(scales) = smooth.scales(&targets, &calibration(&x)).unwrap() else {
            panic!("moments are there");
        };
        for (j, s) in scales.iter().enumerate() {
            let most =
                |m: &Array2<f32>| m.column(j).iter().fold(0f64, |m, v| m.max(v.abs().into()));
            let alpha = f64::from(alpha);
            // exp of logarithms, not powers of f32.
            let exact = (alpha * most(&x).ln() - (1.0 - alpha) * most(&a).max(most(&b)).ln()).exp();
            assert!((f64::from(*s) / exact - 1.0).abs() < 1e-5, "channel {j}: {s}, {exact}");
        }
    }
}

/// Equal to a norm with weight v / s before matrices W diag(s), all of it in f64.
#[test]
fn folded_scales_change_nothing_but_rounding() {
    let (x, w) = (outliers(64, 48, 4, 40.0), matrix(20, 48, 5));
    let norm: Vec<f32> = (0..48).map(|j| 1.0 + j as f32 / 40.0).collect();
    let smooth = SmoothQuant::default().with_activations(ActivationRounding::Exact, 8);
    let mut group = Group::single(Target::new("w", w.view()), calibration(&x));
    group.fold = Some(Fold { values: &norm, dtype: DType::BF16 });
    let made = smooth.compress_group(group).unwrap();
    let folded = made.folded.unwrap();
    // What comes out of the changed norm.
    let moved = Array2::from_shape_fn(x.dim(), |(t, j)| x[[t, j]] / norm[j] * folded[j]);
    let mut y = Array2::zeros((64, 20));
    let node = &made.layers[0].node;
    node.matmul(moved.view(), y.view_mut(), Accum::Replace, &mut Scratch::default()).unwrap();
    let exact = x.mapv(f64::from).dot(&w.mapv(f64::from).t());
    let norm = exact.iter().map(|v| v * v).sum::<f64>();
    let off: f64 = y.iter().zip(&exact).map(|(y, e)| (f64::from(*y) - e).powi(2)).sum();
    assert!((off / norm).sqrt() < 0.012, "{}", (off / norm).sqrt());
    assert!(
        made.layers[0].fallback.is_none() && folded.iter().all(|v| *v == DType::BF16.round(*v))
    );
}

#[test]
fn outliers_cost_less_where_they_are_smoothed() {
    let (x, w) = (outliers(128, 68, 6, 50.0), matrix(32, 68, 7));
    for rounding in [ActivationRounding::Token, ActivationRounding::Static] {
        let run = |alpha: f32| {
            let smooth = SmoothQuant::default().with_alpha(alpha).with_activations(rounding, 8);
            let made = smooth.compress(w.view(), &calibration(&x)).unwrap();
            // The large channels hide what the others lose.
            let mut small = x.clone();
            small.columns_mut().into_iter().step_by(17).for_each(|mut c| c.fill(0.0));
            let large = &x - &small;
            let mut y = Array2::zeros((128, 32));
            let node = &made.node;
            node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut Scratch::default()).unwrap();
            let exact = x.dot(&w.t());
            let off = (&y - &exact).mapv(|v| v * v).sum();
            assert!(large.iter().any(|v| v.abs() > 50.0));
            f64::from(off / small.dot(&w.t()).mapv(|v| v * v).sum()).sqrt()
        };
        // All in the weights, all in the inputs, shared.
        let (shared, inputs) = (run(0.5), run(0.0));
        println!("{rounding:?}: error {shared:.4} smoothed, {inputs:.4} by weights alone");
        assert!(shared < 0.6 * inputs, "{rounding:?}: {shared}, {inputs}");
    }
}

#[test]
fn regimes_round_as_the_range_asks() {
    let w = matrix(16, 34, 8);
    for (size, expected) in [
        (1.0, ActivationRegime::Static),
        (20.0, ActivationRegime::Equalised),
        (400.0, ActivationRegime::Dynamic),
    ] {
        let x = outliers(80, 34, 9, size);
        let most = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let fptq = Fptq::default();
        assert_eq!(fptq.regime(most), expected, "range {most}");
        let made = fptq.compress(w.view(), &calibration(&x)).unwrap();
        let tree = made.node.describe().to_string();
        assert_eq!(
            tree.contains("scale\",") || tree.contains("\"transform\""),
            size == 20.0,
            "{tree}"
        );
        assert_eq!(tree.contains("\"static\":true"), size < 400.0, "{tree}");
        assert!(error(&made.node, &w, &x) < 0.2);
    }
    let ranges = [0.0, 0.5, 6.0, 149.0];
    for (x, s) in ranges.iter().zip(Fptq::equalisation(&ranges)) {
        let exact = f64::from(*x) * std::f64::consts::LN_2 / (2.0 + f64::from(*x)).ln();
        let exact = if *x == 0.0 { 1.0 } else { exact };
        assert!((f64::from(s) - exact).abs() < 1e-4 * exact, "{x}: {s}, {exact}");
    }
}

#[test]
fn integer_products_are_exact() {
    for (tokens, outputs, columns) in [(0, 3, 8), (3, 0, 8), (2, 3, 0), (5, 7, 33), (1, 2, 70_000)]
    {
        let (x, w) = (matrix(tokens, columns, 10), matrix(outputs, columns, 11));
        let by_row = InputRounding::by_token(8).unwrap();
        let (x8, w8) = (
            Int8Rows::round(x.view(), by_row).unwrap(),
            Int8Rows::round(w.view(), by_row).unwrap(),
        );
        assert_eq!(x8.bytes(), tokens * (columns + 4));
        let y = x8.product(&w8, Par::Threads(3)).unwrap();
        assert_eq!(y, x8.product(&w8, Par::Seq).unwrap());
        for ((t, o), y) in y.indexed_iter() {
            let sum: i128 = (0..columns)
                .map(|c| {
                    i128::from(x8.codes()[t * columns + c])
                        * i128::from(w8.codes()[o * columns + c])
                })
                .sum();
            let exact = sum as f64 * f64::from(x8.scales()[t]) * f64::from(w8.scales()[o]);
            assert_eq!(*y, exact as f32);
        }
        for (a, b) in x8.decode().iter().zip(&x) {
            assert!((a - b).abs() <= 0.5 * x8.scales().iter().copied().fold(0.0, f32::max) + 1e-6);
        }
    }
    let by_row = InputRounding::by_token(8).unwrap();
    let a = Int8Rows::round(matrix(2, 3, 1).view(), by_row).unwrap();
    let b = Int8Rows::round(matrix(2, 4, 1).view(), by_row).unwrap();
    assert_eq!(a.product(&b, Par::Seq).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    let bad = Int8Rows::round(Array2::from_elem((1, 2), f32::NAN).view(), by_row);
    assert_eq!(bad.unwrap_err().kind(), ErrorKind::Numerical);
}

/// The integer path computes what the node does.
#[test]
fn integers_agree_with_the_node() {
    let (x, w) = (matrix(20, 64, 12), matrix(16, 64, 13));
    let smooth = SmoothQuant::with_solver(Rtn::new(
        GridSpec::new(8, 0).with_symmetric(true).with_scale(DType::F32),
    ))
    .with_alpha(0.5);
    let made = smooth.compress(w.view(), &calibration(&x)).unwrap();
    let Usable::Yes(scales) =
        smooth.scales(&[Target::new("w", w.view())], &calibration(&x)).unwrap()
    else {
        panic!()
    };
    // Scales are stored as f16 of their reciprocals.
    let back: Vec<f32> = scales.iter().map(|s| DType::F16.round(1.0 / s)).collect();
    let by_row = InputRounding::by_token(8).unwrap();
    let moved = Array2::from_shape_fn(x.dim(), |(t, j)| x[[t, j]] * back[j]);
    let scaled = Array2::from_shape_fn(w.dim(), |(r, j)| w[[r, j]] / back[j]);
    let x8 = Int8Rows::round(moved.view(), by_row).unwrap();
    let w8 = Int8Rows::round(scaled.view(), by_row).unwrap();
    let integers = x8.product(&w8, Par::Seq).unwrap();
    let mut floats = Array2::zeros(integers.dim());
    let node = &made.node;
    node.matmul(x.view(), floats.view_mut(), Accum::Replace, &mut Scratch::default()).unwrap();
    // The grids of weights differ: 255 levels in steps of range / 127 here, of range / 127.5 there.
    let off = (&integers - &floats).mapv(|v| v * v).sum() / floats.mapv(|v| v * v).sum();
    assert!(off.sqrt() < 0.01, "{}", off.sqrt());
}

#[test]
fn real_layers() {
    let Some(folder) = data::find("golden/weights") else { return };
    for name in ["l2_query", "l2_ffn_up", "l2_ffn_down"] {
        let Layer { weight, x, .. } = Layer::read(&folder, name);
        let seen = calibration(&x);
        let most = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let w8 = |alpha: f32, rounding| {
            let smooth = SmoothQuant::default().with_alpha(alpha).with_activations(rounding, 8);
            error(&smooth.compress(weight.view(), &seen).unwrap().node, &weight, &x)
        };
        let unsmoothed = |rounding| {
            let rtn = Rtn::new(GridSpec::new(8, 0).with_symmetric(true));
            let made = rtn.compress(weight.view(), &seen).unwrap().node;
            let node = tensorpress_tensor::node::RoundedInputs::new(rounding, made.boxed());
            error(&node, &weight, &x)
        };
        let fixed = InputRounding::fixed(8, most).unwrap();
        let dynamic = InputRounding::by_token(8).unwrap();
        let w4 = |method: &dyn DynCompress| {
            let group = Group::single(Target::new("w", weight.view()), seen.clone());
            error(&method.compress_group_dyn(group).unwrap().layers[0].node, &weight, &x)
        };
        let smoothed = (w8(0.5, ActivationRounding::Token), w8(0.5, ActivationRounding::Static));
        let plain = (unsmoothed(dynamic), unsmoothed(fixed));
        let exact = w8(0.5, ActivationRounding::Exact);
        let fptq = w4(&Fptq::default());
        let with_gptq = w4(&Fptq::with_solver(Gptq::new(GridSpec::new(4, 128))));
        println!(
            "{name} (range {most:.1}): W8A8 {:.5} by token ({:.5} unsmoothed), {:.5} static ({:.5}), \
             inputs exact {exact:.5}; W4A8 {fptq:.4}, with gptq {with_gptq:.4}",
            smoothed.0, plain.0, smoothed.1, plain.1
        );
        assert!(smoothed.0 < 1.05 * plain.0, "{name}");
        // Behind an activation function, where the paper does not smooth, one range for all loses.
        assert!(name == "l2_ffn_down" || smoothed.1 < plain.1, "{name}");
        assert!(exact < smoothed.0 && with_gptq < fptq && fptq < 0.2, "{name}");
    }
}

#[test]
fn nodes_obey_the_laws() {
    let registry = Registry::default();
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 37), (20, 64)] {
        let (x, w) = (outliers(30, cols, 14, 20.0), matrix(rows, cols, 15));
        for rounding in [ActivationRounding::Token, ActivationRounding::Exact] {
            let smooth = SmoothQuant::default().with_activations(rounding, 8);
            let made = smooth.compress(w.view(), &calibration(&x)).unwrap();
            check_node(made.node, &registry, 0.1);
        }
        let made = Fptq::default().compress(w.view(), &calibration(&x)).unwrap();
        // Steps of a fixed range say nothing of small inputs: products have a test of their own.
        check_node(made.node, &registry, 1e6);
    }
    let (x, w) = (outliers(30, 20, 16, 20.0), matrix(12, 20, 17));
    let made = SmoothQuant::default()
        .with_activations(ActivationRounding::Static, 8)
        .compress(w.view(), &calibration(&x))
        .unwrap();
    check_damage(&made.node, &registry);
    let mask = Mask::from_bools(matrix(12, 20, 18).mapv(|v| v > 0.0).view());
    let mut target = Target::new("w", w.view());
    target.mask = Some(&mask);
    let made =
        SmoothQuant::default().compress_group(Group::single(target, calibration(&x))).unwrap();
    let node = Masked::new(mask.clone(), made.layers.into_iter().next().unwrap().node).unwrap();
    for ((r, c), w) in decode(&node).unwrap().indexed_iter() {
        assert!(mask.keeps(r, c) || *w == 0.0);
    }
}

#[test]
fn bad_statistics_are_told_and_bad_numbers_refused() {
    let w = matrix(10, 16, 19);
    let methods: [&dyn DynCompress; 4] = [
        &SmoothQuant::default(),
        &SmoothQuant::default().with_activations(ActivationRounding::Static, 8),
        &Fptq::default(),
        &Fptq::with_solver(Rtn::new(GridSpec::new(8, 0))),
    ];
    let run = |method: &dyn DynCompress, w: &Array2<f32>, x: Array2<f32>| {
        let group =
            Group::single(Target::new("w", w.view()), Calibration::from_samples(x, Par::Seq));
        method.compress_group_dyn(group).map(|mut made| made.layers.pop().unwrap())
    };
    for method in methods {
        for (x, reason) in [
            (Array2::zeros((0, 16)), "no calibration token"),
            (Array2::from_elem((9, 16), f32::NAN), "NaN"),
        ] {
            let made = run(method, &w, x).unwrap();
            assert!(made.fallback.as_ref().is_some_and(|f| f.contains(reason)), "{made:?}");
            assert!(error(&made.node, &w, &matrix(5, 16, 20)) < 0.3);
        }
        let mut dead = matrix(40, 16, 21);
        dead.column_mut(3).fill(0.0);
        let mut zero_column = w.clone();
        zero_column.column_mut(5).fill(0.0);
        for (w, x) in [
            (w.clone(), Array2::zeros((9, 16))),
            (Array2::zeros((10, 16)), dead.clone()),
            (zero_column, dead.clone()),
            (Array2::from_shape_fn((10, 16), |(r, _)| r as f32 - 4.0), dead.clone()),
            (w.mapv(|w| w * 1e25), dead.mapv(|x| x * 1e-20)),
            (w.mapv(|w| w * 1e-25), dead.mapv(|x| x * 1e20)),
        ] {
            let made = run(method, &w, x.clone()).unwrap();
            assert!(decode(&made.node).unwrap().iter().all(|w| w.is_finite()));
            let mut y = Array2::zeros((x.nrows(), 10));
            let mut scratch = Scratch::default();
            made.node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut scratch).unwrap();
            assert!(y.iter().all(|y| y.is_finite()));
        }
        let mut bad = w.clone();
        bad[[2, 3]] = f32::INFINITY;
        let refused = run(method, &bad, dead.clone()).unwrap_err();
        assert!(refused.kind() == ErrorKind::Numerical && refused.to_string().contains("[2, 3]"));
    }
    let seen = calibration(&matrix(9, 16, 22));
    let token = ActivationRounding::Token;
    for bad in [-0.1, 1.1, f32::NAN] {
        let refused = SmoothQuant::default().with_alpha(bad).compress(w.view(), &seen);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    for bits in [0, 1, 9] {
        let refused =
            SmoothQuant::default().with_activations(token, bits).compress(w.view(), &seen);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
        let refused = Fptq::default().with_activation_bits(bits).compress(w.view(), &seen);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    for (low, high) in [(2.0, 1.0), (f32::NAN, 1.0), (-1.0, 1.0), (0.0, f32::NAN)] {
        let refused = Fptq::default().with_ranges(low, high).compress(w.view(), &seen);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let none = SmoothQuant::default().compress(w.view(), &Calibration::none(16));
    assert!(none.is_err_and(|e| e.kind() == ErrorKind::MissingCalibration));
}

#[test]
fn threads_do_not_change_a_bit() {
    let (x, w) = (outliers(60, 64, 23, 20.0), matrix(40, 64, 24));
    let run = |par: Par| {
        let mut group = Group::single(Target::new("w", w.view()), calibration(&x));
        group.par = par;
        to_bytes(&SmoothQuant::default().compress_group(group).unwrap().layers[0].node).unwrap()
    };
    assert!(run(Par::Seq) == run(Par::Rayon));
}
