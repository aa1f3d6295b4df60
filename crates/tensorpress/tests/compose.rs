//! Methods made of methods: what a residual corrects, what a joint sweep returns, and what cannot be composed.

use tensorpress::lowrank::feature_mimicking;
use tensorpress::prelude::*;
use tensorpress::prune::JointSparseGpt;
use tensorpress::quant::Granularity;
use tensorpress::tensor::linalg::{Par, SplitMix};
use tensorpress::tensor::ndarray::{Array2, ArrayView2};
use tensorpress::tensor::node::decode;
use tensorpress::tensor::stats::{Calibration, Gram, Moments};
use tensorpress::tensor::testing::laws::{check_damage, check_node};
use tensorpress::tensor::{Compressed, Fold, Storage};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

/// Correlated inputs, some channels far more active than others.
fn inputs(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
    let mut x = random(tokens, channels, seed).dot(&random(channels, channels, seed + 1));
    for (c, mut column) in x.columns_mut().into_iter().enumerate() {
        column.mapv_inplace(|v| v * if c % 7 == 0 { 5.0 } else { 1.0 });
    }
    x
}

fn cost(x: ArrayView2<'_, f32>, difference: &Array2<f32>) -> f64 {
    x.dot(&difference.t()).iter().map(|v| f64::from(*v).powi(2)).sum()
}

fn layer<M: Compress>(method: &M, weight: &Array2<f32>, calibration: &Calibration) -> Compressed {
    method.compress(weight.view(), calibration).unwrap().boxed()
}

fn error<M: Compress>(method: &M, weight: &Array2<f32>, x: &Array2<f32>) -> f64 {
    let layer = layer(method, weight, &Calibration::from_samples(x.clone(), Par::Seq));
    cost(x.view(), &(weight - &decode(&*layer.node).unwrap()))
}

#[test]
fn one_line_prunes_rounds_corrects_and_codes() {
    let (weight, x) = (random(48, 64, 1), inputs(600, 64, 2));
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    let pruned = || wanda(Pattern::nm(2, 4)).then(Gptq::new(GridSpec::new(3, 32)));
    let corrected = || pruned().residual(eora(8));
    let coded = corrected().coded(TileCoder::Range);
    assert!(coded.needs().has::<Gram>() && coded.needs().has::<Moments>());
    assert!(error(&corrected(), &weight, &x) < 0.8 * error(&pruned(), &weight, &x));
    let (a, b) = (layer(&corrected(), &weight, &calibration), layer(&coded, &weight, &calibration));
    assert_eq!(decode(&*a.node).unwrap(), decode(&*b.node).unwrap());
    let bytes = |layer: &Compressed| Storage::of(&*layer.node).unwrap().bytes();
    assert!(bytes(&b) <= bytes(&a));
    // The recipe says the same.
    let line =
        "wanda(pattern=2:4) | gptq(bits=3, group=32) | residual(eora(rank=8)) | coded(range)";
    let recipe = Recipe::parse(line).unwrap().chain().unwrap().build().unwrap();
    let by_recipe = layer(&recipe, &weight, &calibration);
    let by_hand = wanda(Pattern::nm(2, 4)).then(Gptq::new(GridSpec::new(3, 32)).with_block(32));
    let by_hand = by_hand.residual(eora(8)).coded(TileCoder::Range);
    let by_hand = layer(&by_hand, &weight, &calibration);
    assert_eq!(decode(&*by_recipe.node).unwrap(), decode(&*by_hand.node).unwrap());
    assert_eq!(by_recipe.node.describe(), by_hand.node.describe());
    check_damage(&*b.node, &registry());
    check_node(b.node, &registry(), 1e-4);
}

#[test]
fn every_residual_makes_good() {
    let (weight, x) = (random(40, 48, 3), inputs(500, 48, 4));
    let plain = error(&Rtn::new(GridSpec::new(2, 16)), &weight, &x);
    for line in [
        "rtn(bits=2, group=16) | residual(eora(rank=4))",
        "rtn(bits=2, group=16) | residual(eora(rank=4, rtn(bits=8, group=0)))",
        "rtn(bits=2, group=16) | residual(svd_llm(rank=4))",
        "rtn(bits=2, group=16) | residual(svd(rank=4)) | residual(svd(rank=4))",
        "rtn(bits=2, group=16) | residual(rtn(bits=2, group=16))",
        "rtn(bits=2, group=16) | residual(gptq(bits=2, group=16))",
        "svd_llm(ratio=0.5) | residual(rtn(bits=2, group=16))",
        "svd_llm(ratio=0.5, gptq(bits=6, group=0)) | residual(eora(rank=4))",
    ] {
        let method = Recipe::parse(line).unwrap().chain().unwrap().build().unwrap();
        let corrected = error(&method, &weight, &x);
        assert!(corrected < 0.75 * plain, "{line}: {corrected} against {plain}");
        let node = layer(&method, &weight, &Calibration::from_samples(x.clone(), Par::Seq)).node;
        check_node(node, &registry(), 1e-4);
    }
}

/// A correction behind folded scales sees the input that the layer will see.
#[test]
fn corrections_follow_folded_scales() {
    let (weight, x) = (random(32, 42, 5), inputs(500, 42, 6));
    let norm = random(1, 42, 7).mapv(|v| v + 1.0).into_raw_vec_and_offset().0;
    let run = |line: &str| {
        let method = Recipe::parse(line).unwrap().chain().unwrap().build().unwrap();
        let group = Group {
            fold: Some(Fold { values: &norm, dtype: DType::F32 }),
            ..Group::single(
                Target::new("w", weight.view()),
                Calibration::from_samples(x.clone(), Par::Seq),
            )
        };
        let mut result = method.compress_group(group).unwrap();
        let folded = result.folded.expect("awq folds");
        let mut decoded = decode(&*result.layers.remove(0).node).unwrap();
        for mut row in decoded.rows_mut() {
            row.iter_mut().zip(folded.iter().zip(&norm)).for_each(|(w, (n, o))| *w *= n / o);
        }
        cost(x.view(), &(&weight - &decoded))
    };
    let plain = run("awq | rtn(bits=2, group=14)");
    let corrected = run("awq | rtn(bits=2, group=14) | residual(eora(rank=8))");
    let full = run("awq | rtn(bits=2, group=14) | residual(eora(rank=32))");
    assert!(corrected < 0.5 * plain, "{corrected} against {plain}");
    assert!(full < 1e-6 * plain, "a full rank leaves nothing: {full} against {plain}");
}

#[test]
fn what_is_exact_is_not_corrected_and_a_bias_is_not_corrected_twice() {
    // A grid of 4 bits holds these exactly.
    let exact = Array2::from_shape_fn((6, 16), |(r, c)| ((r * 5 + c * 3) % 16) as f32 - 8.0);
    let blind = Calibration::from_samples(random(99, 16, 8), Par::Seq);
    let method = Rtn::new(GridSpec::new(4, 0)).residual(eora(2));
    let layer = layer(&method, &exact, &blind);
    assert!(layer.fallback.as_ref().is_some_and(|f| f.contains("nothing left over")));
    assert_eq!(decode(&*layer.node).unwrap(), exact);
    assert!(layer.node.describe()["terms"].is_null());
    let twice = feature_mimicking(Rank::Number(2)).residual(eora(2));
    let error = twice.compress(random(12, 16, 9).view(), &blind).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("bias"), "{error}");
}

#[test]
fn the_joint_sweep_beats_rounding_after_pruning() {
    let (weight, x) = (random(40, 64, 10), inputs(600, 64, 11));
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    let grid = GridSpec::new(2, 32);
    let prune = SparseGpt::new(Pattern::nm(2, 4)).with_block(32);
    let joint = JointSparseGpt::new(prune, grid);
    let apart = prune.then(Rtn::new(grid));
    let [joint_error, apart] = [error(&joint, &weight, &x), error(&apart, &weight, &x)];
    assert!(joint_error < 0.95 * apart, "{joint_error} against {apart}");
    let layer = layer(&joint, &weight, &calibration);
    let decoded = decode(&*layer.node).unwrap();
    for group in decoded.as_slice().unwrap().chunks(4) {
        assert!(group.iter().filter(|w| **w != 0.0).count() <= 2, "{group:?}");
    }
    check_node(layer.node, &registry(), 1e-4);
    // Odd shapes, unstructured and block supports, symmetric grids, dead inputs.
    let mut dead = inputs(300, 21, 12);
    dead.column_mut(4).fill(0.0);
    let calibration = Calibration::from_samples(dead, Par::Seq);
    for pattern in [
        Pattern::unstructured(0.5),
        Pattern::unstructured(0.0),
        Pattern::unstructured(1.0),
        Pattern::Block { rows: 4, cols: 3, sparsity: 0.5 },
        Pattern::nm(3, 7),
    ] {
        for grid in [grid, GridSpec::new(4, 0).with_symmetric(true), GridSpec::new(8, 5)] {
            let joint = JointSparseGpt::new(SparseGpt::new(pattern), grid);
            for rows in [1, 17] {
                let node = joint.compress(random(rows, 21, 13).view(), &calibration).unwrap().node;
                check_node(node, &registry(), 1e-4);
            }
        }
    }
}

#[test]
fn a_joint_sweep_without_statistics_prunes_by_magnitude_and_rounds() {
    let weight = random(8, 16, 14);
    let (grid, pattern) = (GridSpec::new(4, 8), Pattern::nm(2, 4));
    let joint = JointSparseGpt::new(SparseGpt::new(pattern), grid);
    let nothing = Calibration::from_samples(Array2::zeros((0, 16)), Par::Seq);
    let result = joint.compress(weight.view(), &nothing).unwrap();
    assert!(result.fallback.is_some_and(|f| f.contains("magnitude")));
    let plain = magnitude(pattern).then(Rtn::new(grid));
    let plain = plain.compress(weight.view(), &nothing).unwrap();
    assert_eq!(decode(&*result.node).unwrap(), decode(&*plain.node).unwrap());
    let whole = joint_with(grid.with_granularity(Granularity::Tensor));
    let seen = Calibration::from_samples(random(50, 16, 15), Par::Seq);
    assert_eq!(whole.compress(weight.view(), &seen).unwrap_err().kind(), ErrorKind::Unsupported);
    let mut broken = weight;
    broken[[1, 1]] = f32::NAN;
    let error = joint_with(grid).compress(broken.view(), &seen).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
}

fn joint_with(grid: GridSpec) -> JointSparseGpt {
    JointSparseGpt::new(SparseGpt::new(Pattern::nm(2, 4)), grid)
}
