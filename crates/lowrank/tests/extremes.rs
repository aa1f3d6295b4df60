//! Weights and statistics at the ends of f32, and beyond what f32 can square: every method gives a finite result that loses
//! no more than it must, or says why it could not.

use std::sync::Arc;

use tensorpress_lowrank::{
    Activity, Factors, InputScale, LowRank, Metric, Rank, Root, Solver, asvd, eora,
    feature_mimicking, lord, metric, svd, svd_llm,
};
use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::ndarray::{Array1, Array2, Axis};
use tensorpress_tensor::node::{Dense, decode};
use tensorpress_tensor::stats::{Calibration, Gram, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DType, DynCompress, ErrorKind, Group, Method, Result,
    Target, Usable,
};

const OUT: usize = 24;
const IN: usize = 20;
const RANK: usize = 3;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

/// What the outputs of an error are measured on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Measure {
    Weights,
    AbsMean,
    AbsMax,
    Inputs,
    Deviations,
}

fn methods(factors: &Factors) -> Vec<(Measure, Box<dyn DynCompress>)> {
    fn made<M: Metric + 'static>(method: LowRank<M>, factors: &Factors) -> Box<dyn DynCompress> {
        Box::new(method.with_always(true).with_factors(factors.clone()))
    }
    let rank = Rank::Number(RANK);
    let most = InputScale { activity: Activity::AbsMax, ..InputScale::default() };
    let leading = svd(rank).with_solver(Solver::Randomized { power_iterations: 4 });
    vec![
        (Measure::Weights, made(svd(rank), factors)),
        (Measure::Weights, made(leading, factors)),
        (Measure::AbsMean, made(asvd(rank, 0.5), factors)),
        (Measure::AbsMax, made(LowRank::new(most, rank), factors)),
        (Measure::Inputs, made(svd_llm(rank), factors)),
        (Measure::Inputs, made(lord(rank), factors)),
        (Measure::Inputs, made(eora(RANK), factors)),
        (Measure::Deviations, made(feature_mimicking(rank), factors)),
    ]
}

fn weights() -> Vec<(&'static str, Array2<f32>)> {
    let plain = random(OUT, IN, 1);
    let one = |value: f32| {
        let mut weight = plain.clone();
        weight[[5, 7]] = value;
        weight
    };
    let mut row = plain.clone();
    row.row_mut(3).mapv_inplace(|v| v * 1e30);
    vec![
        ("usual", plain.clone()),
        ("one 1e25", one(1e25)),
        ("one -1e38", one(-1e38)),
        ("one largest", one(f32::MAX)),
        ("a row of 1e30", row),
        ("all 1e38", plain.mapv(|v| 1e38f32.copysign(v))),
        ("all 1e-30", plain.mapv(|v| v * 1e-30)),
        ("all subnormal", plain.mapv(|v| v * 1e-39)),
        ("zero", Array2::zeros((OUT, IN))),
    ]
}

fn inputs() -> Vec<(&'static str, Array2<f32>)> {
    let plain = random(200, IN, 2);
    let column = |value: f32| {
        let mut x = plain.clone();
        x.column_mut(4).mapv_inplace(|v| v * value);
        x
    };
    let mut dead = plain.clone();
    [0, 9, 10].iter().for_each(|c| dead.column_mut(*c).fill(0.0));
    vec![
        ("usual", plain.clone()),
        ("a channel beyond f32's squares", column(1e25)),
        ("a channel near the largest square", column(1e17)),
        ("dead channels", dead),
        ("all dead", Array2::zeros((200, IN))),
        ("two tokens", random(2, IN, 3)),
        ("all 1e15", plain.mapv(|v| v * 1e15)),
        ("all 1e-15", plain.mapv(|v| v * 1e-15)),
        ("all 1e-30", plain.mapv(|v| v * 1e-30)),
    ]
}

/// Divided by the largest absolute value, in f64.
fn unit(m: &Array2<f32>) -> Array2<f64> {
    let most = m.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs())));
    m.mapv(|v| if most > 0.0 { f64::from(v) / most } else { 0.0 })
}

/// What a measure multiplies errors by, `[rows, IN]`, up to a factor.
fn measured(measure: Measure, x: &Array2<f32>) -> Array2<f64> {
    let x = unit(x);
    let diagonal = |of: fn(&[f64]) -> f64| {
        let activity = x.axis_iter(Axis(1)).map(|c| of(&c.to_vec()).sqrt());
        Array2::from_diag(&activity.collect::<Array1<f64>>())
    };
    match measure {
        Measure::Weights => Array2::eye(IN),
        Measure::AbsMean => diagonal(|c| c.iter().map(|v| v.abs()).sum::<f64>() / c.len() as f64),
        Measure::AbsMax => diagonal(|c| c.iter().fold(0.0, |most, v| v.abs().max(most))),
        Measure::Inputs => x,
        Measure::Deviations => {
            let mean = x.mean_axis(Axis(0)).expect("tokens");
            x - &mean
        }
    }
}

fn norm(m: &Array2<f64>) -> f64 {
    m.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn run(
    method: &dyn DynCompress,
    weight: &Array2<f32>,
    calibration: &Calibration,
    dtype: DType,
) -> Result<Compressed> {
    let target = Target::new("w", weight.view()).with_dtype(dtype);
    let mut made = method.compress_group_dyn(Group::single(target, calibration.clone()))?;
    Ok(made.layers.remove(0))
}

#[test]
fn nothing_that_is_finite_stops_a_method() {
    for (factors, dtype, tolerance) in [
        (Factors::Source, DType::F32, 1e-3),
        (Factors::Source, DType::BF16, 3e-2),
        (Factors::Float(DType::F16), DType::F32, 1e-2),
        (Factors::By(Arc::new(Rounded(Needs::NONE))), DType::F32, 3e-2),
        (Factors::By(Arc::new(Rounded(Needs::GRAM))), DType::F32, 3e-2),
    ] {
        for (x_is, x) in inputs() {
            let calibration = Calibration::from_samples(x.clone(), Par::Seq);
            for (w_is, weight) in weights() {
                let weight = weight.mapv(|w| dtype.round(w));
                if weight.iter().any(|w| !w.is_finite()) {
                    continue;
                }
                for (measure, method) in methods(&factors) {
                    let case = format!("{w_is}, {x_is}, {}, {factors:?}, {dtype:?}", method.id());
                    let layer = run(&*method, &weight, &calibration, dtype)
                        .unwrap_or_else(|e| panic!("{case}: {e}"));
                    let ours = decode(&*layer.node).unwrap();
                    assert!(ours.iter().all(|v| v.is_finite()), "{case}: {:?}", layer.fallback);
                    let bias = layer.bias.iter().flatten();
                    assert!(bias.clone().all(|v| v.is_finite()), "{case}");
                    // Narrow types hold no factors of the smallest numbers.
                    let small = w_is.starts_with("all s") || w_is == "all 1e-30";
                    if small && (dtype != DType::F32 || !matches!(factors, Factors::Source)) {
                        continue;
                    }
                    let fell = layer.fallback.as_deref().unwrap_or_default();
                    let measure = if fell.contains("of the weights instead") {
                        Measure::Weights
                    } else {
                        measure
                    };
                    check(&case, &weight, &ours, &measured(measure, &x), tolerance);
                }
            }
        }
    }
}

/// The error is that of the best approximation of this rank, but for rounding.
fn check(case: &str, weight: &Array2<f32>, ours: &Array2<f32>, by: &Array2<f64>, tolerance: f64) {
    let exact = unit(weight).dot(&by.t());
    let most = weight.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs()))).max(1e-300);
    let lost = (weight.mapv(f64::from) - ours.mapv(f64::from)) / most;
    let least: f64 = linalg::svd(exact.view()).unwrap().s.iter().skip(RANK).map(|s| s * s).sum();
    let (lost, least) = (norm(&lost.dot(&by.t())), least.sqrt());
    assert!(lost <= least + tolerance * norm(&exact), "{case}: {lost}, at best {least}");
}

/// Rounds to 8 bits of each matrix's largest value, in f32, whatever it is.
#[derive(Debug)]
struct Rounded(Needs);

impl Method for Rounded {
    fn id(&self) -> &'static str {
        "rounded"
    }
    fn needs(&self) -> Needs {
        self.0.clone()
    }
}

impl Compress for Rounded {
    type Node = Dense;
    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Dense>> {
        let mut note = None;
        if self.0.has::<Gram>()
            && let Usable::No(why) = group.calibration.seen()
        {
            note = Some(why);
        }
        let layers = group.targets.iter().map(|target| {
            let most = target.weight.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            let step = if most > 0.0 { most / 127.0 } else { 1.0 };
            let rounded = target.weight.mapv(|w| (w / step).round() * step);
            let node = Dense::from_f32(rounded.view(), DType::F32)?;
            Ok(Compressed::new(node).with_fallback(note.clone()))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}

#[test]
fn what_could_not_be_done_is_said() {
    let (weight, x) = (random(OUT, IN, 4), random(200, IN, 5));
    let usual = Calibration::from_samples(x.clone(), Par::Seq);
    let says = |method: &dyn DynCompress, weight: &Array2<f32>, x: &Calibration, why: &[&str]| {
        let layer = run(method, weight, x, DType::F32).unwrap();
        let note =
            layer.fallback.unwrap_or_else(|| panic!("{} says nothing of {why:?}", method.id()));
        assert!(why.iter().all(|why| note.contains(why)), "{note}");
    };
    let rank = Rank::Number(RANK);
    // Statistics beyond f32.
    let mut wide = x.clone();
    wide.column_mut(4).mapv_inplace(|v| v * 1e25);
    let wide = Calibration::from_samples(wide, Par::Seq);
    let instead = "factored by the error of the weights instead";
    let beyond = ["channel 4 is too large", instead];
    says(&svd_llm(rank), &weight, &wide, &beyond);
    says(&lord(rank), &weight, &wide, &beyond);
    says(&eora(RANK), &weight, &wide, &beyond);
    says(&feature_mimicking(rank), &weight, &wide, &beyond);
    assert!(run(&asvd(rank, 0.5), &weight, &wide, DType::F32).unwrap().fallback.is_none());
    // Factors beyond their type, and beyond f32.
    let mut large = weight.clone();
    large[[0, 0]] = 1e25;
    let half = svd(rank).with_factors(Factors::Float(DType::F16));
    says(&half, &large, &usual, &["factors beyond F16: stored in F32 instead"]);
    let most = weight.mapv(|w| f32::MAX.copysign(w));
    let ours = decode(&*run(&svd(rank), &most, &usual, DType::F32).unwrap().node).unwrap();
    assert!(ours.iter().all(|v| v.is_finite()));
    // What the method inside the parentheses says.
    let by = svd_llm(rank).with_factors(Factors::By(Arc::new(Rounded(Needs::GRAM))));
    let none = Calibration::from_gram(Array2::zeros((IN, IN)), 0).unwrap();
    says(&by, &weight, &none, &[instead, "right factor: saw no calibration token"]);
    // A metric that gives no numbers.
    for bad in [f32::NAN, f32::INFINITY] {
        let broken = LowRank::new(Broken(bad), rank);
        says(&broken, &weight, &usual, &["entry [0, 0]", instead]);
        let ours = decode(&*run(&broken, &weight, &usual, DType::F32).unwrap().node).unwrap();
        let plain = decode(&*run(&svd(rank), &weight, &usual, DType::F32).unwrap().node).unwrap();
        assert_eq!(ours, plain);
    }
}

/// A metric whose root is no number.
#[derive(Debug, Clone)]
struct Broken(f32);

impl Metric for Broken {
    fn id(&self) -> &'static str {
        "broken"
    }
    fn needs(&self) -> Needs {
        Needs::NONE
    }
    fn weighing(&self, _: &Calibration, _: Par) -> Result<Usable<metric::Weighing>> {
        let root = Root::Diagonal(vec![self.0; IN]);
        Ok(Usable::Yes(metric::Weighing::new(root)))
    }
}

#[test]
fn weights_that_are_no_numbers_stay_errors() {
    let usual = Calibration::from_samples(random(200, IN, 6), Par::Seq);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weight = random(OUT, IN, 7);
        weight[[2, 3]] = bad;
        for (_, method) in methods(&Factors::Source) {
            let error = run(&*method, &weight, &usual, DType::F32).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Numerical, "{}", method.id());
            assert!(error.message().contains("weight [2, 3]"), "{error}");
        }
    }
}

#[test]
fn large_matrices_go_by_random_directions() {
    for value in [0.0, 1e25, 1e38] {
        let mut weight = Array2::<f32>::zeros((512, 520));
        weight.diag_mut().iter_mut().take(9).for_each(|w| *w = value);
        weight[[300, 300]] = value * 2.0;
        let made = svd(Rank::Number(4)).compress(weight.view(), &Calibration::none(520)).unwrap();
        let ours = decode(&made.node).unwrap();
        assert!(ours.iter().all(|v| v.is_finite()), "{value}: {:?}", made.fallback);
        assert!((ours[[300, 300]] - 2.0 * value).abs() <= 1e-4 * value, "{}", ours[[300, 300]]);
    }
}

/// ASVD as it is written down, in f64: scale, truncate, divide.
#[test]
fn asvd_is_the_slow_sum_by_both_activities() {
    let mut x = random(100, IN, 8);
    for (c, mut column) in x.columns_mut().into_iter().enumerate() {
        column.mapv_inplace(|v| v * (1.0 + c as f32));
        column[c] *= 30.0; // so that mean and maximum differ
    }
    let (weight, calibration) =
        (random(OUT, IN, 9), Calibration::from_samples(x.clone(), Par::Seq));
    let mut products = Vec::new();
    for activity in [Activity::AbsMean, Activity::AbsMax] {
        for alpha in [0.5f32, 1.0] {
            let scale: Vec<f64> = (0..IN)
                .map(|c| {
                    let column = x.column(c).mapv(|v| f64::from(v.abs()));
                    let active = match activity {
                        Activity::AbsMax => column.iter().fold(0.0f64, |most, v| most.max(*v)),
                        _ => column.sum() / column.len() as f64,
                    };
                    active.powf(f64::from(alpha)) + 1e-6
                })
                .collect();
            let scaled =
                Array2::from_shape_fn((OUT, IN), |(r, c)| f64::from(weight[[r, c]]) * scale[c]);
            let mut slow = linalg::svd_truncated(scaled.view(), RANK).unwrap().reconstruct();
            for (c, mut column) in slow.columns_mut().into_iter().enumerate() {
                column.mapv_inplace(|v| v / scale[c]);
            }
            let metric = InputScale { alpha, activity };
            let method = LowRank::new(metric, Rank::Number(RANK)).with_always(true);
            let ours = decode(&method.compress(weight.view(), &calibration).unwrap().node).unwrap();
            for (ours, slow) in ours.iter().zip(&slow) {
                assert!((f64::from(*ours) - slow).abs() < 1e-5, "{metric:?}: {ours} for {slow}");
            }
            products.push(ours);
        }
    }
    assert!(products[0] != products[2] && products[1] != products[3]);
    assert_eq!(asvd(Rank::Number(1), 0.5).metric, InputScale::default());
}
