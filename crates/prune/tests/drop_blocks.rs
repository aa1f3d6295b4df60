//! Dropping blocks: influences against a slow reference, who goes, and what is refused.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tensorpress_prune::DropBlocks;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, BlockView, Judgement, Level, LinearSpec, ModelLayout, Role, States,
};
use tensorpress_tensor::{ErrorKind, Method, RawTensor, Rewrite};

fn model(blocks: usize) -> ModelLayout {
    let block = |block| {
        let name = format!("layers.{block}.down.weight");
        let linears = vec![LinearSpec::new(Role::Down, name, [6, 4])];
        BlockLayout::new(block, format!("layers.{block}."), BlockShape::new(2, 1, 4), linears)
    };
    ModelLayout::new("Llama", 6, 3, (0..blocks).map(block).collect())
}

fn states(tokens: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((tokens, 6), |(i, j)| gaussian(seed, (i * 6 + j) as u64) as f32)
}

fn judge(before: &Array2<f32>, after: &Array2<f32>) -> Judgement {
    let (model, nothing) = (model(3), BTreeMap::<String, RawTensor>::new());
    let lengths = [before.nrows()];
    let view = BlockView::new(&model.blocks[1], &nothing).with_states(States::new(
        before.view(),
        after.view(),
        &lengths,
    ));
    DropBlocks::default().judge(&model, &view).unwrap()
}

fn lost(judgement: &Judgement) -> f64 {
    judgement.levels()[1].error
}

/// The influence by the formula, token by token.
fn reference(before: &Array2<f32>, after: &Array2<f32>) -> f64 {
    let mut sum = 0.0;
    for (x, y) in before.rows().into_iter().zip(after.rows()) {
        let (x, y) = (x.mapv(f64::from), y.mapv(f64::from));
        sum += x.dot(&y) / (x.dot(&x).sqrt() * y.dot(&y).sqrt());
    }
    1.0 - sum / before.nrows() as f64
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn influences_are_those_of_the_formula(tokens in 1usize..40, seed in any::<u64>(), scale in 0.1f32..9.0) {
        let (before, after) = (states(tokens, seed), states(tokens, seed ^ 77));
        let judgement = judge(&before, &after);
        prop_assert!((lost(&judgement) - reference(&before, &after)).abs() < 1e-12);
        prop_assert!(judgement.notes().is_empty());
        let [kept, dropped] = [judgement.levels()[0], judgement.levels()[1]];
        prop_assert_eq!((kept.cost, kept.error, dropped.cost), (24.0, 0.0, 0.0));
        // A block that only scales turns nothing.
        prop_assert!(lost(&judge(&before, &(&before * scale))).abs() < 1e-6);
        prop_assert!((lost(&judge(&before, &(&before * -scale))) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_least_go_and_of_equals_the_last(
        influences in proptest::collection::vec(0u8..6, 2..9),
        count in 1usize..8,
    ) {
        let blocks = influences.len();
        let offer = |i: &u8| Judgement::new().with_levels(vec![
            Level { cost: 24.0, error: 0.0 },
            Level { cost: 0.0, error: f64::from(*i) },
        ]);
        let judgements: Vec<Judgement> = influences.iter().map(offer).collect();
        let settled = DropBlocks::default().with_count(count).settle(&model(blocks), &judgements);
        if count >= blocks {
            prop_assert_eq!(settled.unwrap_err().kind(), ErrorKind::InvalidArgument);
            return Ok(());
        }
        let settled = settled.unwrap();
        prop_assert_eq!(settled.iter().filter(|d| d.dropped).count(), count);
        for (a, first) in settled.iter().enumerate() {
            for (b, second) in settled.iter().enumerate().skip(a + 1) {
                // Who goes is never more influential than who stays; of equals the later goes.
                if first.dropped && !second.dropped {
                    prop_assert!(influences[a] < influences[b]);
                }
                if second.dropped && !first.dropped {
                    prop_assert!(influences[b] <= influences[a]);
                }
            }
        }
    }
}

#[test]
fn tokens_without_a_direction_are_left_out() {
    let (mut before, mut after) = (states(5, 1), states(5, 2));
    before.row_mut(1).fill(0.0);
    after.row_mut(3).fill(f32::NAN);
    let judgement = judge(&before, &after);
    let kept = [0, 2, 4].map(|i| (before.row(i).to_owned(), after.row(i).to_owned()));
    let rows = |part: fn(&(_, _)) -> &tensorpress_tensor::ndarray::Array1<f32>| {
        Array2::from_shape_fn((3, 6), |(i, j)| part(&kept[i])[j])
    };
    let want = reference(&rows(|pair| &pair.0), &rows(|pair| &pair.1));
    assert!((lost(&judgement) - want).abs() < 1e-12);
    // Nothing to judge by: kept as long as there are others, and said.
    before.fill(f32::NAN);
    let judgement = judge(&before, &after);
    assert_eq!(lost(&judgement), f64::INFINITY);
    assert!(judgement.notes()["layers.1.down.weight"].contains("no token"));
    let model = model(3);
    let view =
        DropBlocks::default().judge(&model, &BlockView::new(&model.blocks[0], &nothing())).unwrap();
    assert_eq!(lost(&view), f64::INFINITY);
}

fn nothing() -> BTreeMap<String, RawTensor> {
    BTreeMap::new()
}

#[test]
fn impossible_counts_are_refused() {
    for (count, blocks, part) in [
        (0, 5, "allowed are 1 to 4, for the model has 5 blocks"),
        (5, 5, "allowed are 1 to 4, for the model has 5 blocks"),
        (1, 1, "nothing can go from a model of 1 block"),
    ] {
        let error = DropBlocks::default().with_count(count).fits(&model(blocks)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(&format!("count = {count}: {part}")), "{error}");
    }
    assert!(DropBlocks::default().with_count(4).fits(&model(5)).is_ok());
    let error = DropBlocks::default().fits(&model(5).with_decoder(false)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let method = DropBlocks::default();
    assert_eq!((method.id(), method.count, method.needs().is_none()), ("drop_blocks", 1, true));
    assert!(method.needs_states() && method.inputs().is_empty() && method.keeps_blocks_alike());
}
