//! What tells papers from each other, against plain loops.

use std::sync::Arc;

use ndarray::{Array2, Array3, s};
use tensorpress_kvcache::merge::{EvictThenMerge, ResidualMerge};
use tensorpress_kvcache::policy::{ems, razor_attention, uncomp, zeromerge};
use tensorpress_kvcache::score::{
    Decayed, GlobalLocal, LastQuery, QueryFilter, Score, query_filter,
};
use tensorpress_kvcache::{
    Budget, Cache, EntropyHeads, HeadList, KvRecipe, KvRegistry, KvShape, KvStore, Layer, LayerAt,
    LayerBudget, LayerShares, Layers, Policy, StoreForm,
};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::{DType, ErrorKind, Scratch, ndarray};

use crate::{DIM, HEADS, KV_HEADS, TEXT, feed, held, layers};

fn cache(policy: Policy) -> Cache {
    at(policy, LayerAt { index: 0, of: 1 })
}

fn at(policy: Policy, at: LayerAt) -> Cache {
    let shape = KvShape::new(HEADS, KV_HEADS, DIM).expect("a shape");
    let layer = Layer::new(shape, StoreForm::Float(DType::F32)).expect("a layer");
    Cache::new(layer).with_policy(policy, at).expect("a policy")
}

fn scores(cache: &Cache) -> Vec<Vec<f32>> {
    let (policy, _) = cache.policy().expect("a policy");
    policy.score.score(cache.held().expect("a policy")).expect("scores")
}

/// Causal attention of the text's first `n` tokens, by query head.
fn maps(n: usize) -> Vec<Array2<f64>> {
    let [k, _, q] = &*TEXT;
    let of = |head: usize| {
        let mut map = Array2::zeros((n, n));
        for i in 0..n {
            let dot = |j: usize| -> f64 {
                let row = q.slice(s![i, head, ..]);
                let key = k.slice(s![j, head / (HEADS / KV_HEADS), ..]);
                row.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum::<f64>()
                    / (DIM as f64).sqrt()
            };
            let sum: f64 = (0..=i).map(|j| dot(j).exp()).sum();
            (0..=i).for_each(|j| map[[i, j]] = dot(j).exp() / sum);
        }
        map
    };
    (0..HEADS).map(of).collect()
}

fn near(a: f32, b: f64, what: &str) {
    assert!((f64::from(a) - b).abs() <= 1e-4 * b.abs().max(1e-3), "{what}: {a} against {b}");
}

/// Heads that look things up keep everything; in the others one token stands for all that went, however it went.
#[test]
fn razor_attention_keeps_heads_whole_or_a_mean() {
    let heads = HeadList(vec![(0, 1)]);
    for step in [1, 7, 150] {
        let policy = razor_attention(heads.clone(), 20, 4, Budget::Tokens(90)).with_stride(1);
        let mut cache = cache(policy);
        (0..150).step_by(step).for_each(|t| drop(feed(&mut cache, t..(t + step).min(150))));
        let lengths: Vec<usize> = held(&cache).iter().map(Vec::len).collect();
        assert_eq!(lengths, [30, 150], "steps of {step}");
        let (keys, values) = cache.store().decode(0);
        let weights = cache.store().weights(0);
        let [k, v, _] = &*TEXT;
        // 4 sinks and the newest 25, whose weights are 1, and 121 tokens between.
        assert_eq!(held(&cache)[0][5..], (125..150).collect::<Vec<_>>());
        assert_eq!(weights[4], 121.0);
        assert!(weights.iter().enumerate().all(|(s, w)| s == 4 || *w == 1.0));
        for c in 0..DIM {
            for (mine, all) in [(&keys, k), (&values, v)] {
                let mean = (4..125).map(|t| f64::from(all[[t, 0, c]])).sum::<f64>() / 121.0;
                assert!((f64::from(mine[[4, c]]) - mean).abs() < 1e-5, "steps of {step}");
            }
        }
        assert!(cache.store().weights(1).iter().all(|w| *w == 1.0));
    }
    // Too little for the chosen head: it gets what the others leave.
    let mut small = cache(razor_attention(heads, 20, 4, Budget::Tokens(40)).with_stride(1));
    feed(&mut small, 0..150);
    assert_eq!(held(&small).iter().map(Vec::len).collect::<Vec<_>>(), [20, 60]);
}

/// Attention received fades with each further query.
#[test]
fn decayed_attention_fades() {
    let maps = maps(60);
    for (left, step) in [(0.9f32, 60), (0.9, 1), (1.0, 7)] {
        let mut cache = cache(Policy::new(Decayed::new(left), Budget::Keep(1.0)));
        (0..60).step_by(step).for_each(|t| drop(feed(&mut cache, t..(t + step).min(60))));
        for (h, mine) in scores(&cache).iter().enumerate() {
            for (t, mine) in mine.iter().enumerate() {
                let of = |i: usize| f64::from(left).powi(59 - i as i32);
                let sum: f64 = (0..60)
                    .map(|i| of(i) * (maps[2 * h][[i, t]] + maps[2 * h + 1][[i, t]]) / 2.0)
                    .sum();
                near(*mine, sum, "decayed");
            }
        }
    }
}

/// While tokens come one by one the lowest goes to the residual slot whose key is nearest; nothing is lost.
#[test]
fn zeromerge_takes_in_by_the_nearest_key() {
    let rule = ResidualMerge::new(4, 10).with_sum(true);
    let mut cache = cache(zeromerge(rule, 0.98, Budget::Tokens(40)));
    feed(&mut cache, 0..100);
    for h in 0..KV_HEADS {
        let weights = cache.store().weights(h);
        assert_eq!(weights.iter().sum::<f32>(), 100.0);
        assert_eq!(weights.iter().filter(|w| **w > 1.0).count(), 4);
    }
    for t in 100..130 {
        let before: Vec<_> = (0..KV_HEADS).map(|h| cache.store().decode(h)).collect();
        let weights: Vec<_> = (0..KV_HEADS).map(|h| cache.store().weights(h)).collect();
        let was = held(&cache);
        feed(&mut cache, t..t + 1);
        for h in 0..KV_HEADS {
            let now = held(&cache)[h].clone();
            let Some(gone) = (0..40).find(|s| !now.contains(&was[h][*s])) else { continue };
            if weights[h][gone] > 1.0 {
                continue;
            }
            let keys = &before[h].0;
            let residual: Vec<usize> = (0..40).filter(|s| weights[h][*s] > 1.0).collect();
            let dot = |s: &usize| keys.row(gone).dot(&keys.row(*s));
            let target = *residual.iter().max_by(|a, b| dot(a).total_cmp(&dot(b))).expect("one");
            let slot = now.iter().position(|p| *p == was[h][target]).expect("stays");
            let (w, after) = (weights[h][target], cache.store().keys(h));
            assert_eq!(cache.store().weights(h)[slot], w + 1.0, "token {t}");
            for c in 0..DIM {
                let mean = (w * keys[[target, c]] + keys[[gone, c]]) / (w + 1.0);
                assert!((after[[slot, c]] - mean).abs() < 1e-5, "token {t}");
            }
        }
    }
    for h in 0..KV_HEADS {
        assert_eq!(cache.store().weights(h).iter().sum::<f32>(), 130.0);
    }
}

/// Centres are the mean of their tokens by score; the worst, and what is like none, are nowhere.
#[test]
fn ems_merges_the_middle() {
    let (n, tokens, window) = (80, 30, 8);
    let score = GlobalLocal::new(window);
    let rule = EvictThenMerge::new(score).with_evict(0.5).with_cosine(0.35);
    let mut cache = cache(ems(rule, Budget::Tokens(tokens)).with_stride(1));
    feed(&mut cache, 0..n);
    let maps = maps(n);
    let [k, v, _] = &*TEXT;
    for h in 0..KV_HEADS {
        let share = |x: Vec<f64>| -> Vec<f64> {
            let sum: f64 = x.iter().sum();
            x.iter().map(|x| x / sum).collect()
        };
        let both = |i: usize, t: usize| maps[2 * h][[i, t]] + maps[2 * h + 1][[i, t]];
        let global = (0..n).map(|t| (0..n).map(|i| both(i, t)).sum::<f64>() / (n - t) as f64);
        let local = (0..n).map(|t| (n - window..n).map(|i| both(i, t)).sum::<f64>());
        let (global, local) = (share(global.collect()), share(local.collect()));
        let score: Vec<f64> = global.iter().zip(local).map(|(g, l)| (g + l) / 2.0).collect();
        let kept = &held(&cache)[h];
        let mut gone: Vec<usize> = (0..n).filter(|t| !kept.contains(t)).collect();
        gone.sort_by(|a, b| score[*b].total_cmp(&score[*a]));
        let cosine = |a: usize, b: usize| {
            let dot = |a: usize, b: usize| -> f64 {
                (0..DIM).map(|c| f64::from(k[[a, h, c]] * k[[b, h, c]])).sum()
            };
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let mut members: Vec<Vec<usize>> = kept.iter().map(|t| vec![*t]).collect();
        for t in &gone[..gone.len() - gone.len() / 2] {
            let best = (0..kept.len())
                .max_by(|a, b| cosine(*t, kept[*a]).total_cmp(&cosine(*t, kept[*b])));
            let best = best.expect("a centre");
            if cosine(*t, kept[best]) >= 0.35 {
                members[best].push(*t);
            }
        }
        let (merged, tried) =
            (members.iter().map(Vec::len).sum::<usize>() - tokens, gone.len() / 2);
        assert!(merged > 3 && merged + 3 < tried, "{merged} of {tried} go to a centre");
        let (keys, values) = cache.store().decode(h);
        for (slot, members) in members.iter().enumerate() {
            let all: f64 = members.iter().map(|t| score[*t]).sum();
            for (mine, x) in [(&keys, k), (&values, v)] {
                let mean: f64 =
                    members.iter().map(|t| score[*t] / all * f64::from(x[[*t, h, 0]])).sum();
                assert!((f64::from(mine[[slot, 0]]) - mean).abs() < 1e-4, "head {h}, slot {slot}");
            }
        }
        assert!(cache.store().weights(h).iter().all(|w| *w == 1.0));
    }
}

/// A head whose keys lie along few directions keeps less than one whose keys lie anywhere.
#[test]
fn uncomp_gives_by_entropy() {
    let heads = EntropyHeads::default().with_classes(2);
    let mut cache = cache(uncomp(8, heads, Budget::Tokens(40)).with_stride(1));
    let [mut k, v, q] = TEXT.each_ref().map(|x| x.slice(s![..150, .., ..]).to_owned());
    for t in 0..150 {
        for c in 2..DIM {
            k[[t, 1, c]] = k[[t, 1, c % 2]];
        }
    }
    cache.append(k.view(), v.view()).expect("appends");
    let mut out = Array3::zeros(q.raw_dim());
    cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default()).expect("attends");
    assert_eq!(held(&cache).iter().map(Vec::len).collect::<Vec<_>>(), [60, 20]);
    assert!(held(&cache).iter().all(|h| h.ends_with(&(142..150).collect::<Vec<_>>())));
}

/// All heads keep what the chosen query head looks at.
#[test]
fn compresskv_asks_the_chosen_heads() {
    let maps = maps(100);
    for (text, chosen) in
        [("1.2", vec![2]), ("1.0-1.3-0.1", vec![0, 3]), ("none", vec![0, 1, 2, 3])]
    {
        let recipe = format!("f32 | compresskv(tokens=40, heads={text}, window=8, stride=1)");
        let mut cache = layers(&recipe, 3).remove(1);
        feed(&mut cache, 0..100);
        assert_eq!(held(&cache)[0], held(&cache)[1]);
        let mean = |t: usize| -> f64 {
            chosen.iter().map(|q| (92..100).map(|i| maps[*q][[i, t]]).sum::<f64>()).sum()
        };
        let pooled = |t: usize| (t.saturating_sub(2)..(t + 3).min(92)).map(mean).sum::<f64>();
        let mut order: Vec<usize> = (0..92).collect();
        order.sort_by(|a, b| pooled(*b).total_cmp(&pooled(*a)));
        let mut exact: Vec<usize> = order[..32].iter().copied().chain(92..100).collect();
        exact.sort_unstable();
        assert_eq!(held(&cache)[0], exact, "{text}");
    }
}

/// Layers hold rungs of one ladder: each the sinks and the newest, together more than each.
#[test]
fn lacache_is_a_ladder() {
    let recipe = "f32 | lacache(tokens=64, span=3, overlap=1, stride=1)";
    let mut all = layers(recipe, 6);
    let mut sets = Vec::new();
    for cache in &mut all {
        feed(cache, 0..200);
        (200..230).for_each(|t| drop(feed(cache, t..t + 1)));
        let kept = held(cache)[0].clone();
        assert_eq!((kept.len(), &kept[..4], kept[63]), (64, &[0, 1, 2, 3][..], 229));
        sets.push(kept);
    }
    let union: std::collections::BTreeSet<usize> = sets.iter().flatten().copied().collect();
    assert!(union.len() > 90, "{}", union.len());
    assert_ne!(sets[0], sets[1]);
    let alone = "f32 | streaming(tokens=64, stride=1)";
    let mut newest = layers(alone, 1).remove(0);
    feed(&mut newest, 0..230);
    assert!(sets.iter().all(|kept| kept[20] < held(&newest)[0][20]), "reaches back farther");
}

/// The direction is that of most of the queries, by power iteration; keys along it go first.
#[test]
fn query_filters_are_principal_directions() {
    let lean: Vec<f32> = (0..DIM).map(|c| if c % 3 == 0 { 0.8 } else { -0.3 }).collect();
    let queries = Array2::from_shape_fn((200, DIM), |(r, c)| {
        lean[c] + 0.5 * gaussian(3, (r * DIM + c) as u64) as f32
    });
    let mine = query_filter(queries.view()).expect("a direction");
    let gram = queries.t().dot(&queries).mapv(f64::from);
    let mut x = ndarray::Array1::from_elem(DIM, 1.0);
    for _ in 0..500 {
        x = gram.dot(&x);
        let norm = x.dot(&x).sqrt();
        x /= norm;
    }
    let sign = if queries.mapv(f64::from).dot(&x).sum() < 0.0 { -1.0 } else { 1.0 };
    for (mine, x) in mine.iter().zip(&x) {
        near(*mine, sign * x, "direction");
    }
    let filters = vec![vec![mine.clone(); KV_HEADS]; 2];
    let filter = QueryFilter::given(filters);
    let mut second =
        at(Policy::new(filter.clone(), Budget::Keep(1.0)), LayerAt { index: 1, of: 3 });
    feed(&mut second, 0..20);
    let keys = second.store().keys(1);
    for (score, key) in scores(&second)[1].iter().zip(keys.rows()) {
        let dot: f64 = key.iter().zip(&mine).map(|(a, b)| f64::from(a * b)).sum();
        assert!((f64::from(*score) + dot).abs() < 1e-4);
    }
    let third = at(Policy::new(filter.clone(), Budget::Keep(1.0)), LayerAt { index: 2, of: 3 });
    let error = filter.score(third.held().expect("a policy")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    assert!(error.message().contains("layer 2"), "{error}");
    assert!(QueryFilter::of_newest(0).check().is_err());
}

/// The projection is the model's: a recipe asks for it, and so does who reads a cache.
#[test]
fn criticalkv_asks_for_the_projection() {
    let text = "f32 | criticalkv(tokens=40, window=8, stride=1) | chunkkv(length=4)";
    let recipe: KvRecipe = text.parse().expect("a recipe");
    let error = recipe.caches(2, HEADS, KV_HEADS, DIM).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingCalibration);
    let output = |layer: u64| {
        let number = move |(r, c)| gaussian(layer, (r * HEADS * DIM + c) as u64) as f32;
        Arc::new(Array2::from_shape_fn((5, HEADS * DIM), number))
    };
    let recipe = recipe.with_outputs(vec![output(1), output(2)]);
    let mut caches = recipe.caches(2, HEADS, KV_HEADS, DIM).expect("caches");
    caches.iter_mut().for_each(|cache| drop(feed(cache, 0..100)));
    assert_ne!(held(&caches[0]), held(&caches[1]), "each layer has its own");
    assert!(held(&caches[0]).iter().all(|h| h.len() <= 40 && h.len() > 30));
    // Another score could not read it back; one that has the projection can.
    let policy = caches[1].policy().expect("a policy").0.score.describe();
    assert_eq!(policy["id"], "chunked");
    let error = KvRegistry::default().score(&policy["of"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn shares_of_layers_keep_to_the_mean() {
    let shares = LayerShares(vec![1.0, 2.0, 3.0]);
    let of = |index| shares.tokens(LayerAt { index, of: 3 }, 1000, 60.0);
    assert_eq!([of(0), of(1), of(2)], [30, 60, 90]);
    let policy =
        Policy::new(LastQuery, Budget::Tokens(60)).with_layers(Layers::Own(Arc::new(shares)));
    let mut last = at(policy, LayerAt { index: 2, of: 3 });
    feed(&mut last, 0..150);
    assert_eq!(held(&last)[0].len(), 90);
    for bad in [vec![], vec![0.0], vec![-1.0, 2.0], vec![f64::NAN]] {
        assert!(LayerShares(bad).check().is_err());
    }
    assert!("1.2-3".parse::<HeadList>().is_err() && "".parse::<HeadList>().is_err());
    let list: HeadList = "1.2-30.4".parse().expect("a list");
    assert_eq!(
        (list.to_string(), "none".parse::<HeadList>().expect("none").to_string()),
        ("1.2-30.4".into(), "none".into())
    );
}
