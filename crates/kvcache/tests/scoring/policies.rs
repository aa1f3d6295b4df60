//! Scores of tokens weigh as the layer does.

use ndarray::{Array3, s};
use tensorpress_kvcache::score::{Accumulated, ExpectedAttention, LastQuery, Probes, QueryWindow};
use tensorpress_kvcache::{
    Budget, Cache, Causal, HeadSlots, KvStore, Layer, LayerAt, Policy, Rope, Score, Scoring,
    StoreForm,
};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{DType, Scratch, ndarray};

use crate::reference::Asked;
use crate::{N, noise, scorings, shapes, tokens};

/// A cache that has seen all tokens and then lost some, with the queries scaled.
fn seen(score: impl Score + 'static, scoring: &Scoring, factor: f32, thinned: bool) -> Cache {
    let shape = shapes()[0];
    let layer = Layer::new(shape, StoreForm::Float(DType::F32)).expect("a layer");
    let policy = Policy::new(score, Budget::Keep(1.0));
    let cache = Cache::new(layer).with_policy(policy, LayerAt { index: 0, of: 1 });
    let mut cache = cache.and_then(|c| c.with_scoring(scoring.clone())).expect("a cache");
    let ([k, v], q) = (tokens(shape, N, 1), noise(N, 4, 32, 3).mapv(|q| factor * q));
    for rows in [0..60, 60..61, 61..N] {
        let rows = s![rows, .., ..];
        cache.append(k.slice(rows), v.slice(rows)).expect("appends");
        let q = q.slice(rows);
        let mut out = Array3::zeros(q.dim());
        cache.attend(q, None, out.view_mut(), &mut Scratch::default()).expect("attends");
    }
    if thinned {
        let keep = vec![(0..N).filter(|p| p % 3 != 1).collect(), (5..N).step_by(2).collect()];
        cache.retain(&HeadSlots(keep)).expect("retains");
    }
    cache
}

fn scores(cache: &Cache) -> Vec<Vec<f32>> {
    let (policy, _) = cache.policy().expect("a policy");
    policy.score.score(cache.held().expect("a policy")).expect("scores")
}

/// The mean over the newest `rows` queries and the group, or all heads, of what a head's tokens get.
fn mean_weights(cache: &Cache, scoring: &Scoring, head: usize, rows: usize) -> Vec<f64> {
    let (store, q) = (cache.store(), noise(N, 4, 32, 3));
    let (k, positions) = (store.keys(head), store.positions(head));
    let asked = Asked { heads: 4, scoring, causal: Causal::from(0), bias: None };
    let mut mean = vec![0.0; positions.len()];
    for h in 2 * head..2 * head + 2 {
        for r in N - rows..N {
            let weights = asked.weights((h, r), &q, &k, &positions);
            mean.iter_mut().zip(weights).for_each(|(m, w)| *m += w / (2 * rows) as f64);
        }
    }
    mean
}

#[test]
fn windows_and_last_queries_weigh_as_the_layer() {
    for scoring in scorings(4) {
        for thinned in [false, true] {
            let what = format!("{scoring:?}, {thinned}");
            let cache = seen(QueryWindow::new(8, 1), &scoring, 1.0, thinned);
            for (h, scores) in scores(&cache).iter().enumerate() {
                let exact = mean_weights(&cache, &scoring, h, 8);
                for (slot, p) in cache.store().positions(h).into_iter().enumerate() {
                    let own = p >= N - 8;
                    let error = (f64::from(scores[slot]) - exact[slot]).abs();
                    assert!(
                        own || error < 1e-5,
                        "{what}: {p}: {} and {}",
                        scores[slot],
                        exact[slot]
                    );
                }
            }
            let cache = seen(LastQuery, &scoring, 1.0, thinned);
            let all = scores(&cache);
            let exact: Vec<Vec<f64>> =
                (0..2).map(|h| mean_weights(&cache, &scoring, h, 1)).collect();
            let positions = [0, 1].map(|h| cache.store().positions(h));
            for (h, scores) in all.iter().enumerate() {
                for (slot, p) in positions[h].iter().enumerate().filter(|(_, p)| **p < N - 1) {
                    let of = |h: usize| {
                        let at = positions[h].iter().position(|q| q == p);
                        at.map_or(0.0, |slot| exact[h][slot] / 2.0)
                    };
                    let error = (f64::from(scores[slot]) - of(0) - of(1)).abs();
                    assert!(error < 1e-5, "{what}: {p}");
                }
            }
        }
    }
}

/// Attention received adds up to what the layer paid: all of it but the sinks' shares.
#[test]
fn mass_is_what_was_paid() {
    for scoring in scorings(4) {
        let cache = seen(Accumulated::default(), &scoring, 1.0, false);
        let asked = Asked { heads: 4, scoring: &scoring, causal: Causal::from(0), bias: None };
        let q = noise(N, 4, 32, 3);
        for (h, scores) in scores(&cache).iter().enumerate() {
            let (k, positions) = (cache.store().keys(h), cache.store().positions(h));
            let mut exact = vec![0.0; N];
            for (head, r) in (2 * h..2 * h + 2).flat_map(|head| (0..N).map(move |r| (head, r))) {
                let weights = asked.weights((head, r), &q, &k, &positions);
                exact.iter_mut().zip(weights).for_each(|(m, w)| *m += w / 2.0);
            }
            for (mine, exact) in scores.iter().zip(&exact) {
                assert!((f64::from(*mine) - exact).abs() < 1e-4, "{scoring:?}: {mine}, {exact}");
            }
        }
    }
}

/// A scale is that of queries as much larger; a cap that nothing reaches is none, one that all reach levels all.
#[test]
fn expected_attention_takes_scale_and_cap() {
    let score = || ExpectedAttention::new(Rope::new(32, 1e4).expect("an embedding"));
    let plain = Scoring::default();
    let near = |a: &Cache, b: &Cache| {
        let (a, b) = (scores(a).concat(), scores(b).concat());
        let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * largest)
    };
    let usual = seen(score(), &plain, 1.0, false);
    let scaled = seen(score(), &plain.clone().with_scale(0.4), 1.0, false);
    assert!(near(&scaled, &seen(score(), &plain, 0.4 * 32.0f32.sqrt(), false)));
    assert!(!near(&scaled, &usual));
    assert!(near(&seen(score(), &plain.clone().with_softcap(1e5), 1.0, false), &usual));
    let mut level = score();
    level.values = false;
    let capped = seen(level, &plain.with_softcap(1e-6), 1.0, false);
    for scores in scores(&capped) {
        let (low, high) =
            scores[4..].iter().fold((1.0f32, 0.0f32), |(a, b), s| (a.min(*s), b.max(*s)));
        assert!(high - low < 1e-6, "{low} to {high}");
    }
}

/// What probes see, each token's sum over how many of them see it, by plain loops; few probes are near all queries.
#[test]
fn probes_are_divided_by_how_many_see_a_token() {
    let probes = Probes::default().with_window(64).with_shares(0.1, 0.3);
    for scoring in scorings(4) {
        for thinned in [false, true] {
            let cache = seen(probes, &scoring, 1.0, thinned);
            let (store, q) = (cache.store(), noise(N, 4, 32, 3));
            let asked = Asked { heads: 4, scoring: &scoring, causal: Causal::from(0), bias: None };
            // The newest 7 of the 64 that are remembered, and those whose draw says so.
            let unit = |p: usize| (SplitMix::new(0).at(p as u64) >> 11) as f64 / 2f64.powi(53);
            let at: Vec<usize> = (N - 64..N).filter(|p| *p >= N - 7 || unit(*p) < 0.3).collect();
            assert!((12..40).contains(&at.len()), "{} probes", at.len());
            for (h, scores) in scores(&cache).iter().enumerate() {
                let (k, positions) = (store.keys(h), store.positions(h));
                let mut sum = vec![0.0; positions.len()];
                for r in &at {
                    for head in 2 * h..2 * h + 2 {
                        let weights = asked.weights((head, *r), &q, &k, &positions);
                        sum.iter_mut().zip(weights).for_each(|(s, w)| *s += w);
                    }
                }
                for ((mine, sum), p) in scores.iter().zip(sum).zip(positions) {
                    let saw = at.iter().filter(|r| **r >= p).count().max(1);
                    let exact = sum / (2 * saw) as f64;
                    assert!((f64::from(*mine) - exact).abs() < 1e-5, "{p}: {mine} and {exact}");
                }
            }
        }
    }
    let error = |p: Probes| p.check().unwrap_err().kind();
    let kind = tensorpress_tensor::ErrorKind::InvalidArgument;
    assert_eq!(error(probes.with_window(0)), kind);
    assert_eq!(error(probes.with_shares(1.5, 0.0)), kind);
}
