//! Pruning in depth: scores against direct formulas, choices against every subset.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tensorpress_prune::DropBlocks;
use tensorpress_prune::depth::{
    BlockScore, OutputDistance, laptop, least_loss, logit_change, removal_losses, remove_greedily,
    reverse_order,
};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array1, Array2, array};
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, BlockView, HeadLayout, Judgement, Level, LinearSpec, ModelLayout,
    Outputs, Role,
};
use tensorpress_tensor::{DType, Error, ErrorKind, Method, RawTensor, Rewrite};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| gaussian(seed, (i * cols + j) as u64) as f32)
}

fn stored(matrix: &Array2<f32>) -> RawTensor {
    let mut bytes = Vec::new();
    DType::F32.write_f32(matrix.as_slice().unwrap(), &mut bytes).unwrap();
    RawTensor::new(DType::F32, matrix.shape().to_vec(), bytes.into()).unwrap()
}

/// Blocks of one matrix with so many rows each, and a head.
fn model(rows: &[usize]) -> ModelLayout {
    let block = |(block, rows): (usize, &usize)| {
        let name = format!("layers.{block}.down.weight");
        let linears = vec![LinearSpec::new(Role::Down, name, [*rows, 4])];
        BlockLayout::new(block, format!("layers.{block}."), BlockShape::new(2, 1, 4), linears)
    };
    let blocks = rows.iter().enumerate().map(block).collect();
    ModelLayout::new("Llama", 6, 3, blocks).with_head(Some(HeadLayout::new("head", [9, 6])))
}

fn offers(weights: &[u64], losses: &[f64]) -> Vec<Judgement> {
    let offer = |(weights, loss): (&u64, &f64)| {
        let kept = Level { cost: *weights as f64, error: 0.0 };
        Judgement::new().with_levels(vec![kept, Level { cost: 0.0, error: *loss }])
    };
    weights.iter().zip(losses).map(offer).collect()
}

fn gone(rewrite: DropBlocks, rows: &[usize], losses: &[f64]) -> Vec<usize> {
    let weights: Vec<u64> = rows.iter().map(|rows| 4 * *rows as u64).collect();
    let decisions = rewrite.settle(&model(rows), &offers(&weights, losses)).unwrap();
    (0..rows.len()).filter(|block| decisions[*block].dropped).collect()
}

/// The change of logits token by token, all logits made.
fn direct_change(head: &Array2<f32>, reference: &Array2<f32>, changed: &Array2<f32>) -> f64 {
    let logits = |x: &Array2<f32>| x.mapv(f64::from).dot(&head.mapv(f64::from).t());
    let difference = logits(changed) - logits(reference);
    difference.mapv(|d| d * d).sum() / reference.nrows() as f64
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// Fails for a score that leaves the head out, or measures hidden states.
    #[test]
    fn what_logits_lose_is_the_direct_sum(
        tokens in 1usize..30, width in 1usize..9, vocab in 1usize..40, seed in any::<u64>(),
    ) {
        let (head, reference) = (matrix(vocab, width, seed), matrix(tokens, width, seed ^ 1));
        let changed = matrix(tokens, width, seed ^ 2);
        let outputs = Outputs::new(reference.view(), changed.view());
        let found = logit_change(outputs, &stored(&head)).unwrap().unwrap();
        let want = direct_change(&head, &reference, &changed);
        prop_assert!((found - want).abs() <= 1e-9 * want.max(1e-9), "{} {}", found, want);
        let same = Outputs::new(reference.view(), reference.view());
        prop_assert_eq!(logit_change(same, &stored(&head)).unwrap(), Some(0.0));
    }

    /// Fails for any rule that goes through the losses one by one: by loss, or by loss a weight.
    #[test]
    fn the_knapsack_finds_the_best_of_all_subsets(
        units in prop::collection::vec((0u64..40, prop::option::weighted(0.9, 0u32..50)), 1..10),
        share in 0.0f64..=1.0,
    ) {
        let weights: Vec<u64> = units.iter().map(|(weight, _)| *weight).collect();
        let losses: Vec<f64> =
            units.iter().map(|(_, loss)| loss.map_or(f64::INFINITY, f64::from)).collect();
        let stays = least_loss(&weights, &losses, share).unwrap();
        let total: u64 = weights.iter().sum();
        let cost = |gone: &dyn Fn(usize) -> bool| {
            let weight: u64 = (0..units.len()).filter(|u| gone(*u)).map(|u| weights[u]).sum();
            let sum = |finite: bool| (0..units.len())
                .filter(|u| gone(*u) && losses[*u].is_finite() == finite)
                .map(|u| if finite { losses[u] } else { 1.0 })
                .sum::<f64>();
            (weight as f64 >= total as f64 * share * (1.0 - 1e-9)).then(|| (sum(false), sum(true)))
        };
        let best = (0..1usize << units.len()).filter_map(|set| cost(&|u| set >> u & 1 == 1));
        let best = best.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))).unwrap();
        prop_assert_eq!(cost(&|u| !stays[u]), Some(best), "{:?}", stays);
        // None goes that could stay.
        for unit in (0..units.len()).filter(|u| !stays[*u]) {
            prop_assert!(cost(&|u| !stays[u] && u != unit).is_none(), "{} of {:?}", unit, stays);
        }
    }

}

#[test]
fn the_last_blocks_go_in_reverse_order() {
    let (model, nothing) = (model(&[6, 6, 6, 6]), BTreeMap::<String, RawTensor>::new());
    let rewrite = reverse_order(2);
    let score = |block: usize| {
        let judged = rewrite.judge(&model, &BlockView::new(&model.blocks[block], &nothing));
        judged.unwrap().levels()[1].error
    };
    let scores: Vec<f64> = (0..4).map(score).collect();
    assert_eq!(scores, [3.0, 2.0, 1.0, 0.0]);
    assert_eq!(gone(rewrite, &[6; 4], &scores), [2, 3]);
    assert!(!rewrite.needs_states() && !rewrite.needs_outputs() && rewrite.needs().is_none());
    // By a share: as many as it takes, and never one from among the others, however well it would fit.
    let by_share = rewrite.with_share(Some(0.3));
    assert_eq!(gone(by_share, &[6, 3, 2, 4], &scores), [2, 3]);
    assert_eq!(gone(by_share.with_share(Some(0.26)), &[6, 3, 2, 4], &scores), [3]);
}

#[test]
fn a_share_goes_at_the_least_sum_and_not_the_lowest_first() {
    // The lowest first would take blocks 1 and 0; blocks 2 and 3 are as much, and lose less together.
    let (rows, losses) = ([5, 1, 2, 4], [3.0, 0.5, 1.0, 1.4]);
    assert_eq!(gone(laptop(0.5), &rows, &losses), [2, 3]);
    assert_eq!(gone(laptop(0.5).with_share(None).with_count(2), &rows, &losses), [1, 2]);
    assert_eq!(gone(laptop(0.01), &rows, &[0.0; 4]).len(), 1);
    assert!(laptop(0.5).needs_outputs() && !laptop(0.5).needs_states());
}

#[test]
fn scores_of_weights_and_gradients() {
    let model = model(&[3, 5]);
    let weights = [matrix(3, 4, 1), matrix(5, 4, 2)];
    let names = ["layers.0.down.weight", "layers.1.down.weight"].map(str::to_owned);
    let mut tensors: BTreeMap<String, RawTensor> =
        names.iter().cloned().zip(weights.iter().map(stored)).collect();
    let rewrite = DropBlocks::default().with_score(BlockScore::Magnitude);
    let judged = |rewrite: DropBlocks, tensors: &BTreeMap<String, RawTensor>, block: usize| {
        rewrite.judge(&model, &BlockView::new(&model.blocks[block], tensors)).unwrap()
    };
    for (block, weight) in weights.iter().enumerate() {
        let want: f64 = weight.iter().map(|w| f64::from(w.abs())).sum();
        let found = judged(rewrite, &tensors, block).levels()[1].error;
        assert!((found - want).abs() < 1e-9);
    }
    // Without gradients: kept as long as there are others, and said.
    let rewrite = DropBlocks::default().with_score(BlockScore::Taylor);
    let found = judged(rewrite, &tensors, 0);
    assert_eq!(found.levels()[1].error, f64::INFINITY);
    assert!(found.notes()[&names[0]].contains("no gradient"), "{:?}", found.notes());
    assert!(!rewrite.needs().of_caller().is_empty() && !rewrite.inputs().is_empty());
    tensors.insert(names[1].clone(), stored(&Array2::from_elem((5, 4), f32::NAN)));
    let found = judged(DropBlocks::default().with_score(BlockScore::Magnitude), &tensors, 1);
    assert_eq!(found.levels()[1].error, f64::INFINITY);
    assert!(found.notes()[&names[1]].contains("not finite"));
}

#[test]
fn the_output_s_score_reads_the_head_and_leaves_tokens_out_that_overflow() {
    let model = model(&[6, 6]);
    let head = matrix(9, 6, 3);
    let tensors = BTreeMap::from([("head".to_owned(), stored(&head))]);
    let (reference, mut changed) = (matrix(5, 6, 4), matrix(5, 6, 5));
    let judge = |changed: &Array2<f32>| {
        let outputs = Outputs::new(reference.view(), changed.view());
        let view = BlockView::new(&model.blocks[0], &tensors).with_outputs(outputs);
        laptop(0.5).judge(&model, &view).unwrap()
    };
    let want = direct_change(&head, &reference, &changed);
    assert!((judge(&changed).levels()[1].error - want).abs() < 1e-9 * want);
    changed.row_mut(2).fill(f32::NAN);
    let four = |x: &Array2<f32>| x.select(tensorpress_tensor::ndarray::Axis(0), &[0, 1, 3, 4]);
    let want = direct_change(&head, &four(&reference), &four(&changed));
    assert!((judge(&changed).levels()[1].error - want).abs() < 1e-9 * want);
    changed.fill(f32::INFINITY);
    let judged = judge(&changed);
    assert_eq!(judged.levels()[1].error, f64::INFINITY);
    assert!(judged.notes()["layers.0.down.weight"].contains("no token with finite outputs"));
}

#[test]
fn shares_and_heads_that_are_impossible_are_refused() {
    let refused = |rewrite: DropBlocks, model: &ModelLayout, part: &str| {
        let error = rewrite.fits(model).unwrap_err();
        assert!(error.message().contains(part), "{error}");
    };
    for share in [0.0, 1.0, -0.1, f64::NAN] {
        refused(laptop(share), &model(&[6, 6]), "allowed are above 0 and below 1");
    }
    refused(laptop(0.9), &model(&[6, 6]), "share = 0.9: allowed are up to 0.500");
    assert!(laptop(0.7).fits(&model(&[2, 6])).is_ok());
    // In reverse order the first block is what stays.
    refused(laptop(0.8).with_score(BlockScore::Last), &model(&[2, 1]), "up to 0.333");
    refused(laptop(0.5), &model(&[6]), "nothing can go from a model of 1 block");
    refused(laptop(0.5), &model(&[6, 6]).with_head(None), "Llama makes no logits to judge by");
    assert!(reverse_order(1).fits(&model(&[6, 6]).with_head(None)).is_ok());
    for (share, losses, kind) in [
        (1.5, [1.0, 1.0], ErrorKind::InvalidArgument),
        (0.5, [1.0, -1.0], ErrorKind::InvalidArgument),
        (0.5, [1.0, f64::NAN], ErrorKind::Numerical),
    ] {
        assert_eq!(least_loss(&[1, 1], &losses, share).unwrap_err().kind(), kind);
    }
    assert_eq!(least_loss(&[1], &[], 0.5).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    assert_eq!(least_loss(&[], &[], 0.5).unwrap(), Vec::<bool>::new());
}

/// A network of units that add to two outputs of each of five samples.
fn parts(units: usize, seed: u64) -> Vec<Array2<f32>> {
    (0..units as u64).map(|unit| matrix(5, 2, seed + unit)).collect()
}

fn network(
    parts: &[Array2<f32>],
) -> impl FnMut(&[bool]) -> tensorpress_tensor::Result<Array2<f32>> {
    |kept: &[bool]| {
        let stay = parts.iter().zip(kept).filter(|(_, kept)| **kept);
        Ok(stay.fold(Array2::zeros((5, 2)), |sum, (part, _)| sum + part))
    }
}

/// By the formulas of the papers, value by value.
fn direct_distance(a: &Array2<f32>, b: &Array2<f32>, moments: bool) -> f64 {
    if !moments {
        let squares = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        return squares.sum::<f64>() / a.nrows() as f64;
    }
    let of = |y: &Array2<f32>, value: usize| {
        let all: Vec<f64> = y.column(value).iter().map(|v| f64::from(*v)).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64;
        (mean, variance.sqrt())
    };
    let pairs: Vec<_> = (0..a.ncols()).map(|value| (of(a, value), of(b, value))).collect();
    let norm = |part: fn(&(f64, f64)) -> f64| {
        pairs.iter().map(|(a, b)| (part(a) - part(b)).powi(2)).sum::<f64>().sqrt()
    };
    norm(|(mean, _)| *mean) + norm(|(_, spread)| *spread)
}

/// Fails if either half of LD-Pruner's score is left out, or samples are compared one by one.
#[test]
fn what_outputs_lose_without_a_unit() {
    let parts = parts(4, 11);
    let mut run = network(&parts);
    let whole = run(&[true; 4]).unwrap();
    for (distance, moments) in [(OutputDistance::Squared, false), (OutputDistance::Moments, true)] {
        let kept = [true, true, false, true];
        let losses = removal_losses(&kept, whole.view(), distance, &mut run).unwrap();
        for unit in 0..4 {
            let mut without = kept;
            without[unit] = false;
            let want = direct_distance(&whole, &run(&without).unwrap(), moments);
            let want = if kept[unit] { want } else { f64::INFINITY };
            assert!(losses[unit] == want || (losses[unit] - want).abs() < 1e-9 * want);
        }
    }
    // The same latents in another order: nothing for the moments.
    let turned = whole.select(tensorpress_tensor::ndarray::Axis(0), &[3, 0, 4, 1, 2]);
    let between = |d: OutputDistance| d.between(whole.view(), turned.view()).unwrap();
    assert!(between(OutputDistance::Moments) < 1e-6 && between(OutputDistance::Squared) > 0.1);
    // The same mean, twice the spread; the same spread, another mean.
    let mean = Array1::from_iter(whole.columns().into_iter().map(|c| c.sum() / 5.0));
    let wide = (&whole - &mean) * 2.0 + &mean;
    let spread = direct_distance(&whole, &wide, true);
    let found = OutputDistance::Moments.between(whole.view(), wide.view()).unwrap();
    assert!(found > 0.1 && (found - spread).abs() < 1e-5);
    let moved = OutputDistance::Moments.between(whole.view(), (&whole + 3.0).view()).unwrap();
    assert!((moved - 18f64.sqrt()).abs() < 1e-5);
    let alone = array![[1.0f32, 2.0]];
    let one = OutputDistance::Moments.between(alone.view(), (&alone + 1.0).view()).unwrap();
    assert!((one - 2f64.sqrt()).abs() < 1e-6);
}

#[test]
fn units_go_greedily_beside_what_has_gone() {
    // Units 0 and 1 cancel. Without 3 it is good to lose 0, which alone is as bad as to lose 1.
    let part = |value: f32| Array2::from_elem((5, 2), value);
    let parts = [part(-4.0), part(4.0), part(1.0), part(3.5), part(-1.0)];
    let run = |number: usize, each: usize, distance| {
        remove_greedily(5, number, each, distance, &mut network(&parts)).unwrap()
    };
    for distance in [OutputDistance::Squared, OutputDistance::Moments] {
        assert_eq!(run(0, 1, distance), [true; 5]);
        // Of the equal ones, 2 and 4, the later.
        assert_eq!(run(1, 1, distance), [true, true, true, true, false]);
        assert_eq!(run(3, 3, distance), [true, true, false, false, false]);
        assert_eq!(run(3, 1, distance), [true, true, false, false, false]);
        // Measured again, 0 goes; all at once, of equal ones the later.
        assert_eq!(run(4, 1, distance), [false, true, false, false, false]);
        assert_eq!(run(4, 4, distance), [true, false, false, false, false]);
        assert_eq!(run(5, 2, distance), [false; 5]);
    }
    for (number, each) in [(6, 1), (1, 0)] {
        let mut run = network(&parts);
        let error = remove_greedily(5, number, each, OutputDistance::Squared, &mut run);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn outputs_that_say_nothing_are_errors() {
    let of = |a: &Array2<f32>, b: &Array2<f32>| {
        OutputDistance::Moments.between(a.view(), b.view()).unwrap_err()
    };
    let (two, three) = (Array2::zeros((2, 3)), Array2::zeros((3, 3)));
    assert_eq!(of(&two, &three).kind(), ErrorKind::ShapeMismatch);
    let none = Array2::zeros((0, 3));
    assert_eq!(of(&none, &none).kind(), ErrorKind::InsufficientData);
    let mut bad = two.clone();
    bad[[1, 2]] = f32::NAN;
    let error = of(&two, &bad);
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.message().contains("output 2 of sample 1"), "{error}");
    let mut fails = |kept: &[bool]| match kept.iter().all(|kept| *kept) {
        true => Ok(Array2::zeros((2, 3))),
        false => Err(Error::unsupported("no identity here")),
    };
    let error = remove_greedily(2, 1, 1, OutputDistance::Squared, &mut fails).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
