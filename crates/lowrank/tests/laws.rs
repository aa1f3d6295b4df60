//! The laws of nodes on what factorisations return, their optimality, and bad input.

mod common;

use std::sync::Arc;

use common::{energy, inputs, random};
use proptest::prelude::*;
use tensorpress_lowrank::{
    Factors, InputCovariance, LowRank, Rank, Root, Solver, asvd, dobi_svd, eora, feature_mimicking,
    lord, project, saes_svd, svd, svd_llm,
};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Dense, decode};
use tensorpress_tensor::stats::{Calibration, CrossGram, Gram, Moments, Needs};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DType, DynCompress, ErrorKind, Group, Method, Node,
    Registry, Result, Storage, Target,
};

/// ‖X Dᵀ‖².
fn cost(x: ArrayView2<'_, f32>, difference: &Array2<f32>) -> f64 {
    energy(&x.mapv(f64::from).dot(&difference.mapv(f64::from).t()))
}

fn methods(rank: Rank) -> [Box<dyn DynCompress>; 6] {
    let source = Factors::default();
    [
        Box::new(svd(rank)),
        Box::new(asvd(rank, 0.5)),
        Box::new(svd_llm(rank)),
        Box::new(lord(rank)),
        Box::new(saes_svd(rank)),
        Box::new(dobi_svd(rank).with_factors(source)),
    ]
}

/// Statistics of inputs, among them those of others that they drifted from.
fn observed(x: Array2<f32>) -> Calibration {
    let original = x.mapv(|v| 1.1 * v + 0.05 * v.abs());
    let cross = x.t().dot(&original);
    Calibration::from_samples(x, Par::Seq).with::<CrossGram>(cross)
}

fn run(method: &dyn DynCompress, weight: ArrayView2<'_, f32>, c: &Calibration) -> Compressed {
    run_as(method, weight, c, DType::F32).unwrap()
}

fn run_as(
    method: &dyn DynCompress,
    weight: ArrayView2<'_, f32>,
    calibration: &Calibration,
    dtype: DType,
) -> Result<Compressed> {
    let target = Target::new("w", weight).with_dtype(dtype);
    let mut result = method.compress_group_dyn(Group::single(target, calibration.clone()))?;
    Ok(result.layers.remove(0))
}

#[test]
fn every_method_obeys_the_laws() {
    for (rows, cols) in [(1, 1), (1, 8), (9, 1), (7, 24), (40, 33)] {
        let calibration = observed(inputs(300, cols, 1));
        let weight = random(rows, cols, 2);
        for rank in [Rank::Number(1), Rank::Number(99), Rank::Ratio(0.3), Rank::Energy(0.9)] {
            for method in methods(rank) {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let layer = run_as(&*method, weight.view(), &calibration, dtype).unwrap();
                    check_node(layer.node, &Registry::default(), 1e-4);
                }
            }
        }
    }
    let node = svd(Rank::Number(2)).compress(random(9, 12, 3).view(), &Calibration::none(12));
    check_damage(&node.unwrap().node, &Registry::default());
}

/// Alternating least squares from a random start: U and V in turn are the best for the other.
fn alternate(weight: &Array2<f64>, gram: &Array2<f64>, rank: usize, seed: u64) -> f64 {
    let inverse_times = |a: Array2<f64>, b: Array2<f64>| {
        linalg::least_squares(a.view(), b.view(), None, Par::Seq).unwrap().solution
    };
    let mut v = random(rank, weight.ncols(), seed).mapv(f64::from);
    let mut u = Array2::zeros((weight.nrows(), rank));
    for _ in 0..200 {
        // U (V H Vᵀ) = W H Vᵀ, then (Uᵀ U) V = Uᵀ W.
        let seen = gram.dot(&v.t());
        u = inverse_times(v.dot(&seen), weight.dot(&seen).reversed_axes()).reversed_axes();
        v = inverse_times(u.t().dot(&u), u.t().dot(weight));
    }
    let difference = weight - &u.dot(&v);
    (&difference.dot(gram) * &difference).sum()
}

#[test]
fn no_alternating_least_squares_beats_the_whitened_factors() {
    for (rows, cols, rank, seed) in [(12, 20, 3, 1), (20, 12, 5, 2), (16, 16, 8, 3), (24, 9, 2, 4)]
    {
        let x = inputs(400, cols, seed);
        let weight = random(rows, cols, seed + 10);
        let calibration = observed(x.clone());
        let whitened = svd_llm(Rank::Number(rank)).with_always(true);
        let node = run(&whitened, weight.view(), &calibration).node;
        let ours = cost(x.view(), &(&weight - &decode(&*node).unwrap()));
        let gram = x.mapv(f64::from).t().dot(&x.mapv(f64::from));
        let starts =
            (0..8).map(|start| alternate(&weight.mapv(f64::from), &gram, rank, 100 + start));
        let best = starts.fold(f64::INFINITY, f64::min);
        assert!(ours <= best * (1.0 + 1e-4), "{rows} x {cols}, rank {rank}: {ours} against {best}");
        // The alternation is no straw man.
        assert!(best <= ours * 1.01, "{rows} x {cols}, rank {rank}: {best} against {ours}");
    }
}

/// The crate's identity: projecting by left singular vectors is whitening, truncating and unwhitening.
#[test]
fn whitened_truncation_by_hand_gives_the_same_product() {
    let (x, weight, rank) = (inputs(500, 14, 5), random(10, 14, 6), 4);
    let gram = x.mapv(f64::from).t().dot(&x.mapv(f64::from));
    let lower = linalg::cholesky(gram, Par::Seq).unwrap();
    let seen = weight.mapv(f64::from).dot(&lower);
    let cut = linalg::svd_truncated(seen.view(), rank).unwrap().reconstruct();
    let inverse = linalg::invert_triangular(lower, linalg::Triangle::Lower, Par::Seq).unwrap();
    let expected = cut.dot(&inverse);
    let calibration = observed(x);
    let method = svd_llm(Rank::Number(rank)).with_always(true);
    let ours = decode(&*run(&method, weight.view(), &calibration).node).unwrap();
    for (ours, expected) in ours.iter().zip(&expected) {
        assert!((f64::from(*ours) - expected).abs() < 1e-4, "{ours} for {expected}");
    }
}

#[test]
fn centred_outputs_and_their_bias_lose_least() {
    let (x, weight) = (inputs(400, 16, 7), random(12, 16, 8));
    let calibration = observed(x.clone());
    let rank = Rank::Number(2);
    let error = |method: &dyn DynCompress| {
        let layer = run(method, weight.view(), &calibration);
        let mut y = x.dot(&(&weight - &decode(&*layer.node).unwrap()).t());
        if let Some(bias) = &layer.bias {
            y -= &tensorpress_tensor::ndarray::aview1(bias);
        }
        y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
    };
    let centred = error(&feature_mimicking(rank).with_always(true));
    let uncentred = error(&lord(rank).with_always(true));
    assert!(centred < 0.95 * uncentred, "{centred} against {uncentred}");
}

#[test]
fn each_metric_is_best_at_what_it_measures() {
    let (x, weight) = (inputs(400, 24, 9), random(20, 24, 10));
    let calibration = observed(x.clone());
    let [plain, scaled, whitened, ..] = methods(Rank::Number(5)).map(|method| {
        let ours = decode(&*run(&*method, weight.view(), &calibration).node).unwrap();
        let difference = &weight - &ours;
        (difference.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>(), cost(x.view(), &difference))
    });
    assert!(plain.0 < scaled.0 && plain.0 < whitened.0);
    assert!(whitened.1 < scaled.1 && scaled.1 < plain.1);
}

#[test]
fn ranks_follow_shape_spectrum_and_number() {
    let weight = random(30, 50, 11);
    let rank_of = |rank: Rank| {
        let node = run(&svd(rank).with_always(true), weight.view(), &Calibration::none(50)).node;
        node.describe()["left"]["shape"][1].as_u64().unwrap()
    };
    assert_eq!(rank_of(Rank::Ratio(0.2)), 15); // 30 * 50 * 0.8 / 80
    assert_eq!(rank_of(Rank::Ratio(0.999)), 1);
    assert_eq!(rank_of(Rank::Number(7)), 7);
    assert_eq!(rank_of(Rank::Number(1000)), 30);
    assert_eq!(rank_of(Rank::Energy(1.0)), 30);
    let values = linalg::svd(weight.view()).unwrap().s.mapv(|v| f64::from(v).powi(2));
    let r = rank_of(Rank::Energy(0.7)) as usize;
    let kept = |r: usize| values.iter().take(r).sum::<f64>() / values.sum();
    assert!(kept(r) >= 0.7 && kept(r - 1) < 0.7, "rank {r}");
}

#[test]
fn a_rank_that_saves_nothing_stays_dense_and_says_so() {
    let (weight, calibration) = (random(20, 30, 12), observed(inputs(90, 30, 13)));
    // 12 * (20 + 30) is not less than 20 * 30.
    for method in methods(Rank::Number(12)) {
        let layer = run(&*method, weight.view(), &calibration);
        assert!(
            layer.fallback.as_ref().is_some_and(|f| f.contains("kept dense")),
            "{}",
            method.id()
        );
        assert_eq!(decode(&*layer.node).unwrap(), weight);
        assert_eq!(Storage::of(&*layer.node).unwrap().bytes(), 20 * 30 * 4);
    }
    let layer = run(&svd(Rank::Number(11)), weight.view(), &calibration);
    assert!(layer.fallback.is_none());
    assert_eq!(Storage::of(&*layer.node).unwrap().bytes(), 11 * 50 * 4);
    // Factors in a narrower type than the matrix save more.
    let narrow = svd(Rank::Number(20)).with_factors(Factors::Float(DType::F16));
    assert!(run(&narrow, weight.view(), &calibration).fallback.is_none());
    // A correction is what it is.
    let layer = run(&eora(12), weight.view(), &calibration);
    assert_eq!(Storage::of(&*layer.node).unwrap().bytes(), 12 * 50 * 4);
    assert_eq!(eora(12).id(), "eora");
}

#[test]
fn statistics_that_cannot_be_used_are_no_failure() {
    let weight = random(16, 12, 14);
    let plain = decode(&*run(&svd(Rank::Number(3)), weight.view(), &Calibration::none(12)).node);
    let plain = plain.unwrap();
    let mut poisoned = random(40, 12, 15);
    poisoned[[3, 3]] = f32::NAN;
    let nothing = observed(Array2::zeros((0, 12)));
    let dead = observed(Array2::zeros((9, 12)));
    for calibration in [nothing, observed(poisoned), dead] {
        for method in &methods(Rank::Number(3))[2..] {
            let layer = run(&**method, weight.view(), &calibration);
            let note = layer.fallback.expect("says so");
            assert!(note.contains("error of the weights instead"), "{note}");
            assert_eq!(decode(&*layer.node).unwrap(), plain);
        }
    }
    // Fewer tokens than channels, equal channels, dead ones, one token; and a weight of rank 1, or 0.
    let mut x = random(5, 12, 16);
    x.column_mut(2).fill(0.0);
    let copy = x.column(4).to_owned();
    x.column_mut(5).assign(&copy);
    let few = observed(x);
    let one = observed(random(1, 12, 17));
    let rank_one = random(16, 1, 18).dot(&random(1, 12, 19));
    for weight in [weight, rank_one, Array2::zeros((16, 12)), random(16, 12, 20) * 1e-30] {
        for calibration in [&few, &one] {
            for method in methods(Rank::Number(4)) {
                let layer = run(&*method, weight.view(), calibration);
                let ours = decode(&*layer.node).unwrap();
                assert!(ours.iter().all(|v| v.is_finite()), "{}", method.id());
                assert!(layer.fallback.is_none(), "{}: {:?}", method.id(), layer.fallback);
            }
        }
    }
}

#[test]
fn a_correction_on_singular_inputs_still_is_optimal() {
    // 6 tokens for 20 channels: H has rank 6, so a correction of rank 6 leaves no error on the calibration.
    let (x, weight) = (random(6, 20, 21), random(14, 20, 22));
    let calibration = observed(x.clone());
    let ours = decode(&*run(&eora(6), weight.view(), &calibration).node).unwrap();
    let all = cost(x.view(), &weight);
    assert!(cost(x.view(), &(&weight - &ours)) < 1e-6 * all);
}

#[test]
fn bad_input_is_refused() {
    let (weight, blind) = (random(4, 6, 23), Calibration::none(6));
    for rank in [
        Rank::Number(0),
        Rank::Ratio(1.0),
        Rank::Ratio(-0.1),
        Rank::Ratio(f64::NAN),
        Rank::Energy(0.0),
        Rank::Energy(1.1),
        Rank::Energy(f64::NAN),
    ] {
        let error = svd(rank).compress(weight.view(), &blind).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{rank:?}");
        assert!(error.message().contains("allowed"), "{error}");
    }
    let kind = |method: &dyn DynCompress, weight: &Array2<f32>, calibration: &Calibration| {
        run_as(method, weight.view(), calibration, DType::F32).unwrap_err().kind()
    };
    assert_eq!(kind(&svd_llm(Rank::Number(1)), &weight, &blind), ErrorKind::MissingCalibration);
    assert_eq!(kind(&asvd(Rank::Number(1), 0.5), &weight, &blind), ErrorKind::MissingCalibration);
    let good = observed(random(30, 6, 24));
    let alpha = asvd(Rank::Number(1), f32::NAN);
    assert_eq!(kind(&alpha, &weight, &good), ErrorKind::InvalidArgument);
    let other = observed(random(30, 5, 24));
    for method in &methods(Rank::Number(1))[1..] {
        assert_eq!(kind(&**method, &weight, &other), ErrorKind::ShapeMismatch, "{}", method.id());
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut weight = weight.clone();
        weight[[2, 3]] = bad;
        for method in methods(Rank::Number(1)) {
            assert_eq!(kind(&*method, &weight, &good), ErrorKind::Numerical);
        }
    }
    // Nothing is not an error.
    for (rows, cols) in [(0, 6), (5, 0), (0, 0)] {
        let weight = Array2::zeros((rows, cols));
        let layer = run(&svd(Rank::Ratio(0.5)), weight.view(), &Calibration::none(cols));
        assert_eq!(layer.node.shape(), [rows, cols]);
    }
}

/// Rounds to multiples of 1/16, and remembers nothing.
#[derive(Debug)]
struct Coarse(Needs);

impl Method for Coarse {
    fn id(&self) -> &'static str {
        "coarse"
    }
    fn needs(&self) -> Needs {
        self.0.clone()
    }
}

impl Compress for Coarse {
    type Node = Dense;
    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Dense>> {
        let layers = group.targets.iter().map(|target| {
            if self.0.has::<Gram>() {
                assert_eq!(group.calibration.gram()?.nrows(), target.weight.ncols());
            }
            let rounded = target.weight.mapv(|w| (w * 16.0).round() / 16.0);
            Ok(Compressed::new(Dense::from_f32(rounded.view(), DType::F16)?))
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}

#[test]
fn factors_by_another_method_are_fitted_to_each_other() {
    let (x, weight) = (inputs(400, 24, 25), random(20, 24, 26));
    let calibration = observed(x.clone());
    let by = |needs| Factors::By(Arc::new(Coarse(needs)));
    let method = svd_llm(Rank::Number(6)).with_always(true);
    let exact = decode(&*run(&method, weight.view(), &calibration).node).unwrap();
    let least = cost(x.view(), &(&weight - &exact));
    for needs in [Needs::NONE, Needs::GRAM] {
        let method = LowRank::clone(&method).with_factors(by(needs));
        let node = run(&method, weight.view(), &calibration).node;
        let ours = cost(x.view(), &(&weight - &decode(&*node).unwrap()));
        // Without fitting U anew: round both factors where they are.
        let root =
            Root::Full(linalg::cholesky(calibration.gram().unwrap().clone(), Par::Seq).unwrap());
        let plain =
            project(weight.view(), &root, Rank::Number(6), Solver::Exact, 0, Par::Seq).unwrap();
        let round = |m: &Array2<f32>| m.mapv(|w| (w * 16.0).round() / 16.0);
        let apart = cost(x.view(), &(&weight - &round(&plain.left).dot(&round(&plain.right))));
        // What rounding adds to what the rank loses anyway.
        assert!(ours - least < 0.8 * (apart - least), "{ours}, {apart}, at best {least}");
        check_node(node, &Registry::default(), 1e-4);
    }
    assert!(svd(Rank::Number(1)).with_factors(by(Needs::GRAM)).needs().has::<Gram>());
    let covariance = LowRank::new(InputCovariance, Rank::Number(1));
    assert!(covariance.needs().has::<Gram>() && covariance.needs().has::<Moments>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_directions_come_close(rows in 40usize..90, cols in 40usize..90, rank in 1usize..12, seed in 0u64..99) {
        let mut weight = random(rows, cols, seed);
        // A spectrum that falls as those of weights do.
        for (r, mut row) in weight.rows_mut().into_iter().enumerate() {
            row.mapv_inplace(|v| v / (1.0 + r as f32).sqrt());
        }
        let error = |solver: Solver| {
            let method = svd(Rank::Number(rank)).with_solver(solver).with_always(true);
            let node = run(&method, weight.view(), &Calibration::none(cols)).node;
            let apart = &weight - &decode(&*node).unwrap();
            apart.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
        };
        let exact = error(Solver::Exact);
        let close = error(Solver::Randomized { power_iterations: 4 });
        prop_assert!(close <= exact * 1.01, "{} against {}", close, exact);
        prop_assert!(close >= exact * (1.0 - 1e-4), "better than the best: {} against {}", close, exact);
    }
}
