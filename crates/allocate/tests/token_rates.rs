//! Rates of tokens beside trying everything.

use proptest::prelude::*;
use tensorpress_allocate::{Kept, Tokens, token_rates};
use tensorpress_tensor::ErrorKind;

/// Costs and losses by table: a number for each layer and pair of counts.
struct Made {
    layers: usize,
    numbers: Vec<u32>,
}

impl Made {
    fn at(&self, what: usize, layer: usize, before: usize, after: usize) -> u32 {
        self.numbers[(what * 7919 + layer * 211 + before * 31 + after * 5) % self.numbers.len()]
    }
}

impl Tokens for Made {
    fn layers(&self) -> usize {
        self.layers
    }

    fn attention(&self, layer: usize, tokens: usize) -> u64 {
        (tokens * tokens) as u64 + u64::from(self.at(0, layer, tokens, 0)) % 5
    }

    fn mlp(&self, layer: usize, tokens: usize) -> u64 {
        2 * tokens as u64 + u64::from(self.at(1, layer, tokens, 0)) % 3
    }

    fn pruning(&self, layer: usize, before: usize, after: usize) -> f64 {
        if before == after { 0.0 } else { f64::from(self.at(2, layer, before, after)) }
    }

    fn merging(&self, layer: usize, before: usize, after: usize) -> f64 {
        if before == after { 0.0 } else { f64::from(self.at(3, layer, before, after)) }
    }
}

fn judge(tokens: &dyn Tokens, most: usize, kept: &[Kept]) -> (u64, f64) {
    let (mut cost, mut loss, mut before) = (0, 0.0, most);
    for (layer, kept) in kept.iter().enumerate() {
        cost += tokens.attention(layer, before) + tokens.mlp(layer, kept.merged);
        loss += tokens.pruning(layer, before, kept.pruned)
            + tokens.merging(layer, kept.pruned, kept.merged);
        before = kept.merged;
    }
    (cost, loss)
}

/// The least loss within a budget of all falling sequences, by recursion.
fn best(
    tokens: &dyn Tokens,
    counts: &[usize],
    layer: usize,
    before: usize,
    left: u64,
) -> Option<f64> {
    if layer == tokens.layers() {
        return Some(0.0);
    }
    let left = left.checked_sub(tokens.attention(layer, before))?;
    let mut least: Option<f64> = None;
    for pruned in counts.iter().filter(|count| **count <= before) {
        for merged in counts.iter().filter(|count| **count <= *pruned) {
            let Some(left) = left.checked_sub(tokens.mlp(layer, *merged)) else { continue };
            let Some(rest) = best(tokens, counts, layer + 1, *merged, left) else { continue };
            let loss = tokens.pruning(layer, before, *pruned)
                + tokens.merging(layer, *pruned, *merged)
                + rest;
            least = Some(least.map_or(loss, |least| least.min(loss)));
        }
    }
    least
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn rates_are_the_best_of_all(
        layers in 0usize..4,
        counts in prop::collection::vec(1usize..12, 1..5),
        numbers in prop::collection::vec(0u32..40, 97),
        budget in 0u64..500,
    ) {
        let tokens = Made { layers, numbers };
        let most = *counts.iter().max().unwrap();
        let best = best(&tokens, &counts, 0, most, budget);
        match token_rates(&tokens, &counts, budget) {
            Ok(kept) => {
                let (cost, loss) = judge(&tokens, most, &kept);
                prop_assert_eq!(kept.len(), layers);
                prop_assert!(cost <= budget);
                prop_assert_eq!(Some(loss), best);
                let falls = kept.iter().flat_map(|kept| [kept.pruned, kept.merged]).collect::<Vec<_>>();
                prop_assert!(falls.windows(2).all(|pair| pair[0] >= pair[1]));
            }
            Err(refused) => {
                prop_assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
                prop_assert_eq!(best, None, "{}", refused);
            }
        }
    }
}

/// DeiT-S's operations, and losses that later layers feel less; merging loses less than pruning, but not at once.
struct DeiT;

impl Tokens for DeiT {
    fn layers(&self) -> usize {
        12
    }

    fn attention(&self, _: usize, tokens: usize) -> u64 {
        (tokens * (4 * 384 * 384 + 2 * tokens * 384)) as u64
    }

    fn mlp(&self, _: usize, tokens: usize) -> u64 {
        (tokens * 2 * 384 * 1536) as u64
    }

    fn pruning(&self, layer: usize, before: usize, after: usize) -> f64 {
        ((before - after) as f64 / 197.0).powi(2) / (1.0 + layer as f64)
    }

    fn merging(&self, layer: usize, before: usize, after: usize) -> f64 {
        ((before - after) as f64 / 197.0).powi(2) / (2.0 + layer as f64)
    }
}

#[test]
fn a_vision_transformer_keeps_its_budget() {
    let counts: Vec<usize> = (1..=197).step_by(4).collect();
    let full = [197; 12].iter().map(|n| DeiT.attention(0, *n) + DeiT.mlp(0, *n)).sum::<u64>();
    let mut before = 0.0;
    for share in [1.0, 0.8, 0.6, 0.4] {
        let budget = (full as f64 * share) as u64;
        let start = std::time::Instant::now();
        let kept = token_rates(&DeiT, &counts, budget).unwrap();
        let (cost, loss) = judge(&DeiT, 197, &kept);
        println!(
            "{share} of {full}: loss {loss:.4}, {:.5} of the budget, {:?}",
            cost as f64 / budget as f64,
            start.elapsed()
        );
        assert!(cost <= budget && loss >= before);
        before = loss;
    }
}

#[test]
fn bad_input_is_refused() {
    let kind = |counts: &[usize], budget| token_rates(&DeiT, counts, budget).unwrap_err().kind();
    assert_eq!(kind(&[], 1), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[197], 0), ErrorKind::InvalidArgument);
    struct Nan;
    impl Tokens for Nan {
        fn layers(&self) -> usize {
            1
        }
        fn attention(&self, _: usize, _: usize) -> u64 {
            u64::MAX
        }
        fn mlp(&self, _: usize, _: usize) -> u64 {
            0
        }
        fn pruning(&self, _: usize, before: usize, _: usize) -> f64 {
            if before == 7 { f64::NAN } else { 0.0 }
        }
        fn merging(&self, _: usize, _: usize, _: usize) -> f64 {
            0.0
        }
    }
    let kind = |counts: &[usize]| token_rates(&Nan, counts, u64::MAX).unwrap_err().kind();
    assert_eq!(kind(&[7]), ErrorKind::Numerical);
    assert_eq!(kind(&[8]), ErrorKind::InvalidArgument);
}
