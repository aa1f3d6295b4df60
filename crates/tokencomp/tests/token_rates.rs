//! DiffRate whole: counts chosen by `allocate` within a budget of FLOPs, carried out layer by layer.

use tensorpress_allocate::{Kept, Tokens, token_rates};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tokencomp::{DiffRate, TokenHints, TokenMap};

const TOKENS: usize = 33;
const DIM: usize = 16;

/// A small vision transformer: what a layer costs by the tokens it sees, and loses by the class attention of those it prunes or
/// merges. Layers differ in how much they miss, and in which of the two they miss less.
struct Layers {
    /// Attention of the class token to the others, the largest first.
    ranked: Vec<f64>,
}

const MISSES: [f64; 4] = [8.0, 1.0, 3.0, 0.5];
/// What merging loses of what pruning does.
const MERGED: [f64; 4] = [0.5, 1.5, 0.5, 1.5];

impl Layers {
    /// The attention of those between two counts, the class token counted as one that stays.
    fn mass(&self, before: usize, after: usize) -> f64 {
        self.ranked[after - 1..before - 1].iter().sum()
    }
}

impl Tokens for Layers {
    fn layers(&self) -> usize {
        MISSES.len()
    }

    fn attention(&self, _: usize, tokens: usize) -> u64 {
        (4 * tokens * DIM * DIM + 2 * tokens * tokens * DIM) as u64
    }

    fn mlp(&self, _: usize, tokens: usize) -> u64 {
        (8 * tokens * DIM * DIM) as u64
    }

    fn pruning(&self, layer: usize, before: usize, after: usize) -> f64 {
        MISSES[layer] * self.mass(before, after)
    }

    fn merging(&self, layer: usize, before: usize, after: usize) -> f64 {
        MERGED[layer] * MISSES[layer] * self.mass(before, after)
    }
}

/// Carries counts out; gives FLOPs and losses as the maps say they are, and the map of all layers.
fn run(attention: &[f32], rates: &[[usize; 2]]) -> (u64, f64, TokenMap) {
    let layers = Layers { ranked: Vec::new() };
    let mut states = Array2::from_shape_fn((TOKENS, DIM), |(t, c)| {
        gaussian(1 + (t / 3) as u64, c as u64) as f32
            + 0.1 * gaussian(99, (t * DIM + c) as u64) as f32
    });
    let mut attention = attention.to_vec();
    let mut whole = TokenMap::identity(TOKENS);
    let (mut cost, mut loss) = (0, 0.0);
    for (layer, counts) in rates.iter().enumerate() {
        cost += layers.attention(layer, states.nrows());
        let sizes = whole.sizes(None).unwrap();
        let hints = TokenHints::default()
            .with_protected(&[0])
            .with_sizes(&sizes)
            .with_class_attention(&attention);
        let plan = DiffRate::default().plan_counts(states.view(), &hints, *counts).unwrap();
        assert_eq!(plan.dropped(), states.nrows() - counts[0], "layer {layer}");
        assert_eq!((plan.targets(), plan.target(0), plan.counts()[0]), (counts[1], Some(0), 1));
        // A token is merged into the one of its group that has the most attention.
        let mut most = vec![0.0f32; plan.targets()];
        for token in 0..plan.sources() {
            let a = attention[token];
            match plan.target(token) {
                None => loss += MISSES[layer] * f64::from(a),
                Some(target) => {
                    loss += MERGED[layer] * MISSES[layer] * f64::from(a);
                    most[target] = most[target].max(a);
                }
            }
        }
        let stays: f64 = most.iter().map(|a| f64::from(*a)).sum();
        loss -= MERGED[layer] * MISSES[layer] * stays;
        states = plan.merge(states.view(), Some(&sizes)).unwrap();
        attention = most;
        whole = whole.then(&plan).unwrap();
        cost += layers.mlp(layer, states.nrows());
    }
    (cost, loss, whole)
}

#[test]
fn rates_by_allocate_are_carried_out() {
    // Far apart, as attention is; the class token's own takes no part.
    let mut attention: Vec<f32> =
        (0..TOKENS).map(|t| (0.4 * ((t * 7) % TOKENS) as f32 - 6.0).exp()).collect();
    let sum: f32 = attention[1..].iter().sum();
    attention.iter_mut().for_each(|a| *a /= sum);
    attention[0] = 0.0;
    let mut ranked: Vec<f64> = attention[1..].iter().map(|a| f64::from(*a)).collect();
    ranked.sort_by(|a, b| b.total_cmp(a));
    let layers = Layers { ranked };
    let all = [[TOKENS, TOKENS]; MISSES.len()];
    let (whole, none, _) = run(&attention, &all);
    assert!(none.abs() < 1e-9);
    let counts: Vec<usize> = (5..=TOKENS).step_by(4).collect();
    let (mut better, mut pruned, mut merged) = (0, 0, 0);
    for share in [0.5, 0.6, 0.7, 0.8, 0.9] {
        let budget = (share * whole as f64) as u64;
        let rates: Vec<Kept> = token_rates(&layers, &counts, budget).unwrap();
        let rates: Vec<[usize; 2]> = rates.iter().map(|kept| [kept.pruned, kept.merged]).collect();
        let (cost, loss, map) = run(&attention, &rates);
        // What was promised: the budget, the counts, and the losses.
        assert!(cost <= budget && cost > budget * 8 / 10, "{share}: {cost} of {budget}");
        assert_eq!(map.targets(), rates[MISSES.len() - 1][1]);
        let mut before = TOKENS;
        let mut promised = 0.0;
        for (layer, [left, after]) in rates.iter().enumerate() {
            promised += layers.pruning(layer, before, *left) + layers.merging(layer, *left, *after);
            (pruned, merged) = (pruned + before - left, merged + left - after);
            before = *after;
        }
        assert!((loss - promised).abs() < 1e-6, "{share}: {loss}, {promised} promised");
        // No rate that is the same in every layer loses less within the budget.
        for [prune, merge] in (0..=8).flat_map(|p| (0..=8).map(move |m| [p, m])) {
            let mut left = TOKENS;
            let uniform: Vec<[usize; 2]> = (0..MISSES.len())
                .map(|_| {
                    let after = [left.saturating_sub(prune), left.saturating_sub(prune + merge)];
                    left = after[1].max(5);
                    after.map(|n| n.max(5))
                })
                .collect();
            let on_grid = uniform.iter().flatten().all(|count| counts.contains(count));
            let (cost, other, _) = run(&attention, &uniform);
            if on_grid && cost <= budget {
                assert!(loss <= other + 1e-9, "{share}: {rates:?} {loss}, {uniform:?} {other}");
                better += usize::from(loss < other - 1e-6);
            }
        }
    }
    assert!(better > 0 && pruned > 0 && merged > 0, "{better} {pruned} {merged}");
}
