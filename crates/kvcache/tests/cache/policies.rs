//! What single policies promise beyond their golden vectors.

use std::collections::BTreeSet;

use tensorpress_kvcache::policy::{adakv, h2o, pyramidkv};
use tensorpress_kvcache::score::{Accumulated, Pooling, QueryWindow, Random};
use tensorpress_kvcache::{
    Budget, Cache, HeadSlots, Heads, Held, KvShape, Layer, LayerAt, Policy, Rule, Score, StoreForm,
};
use tensorpress_tensor::DType;

use crate::{DIM, HEADS, KV_HEADS, feed, held, one};

const ALONE: LayerAt = LayerAt { index: 0, of: 1 };

fn cache(policy: Policy) -> Cache {
    let shape = KvShape::new(HEADS, KV_HEADS, DIM).expect("a shape");
    let layer = Layer::new(shape, StoreForm::Float(DType::F32)).expect("a layer");
    Cache::new(layer).with_policy(policy, ALONE).expect("a policy")
}

fn scores(cache: &Cache) -> Vec<Vec<f32>> {
    let (policy, _) = cache.policy().expect("a policy");
    policy.score.score(cache.held().expect("a policy")).expect("scores")
}

/// Widths of every layer of a model.
fn widths(policy: &Policy, seen: usize, layers: usize, held: usize, bytes: u64) -> Vec<usize> {
    let of = |index| policy.tokens(seen, LayerAt { index, of: layers }, held, bytes);
    (0..layers).map(of).collect()
}

/// However small the budget, it falls from layer to layer, and on average it is what was asked for.
#[test]
fn pyramids_of_any_budget_fall_and_keep_to_it() {
    let mut pyramids = 0;
    for (seen, window) in [(200, 16), (1000, 32), (4096, 8), (300, 1)] {
        for layers in [2, 5, 12, 32] {
            for more in [1, 20, 64, 130, seen - window] {
                for beta in [1.0, 2.5, 20.0] {
                    let tokens = window + more;
                    let what =
                        format!("{tokens} of {seen}, window {window}, {layers} layers, {beta}");
                    let policy = pyramidkv(window, beta, Budget::Tokens(tokens));
                    let all = widths(&policy, seen, layers, seen, 0);
                    assert!(all.is_sorted_by(|a, b| a >= b), "{what}: {all:?}");
                    assert!(all.iter().all(|n| (window..=seen).contains(n)), "{what}: {all:?}");
                    let off = all.iter().sum::<usize>() as f64 / layers as f64 - tokens as f64;
                    let most = (layers - 1) as f64 / 2.0;
                    assert!((-0.6..=most).contains(&off), "{what}: {off} beside the budget");
                    // There is a pyramid wherever there is something to evict and a token a layer to give.
                    if beta > 2.0 && seen >= 2 * more && more / 2 >= layers {
                        assert!(all[0] > all[layers - 1], "{what}: {all:?}");
                        pyramids += 1;
                    }
                    // Bytes are kept to: 10 a token.
                    let policy = pyramidkv(window, beta, Budget::Bytes(10 * tokens as u64));
                    for held in [seen, seen / 3] {
                        let all = widths(&policy, seen, layers, held, 10 * held as u64);
                        assert!(all.iter().sum::<usize>() <= tokens * layers, "{what}: {all:?}");
                        assert!(all[0] >= tokens.min(seen), "{what}: {all:?}");
                    }
                }
            }
        }
    }
    assert!(pyramids > 50, "{pyramids}");
}

/// A layer with few tokens does not shrink because it is within its bytes.
#[test]
fn pyramids_in_bytes_do_not_shrink_by_themselves() {
    for index in [0, 3, 4] {
        let policy = pyramidkv(8, 20.0, Budget::Bytes(20_000));
        let shape = KvShape::new(HEADS, KV_HEADS, DIM).expect("a shape");
        let layer = Layer::new(shape, StoreForm::Float(DType::F32)).expect("a layer");
        let at = LayerAt { index, of: 5 };
        let mut cache = Cache::new(layer).with_policy(policy, at).expect("a policy");
        feed(&mut cache, 0..200);
        let after: Vec<usize> = held(&cache).iter().map(Vec::len).collect();
        (200..203).for_each(|t| drop(feed(&mut cache, t..t + 1)));
        let later = held(&cache)[0].len();
        assert!(later >= after[0] * 3 / 4, "layer {index}: {} then {later}", after[0]);
        assert!(after[0] > 8, "layer {index}: {after:?}");
    }
}

/// What each head of the authors' AdaKV keeps beside the window: the best of the layer, and an even share, blended.
#[test]
fn adakv_sets_the_window_aside() {
    let mut differ = 0;
    for (tokens, window) in [(50, 32), (80, 16), (40, 38), (60, 0)] {
        for floor in [0.0, 0.2, 0.5, 1.0] {
            let what = format!("{tokens} tokens, window {window}, floor {floor}");
            let heads = |rule| Heads::Adaptive { floor, rule };
            let policy = Policy::new(Uneven, Budget::Keep(1.0)).with_protected(0, window);
            let mut cache = cache(policy.clone().with_heads(heads(Rule::Authors)));
            feed(&mut cache, 0..150);
            let plan = |cache: &Cache, policy: &Policy| {
                policy.plan(cache.held().expect("a policy"), tokens).expect("a plan")
            };
            let kept = plan(&cache, &policy.clone().with_heads(heads(Rule::Authors)));
            assert_eq!(kept.total(), tokens * KV_HEADS, "{what}");
            // The layer's best of all that is not in the window.
            let free = tokens - window;
            let mut all: Vec<(f32, usize)> = Vec::new();
            for (h, scores) in scores(&cache).iter().enumerate() {
                all.extend(scores[..150 - window].iter().map(|s| (*s, h)));
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (h, kept) in kept.0.iter().enumerate() {
                let newest = kept.iter().filter(|slot| **slot >= 150 - window).count();
                assert_eq!(newest, window, "{what}");
                let won = all[..free * KV_HEADS].iter().filter(|(_, head)| *head == h).count();
                let exact = (1.0 - floor) * won as f64 + floor * free as f64;
                let mine = (kept.len() - window) as f64;
                assert!((mine - exact).abs() <= 1.0, "{what}: head {h}: {mine}, not {exact}");
            }
            differ += usize::from(plan(&cache, &policy.with_heads(heads(Rule::Kvpress))) != kept);
        }
    }
    assert!(differ > 4, "the rules differ in {differ} cases");
    assert_eq!(
        adakv(Policy::new(Uneven, Budget::Keep(1.0))).heads,
        Heads::Adaptive { floor: 0.2, rule: Rule::Authors }
    );
}

/// By lot, but one head is worth much more.
#[derive(Debug, Clone)]
struct Uneven;

impl Score for Uneven {
    fn id(&self) -> &'static str {
        "uneven"
    }

    fn score(&self, held: Held<'_>) -> tensorpress_tensor::Result<Vec<Vec<f32>>> {
        let mut scores = Random { seed: 3 }.score(held)?;
        scores[1].iter_mut().for_each(|s| *s *= 0.4);
        Ok(scores)
    }
}

/// The newest make up their share of what stays, whatever the budget; the rest are those that were looked at most.
#[test]
fn h2o_keeps_half_and_half() {
    let mut all = cache(Policy::new(Accumulated::default(), Budget::Keep(1.0)));
    feed(&mut all, 0..150);
    let mass = scores(&all);
    let bytes = (2 * DIM as u64 * 4 + 4) * KV_HEADS as u64;
    for share in [0.0, 0.25, 0.5, 1.0] {
        for budget in [Budget::Tokens(50), Budget::Keep(0.4), Budget::Bytes(60 * bytes)] {
            let mut cache = cache(h2o(share, budget));
            feed(&mut cache, 0..150);
            for (kept, mass) in held(&cache).iter().zip(&mass) {
                let newest = (kept.len() as f64 * share) as usize;
                let mut heavy: Vec<usize> = (0..150 - newest).collect();
                heavy.sort_by(|a, b| mass[*b].total_cmp(&mass[*a]));
                heavy.truncate(kept.len() - newest);
                let exact: BTreeSet<usize> = heavy.into_iter().chain(150 - newest..150).collect();
                let mine: BTreeSet<usize> = kept.iter().copied().collect();
                assert_eq!(mine, exact, "{share} of {budget:?}");
                assert!(kept.len() >= 45, "{budget:?}: {}", kept.len());
            }
        }
    }
    let mut said = one("f32 | h2o(tokens=50, recent=10)");
    let mut half = one("f32 | h2o(tokens=50)");
    for (cache, newest) in [(&mut said, 10), (&mut half, 25)] {
        feed(cache, 0..150);
        for kept in held(cache) {
            assert_eq!(kept.len(), 50);
            let run = kept.iter().rev().zip((0..150).rev()).take_while(|(a, b)| **a == *b).count();
            assert!((newest..newest + 10).contains(&run), "{run} of the newest, {newest} meant");
        }
    }
}

/// Neighbours are pooled along the text: what is gone leaves a gap that is not closed.
#[test]
fn snapkv_pools_by_position() {
    for pool in [1, 5, 9] {
        for pooling in [Pooling::Average, Pooling::Max] {
            let see = |pool: usize| {
                let score = QueryWindow::new(8, pool).with_pooling(pooling);
                let mut cache = cache(Policy::new(score, Budget::Keep(1.0)));
                feed(&mut cache, 0..150);
                // A long gap, single gaps, and another of each head.
                let keep =
                    |h: usize| (0..150).filter(move |p| !(20 + h..60).contains(p) && p % 7 != h);
                cache
                    .retain(&HeadSlots(vec![keep(0).collect(), keep(1).collect()]))
                    .expect("retains");
                cache
            };
            let (raw, pooled) = (see(1), see(pool));
            for (h, positions) in held(&raw).iter().enumerate() {
                let (raw, pooled) = (&scores(&raw)[h], &scores(&pooled)[h]);
                let text = |p: usize| {
                    let slot = positions.binary_search(&p).ok().filter(|_| p < 142);
                    slot.map_or(0.0, |slot| raw[slot])
                };
                for (slot, p) in positions.iter().enumerate().filter(|(_, p)| **p < 142) {
                    let near = || (p.saturating_sub(pool / 2)..=p + pool / 2).map(text);
                    let exact = match pooling {
                        Pooling::Average => near().sum::<f32>() / pool as f32,
                        _ => continue,
                    };
                    let error = (pooled[slot] - exact).abs();
                    assert!(error <= 1e-6, "pool {pool}: token {p}: {} and {exact}", pooled[slot]);
                }
            }
            if pooling == Pooling::Max && pool > 1 {
                // Of each query head apart, so only that no token has more than the best one near it.
                for (h, positions) in held(&raw).iter().enumerate() {
                    let (raw, pooled) = (&scores(&raw)[h], &scores(&pooled)[h]);
                    for (slot, p) in positions.iter().enumerate().filter(|(_, p)| **p < 142) {
                        let near =
                            positions.iter().zip(raw).filter(|(q, _)| q.abs_diff(*p) <= pool / 2);
                        let most: f32 = near.filter(|(q, _)| **q < 142).map(|(_, s)| *s).sum();
                        assert!(pooled[slot] >= raw[slot] - 1e-6, "token {p}");
                        assert!(
                            pooled[slot] <= most + 1e-6,
                            "token {p}: {} of {most}",
                            pooled[slot]
                        );
                    }
                }
            }
        }
    }
}
