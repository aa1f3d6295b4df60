//! What layers do to have fewer tokens, and how many, against slow ones and closed forms.

mod common;

use std::ops::Range;

use common::{assert_near, clustered, values};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array1, Array2, Array3, Axis, s};
use tensorpress_tokencomp::layers::{
    Align, LinearMap, SpaceToChannel, informative, informativeness, merge_layers, pooled_attention,
};
use tensorpress_tokencomp::{
    DivPrune, Pooling, ToMe, TokenHints, TokenMap, TokenReduce, density_budgets, fewest_tokens,
    grid, pool_windows, reconstruction_error, semantic_density,
};

fn heads(tokens: usize, heads: usize, dim: usize, seed: u64) -> Array3<f32> {
    values(tokens, heads * dim, seed).into_shape_with_order((tokens, heads, dim)).unwrap()
}

/// softmax(Q Kᵀ / sqrt(d)) V of one head, in f64 and whole matrices; `seen` says which keys a query sees.
fn attention(
    q: &Array2<f64>,
    k: &Array2<f64>,
    v: &Array2<f64>,
    seen: impl Fn(usize, usize) -> bool,
) -> (Array2<f64>, Array2<f64>) {
    let mut p = q.dot(&k.t()) / (q.ncols() as f64).sqrt();
    p.indexed_iter_mut().for_each(|((i, j), s)| *s = if seen(i, j) { s.exp() } else { 0.0 });
    for mut row in p.rows_mut() {
        let sum = row.sum();
        row.mapv_inplace(|v| v / sum);
    }
    let out = p.dot(v);
    (p, out)
}

fn head(x: &Array3<f32>, head: usize) -> Array2<f64> {
    x.index_axis(Axis(1), head).mapv(f64::from)
}

#[test]
fn pooled_queries_are_the_slow_ones() {
    let (q, k, v) = (heads(13, 4, 6, 1), heads(13, 2, 6, 2), heads(13, 2, 5, 3));
    let groups = TokenMap::runs(&[4, 4, 4, 1]).unwrap();
    let ours = pooled_attention(q.view(), k.view(), v.view(), &groups).unwrap();
    assert_eq!(ours.dim(), (4, 4, 5));
    for h in 0..4 {
        let q = head(&q, h);
        let pooled = Array2::from_shape_fn((4, 6), |(g, c)| {
            let rows = 4 * g..(4 * g + 4).min(13);
            q.slice(s![rows, c]).mean().unwrap()
        });
        let (_, slow) = attention(&pooled, &head(&k, h / 2), &head(&v, h / 2), |_, _| true);
        assert_near(ours.index_axis(Axis(1), h), slow.mapv(|v| v as f32).view(), 1e-5);
    }
    // Queries are pooled, not what comes out: not the mean of the outputs.
    let each = TokenMap::identity(13);
    let all = pooled_attention(q.view(), k.view(), v.view(), &each).unwrap();
    let mean = groups.merge(all.view(), None).unwrap();
    assert!(mean.iter().zip(&ours).any(|(a, b)| (a - b).abs() > 0.05));
    let wrong = |q: &Array3<f32>, k: &Array3<f32>, v: &Array3<f32>| {
        pooled_attention(q.view(), k.view(), v.view(), &groups).unwrap_err().kind()
    };
    assert_eq!(wrong(&q, &heads(13, 3, 6, 1), &v), ErrorKind::ShapeMismatch);
    assert_eq!(wrong(&q, &k, &heads(12, 2, 5, 3)), ErrorKind::ShapeMismatch);
    assert_eq!(wrong(&heads(12, 4, 6, 1), &k, &v), ErrorKind::ShapeMismatch);
    assert_eq!(wrong(&q, &(&k * f32::INFINITY), &v), ErrorKind::Numerical);
    assert_eq!(wrong(&q, &heads(0, 2, 6, 1), &heads(0, 2, 5, 1)), ErrorKind::InvalidArgument);
}

#[test]
fn grids_are_regrouped_and_back() {
    let shape = SpaceToChannel::new(4, 6).unwrap();
    let x = values(24, 3, 11);
    let wide = shape.gather(x.view()).unwrap();
    assert_eq!((wide.dim(), shape.tokens()), ((6, 12), [24, 6]));
    // The second window of the first row: columns 2 and 3.
    for (place, token) in [2, 3, 8, 9].into_iter().enumerate() {
        assert_eq!(wide.slice(s![1, 3 * place..3 * place + 3]), x.row(token));
    }
    assert_eq!(shape.scatter(wide.view()).unwrap(), x);
    let places = grid(4, 6, 1);
    let windows = pool_windows(24, &TokenHints::default().with_places(&places), [2, 2]).unwrap();
    assert_eq!(shape.mean(x.view()).unwrap(), windows.merge(x.view(), None).unwrap());
    assert!(SpaceToChannel::new(5, 6).is_err() && shape.with_window(0, 1).is_err());
    assert!(shape.gather(values(23, 3, 1).view()).is_err());
    assert!(shape.scatter(values(6, 10, 1).view()).is_err());
    let tall = SpaceToChannel::new(4, 6).unwrap().with_window(4, 3).unwrap();
    assert_eq!(tall.scatter(tall.gather(x.view()).unwrap().view()).unwrap(), x);
}

/// What sets it apart: the mean passes by. A projection of nothing gives the mean, and a fit has but the rest to say.
#[test]
fn windows_are_projected_beside_their_mean() {
    let shape = SpaceToChannel::new(20, 20).unwrap();
    let x = values(400, 3, 12);
    let mut nothing =
        LinearMap::fit(values(20, 12, 1).view(), Array2::zeros((20, 3)).view(), 1e-6).unwrap();
    nothing.weight.fill(0.0);
    assert_eq!(shape.compress(x.view(), &nothing).unwrap(), shape.mean(x.view()).unwrap());
    let planted = values(3, 12, 13);
    let target = shape.gather(x.view()).unwrap().dot(&planted.t()) + shape.mean(x.view()).unwrap();
    let fitted = shape.fit(x.view(), target.view(), 1e-9).unwrap();
    assert_near(fitted.weight.view(), planted.view(), 1e-3);
    assert_near(shape.compress(x.view(), &fitted).unwrap().view(), target.view(), 1e-3);
    let narrow = LinearMap::fit(values(20, 12, 1).view(), values(20, 2, 1).view(), 1e-6).unwrap();
    assert_eq!(shape.compress(x.view(), &narrow).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    assert!(shape.fit(x.view(), values(100, 2, 1).view(), 1e-6).is_err());
}

/// GMSA: groups of r averaged, and a map that is the least of its objective: no step from it goes down.
#[test]
fn alignment_is_the_least() {
    let x = clustered(120, 8, 21);
    let groups = TokenMap::runs(&[4; 30]).unwrap();
    let summaries = groups.merge(x.view(), None).unwrap();
    let slow =
        Array2::from_shape_fn((30, 8), |(g, c)| x.slice(s![4 * g..4 * g + 4, c]).mean().unwrap());
    assert_near(summaries.view(), slow.view(), 1e-5);
    assert_eq!(groups, Pooling::new().plan(x.view(), &TokenHints::default(), 30).unwrap());
    let target = values(30, 5, 22);
    let ridge = 0.05;
    let map = LinearMap::fit(summaries.view(), target.view(), ridge).unwrap();
    let mean = summaries.mean_axis(Axis(0)).unwrap();
    let spread = (&summaries - &mean).mapv(|v| f64::from(v).powi(2)).sum() / 8.0;
    let objective = |weight: &Array2<f32>, bias: &Array1<f32>| {
        let off = summaries.dot(&weight.t()) + bias - &target;
        let squares = |a: &Array2<f32>| a.mapv(|v| f64::from(v).powi(2)).sum();
        squares(&off) + ridge * spread * squares(weight)
    };
    let least = objective(&map.weight, &map.bias);
    for i in 0..40 {
        for step in [0.02, -0.02] {
            let mut weight = map.weight.clone();
            weight[[i / 8, i % 8]] += step;
            assert!(objective(&weight, &map.bias) > least);
            let mut bias = map.bias.clone();
            bias[i % 5] += step;
            assert!(objective(&map.weight, &bias) > least);
        }
    }
    assert_near(
        map.align(summaries.view()).unwrap().view(),
        (summaries.dot(&map.weight.t()) + &map.bias).view(),
        0.0,
    );
    let kind = |x: &Array2<f32>, y: &Array2<f32>, ridge| {
        LinearMap::fit(x.view(), y.view(), ridge).unwrap_err().kind()
    };
    assert_eq!(kind(&summaries, &values(29, 5, 1), 1.0), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&summaries, &target, 0.0), ErrorKind::InvalidArgument);
    assert_eq!(kind(&values(0, 3, 1), &values(0, 2, 1), 1.0), ErrorKind::InvalidArgument);
    assert_eq!(kind(&(&summaries * f32::NAN), &target, 1.0), ErrorKind::Numerical);
    assert!(map.align(values(3, 7, 1).view()).is_err());
}

/// LeMo: attention received, by blocks; what is above a threshold takes part, the rest passes by.
#[test]
fn informative_tokens_take_part() {
    let (q, k) = (heads(37, 4, 8, 31), heads(37, 2, 8, 32));
    for block in [5, 16, 37, 100] {
        let ours = informativeness(q.view(), k.view(), block).unwrap();
        let mut p = Array2::<f64>::zeros((37, 37));
        for h in 0..4 {
            let v = Array2::zeros((37, 1));
            p = p + attention(&head(&q, h), &head(&k, h / 2), &v, |i, j| j <= i).0 / 4.0;
        }
        for (j, ours) in ours.iter().enumerate() {
            let blocks = (0..37usize).step_by(block).filter_map(|start| {
                let rows = start.max(j)..(start + block).min(37);
                (!rows.is_empty()).then(|| p.slice(s![rows, j]).mean().unwrap())
            });
            let slow = blocks.fold(0.0, f64::max);
            assert!((ours - slow).abs() < 1e-9, "{block} {j}: {ours} {slow}");
        }
    }
    let x = values(37, 8, 33);
    let scores = informativeness(q.view(), k.view(), 8).unwrap();
    let threshold = scores[17];
    let map = informative(&scores, threshold, &[0, 36]).unwrap();
    let stays = |t: usize| scores[t] >= threshold || t == 0 || t == 36;
    assert!((0..37).all(|t| map.target(t).is_some() == stays(t)));
    assert!(map.dropped() > 5 && map.target(17).is_some());
    // y = what the layer makes of those that take part, and x itself where they do not; a gradient goes the same ways.
    let layer = |x: &Array2<f32>| {
        let made = map.merge(x.view(), None).unwrap().mapv(f32::tanh);
        map.unmerge_onto(made.view(), x.view()).unwrap()
    };
    let (before, after) = (x.clone(), layer(&x));
    (0..37).filter(|t| !stays(*t)).for_each(|t| assert_eq!(before.row(t), after.row(t)));
    let weights = values(37, 8, 34);
    let slope = map.merge(x.view(), None).unwrap().mapv(|v| 1.0 - v.tanh().powi(2));
    let through = map.merge(weights.view(), None).unwrap() * slope;
    let gradient = map.unmerge_onto(through.view(), weights.view()).unwrap();
    for (t, c) in [(0, 0), (17, 3), (36, 7), (5, 2), (20, 4), (21, 1)] {
        let loss = |step: f32| {
            let mut x = x.clone();
            x[[t, c]] += step;
            (layer(&x) * &weights).mapv(f64::from).sum()
        };
        let numeric = (loss(1e-2) - loss(-1e-2)) / 2e-2;
        assert!((numeric - f64::from(gradient[[t, c]])).abs() < 2e-3, "{t} {c}");
    }
    assert_eq!(informative(&scores, 2.0, &[]).unwrap().targets(), 0);
    assert!(
        informative(&[f64::NAN], 0.0, &[]).is_err() && informative(&scores, 0.0, &[37]).is_err()
    );
    assert!(informativeness(q.view(), k.view(), 0).is_err());
    assert!(informativeness(q.view(), heads(36, 2, 8, 1).view(), 4).is_err());
    let bad = &k * f32::NAN;
    assert_eq!(informativeness(q.view(), bad.view(), 4).unwrap_err().kind(), ErrorKind::Numerical);
}

/// FastHMR's layers: the pair of least error, found again after each merging, within the bound.
#[test]
fn layers_merge_within_a_bound() {
    // Layers of these weights; a merged one has their mean, and costs what it is off.
    let weights = [1.0f64, 1.1, 3.0, 3.2, 3.3, 9.0, 9.05];
    let error = |groups: &[Range<usize>]| {
        let off = groups.iter().map(|g| {
            let mean = weights[g.clone()].iter().sum::<f64>() / g.len() as f64;
            weights[g.clone()].iter().map(|w| (w - mean).powi(2)).sum::<f64>()
        });
        Ok(off.sum())
    };
    let merged = merge_layers(7, 0.06, error).unwrap();
    assert_eq!(merged.groups, [0..2, 2..5, 5..7]);
    assert!((merged.error - error(&merged.groups).unwrap()).abs() < 1e-12 && merged.error <= 0.06);
    assert_eq!(merged.asked, 1 + 6 + 5 + 4 + 3 + 2, "the last round found none within the bound");
    // Not what single pairs would say: alone 3..5 costs least of the middle, with it 2..3 does no longer.
    assert_eq!(merge_layers(7, 0.0, error).unwrap().groups.len(), 7);
    let whole = merge_layers(7, 1e9, error).unwrap().groups;
    assert_eq!((whole.len(), whole[0].clone()), (1, 0..7));
    assert_eq!(merge_layers(0, 1.0, error).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(merge_layers(2, 1.0, |_| Ok(f64::NAN)).unwrap_err().kind(), ErrorKind::Numerical);
}

/// KARL: the fewest tokens that are good enough, as looking at every number finds them.
#[test]
fn the_fewest_tokens_are_enough() {
    let x = clustered(60, 10, 41);
    let hints = TokenHints::default().with_protected(&[3]);
    for method in [&ToMe::new() as &dyn TokenReduce, &DivPrune::new(), &Pooling::new()] {
        for error in [0.0, 0.05, 0.2, 0.5, 0.9, 2.0] {
            let found = fewest_tokens(method, x.view(), &hints, error).unwrap();
            let at = |keep: usize| {
                let reduced = method.reduce(x.view(), &hints, keep).unwrap();
                reconstruction_error(x.view(), &reduced.map, reduced.states.view()).unwrap()
            };
            let keep = found.map.targets();
            assert!(at(keep) <= error, "{}", method.id());
            assert!(keep == 2 || at(keep - 1) > error, "{} {error}: {keep}", method.id());
        }
    }
    // An image of less takes fewer.
    let mut plain = x.clone();
    (10..60).for_each(|t| {
        let first = x.row(9).to_owned();
        plain.row_mut(t).assign(&first);
    });
    let tokens = |x: &Array2<f32>| {
        fewest_tokens(&ToMe::new(), x.view(), &hints, 0.01).unwrap().map.targets()
    };
    assert!(tokens(&plain) + 10 < tokens(&x), "{} {}", tokens(&plain), tokens(&x));
    assert!(fewest_tokens(&ToMe::new(), x.view(), &hints, f64::NAN).is_err());
    let map = TokenMap::keep(60, &[0]).unwrap();
    let first = map.merge(x.view(), None).unwrap();
    let square = |x: &Array2<f32>| x.mapv(|v| f64::from(v).powi(2)).sum();
    let lost = 1.0 - square(&first) / square(&x);
    assert!((reconstruction_error(x.view(), &map, first.view()).unwrap() - lost).abs() < 1e-9);
}

/// LangDC's rule: tokens follow density.
#[test]
fn budgets_follow_density() {
    // Four directions of one variance, whichever Gram matrix is the smaller; one direction; none.
    let even = |n: usize, d: usize| {
        Array2::from_shape_fn(
            (n, d),
            |(t, c)| if t % 8 / 2 == c { 1.0 - (t % 2) as f32 * 2.0 } else { 0.0 },
        )
    };
    assert!((semantic_density(even(16, 6).view()).unwrap() - 4.0).abs() < 1e-9);
    assert!((semantic_density(even(8, 20).view()).unwrap() - 4.0).abs() < 1e-9);
    let line = Array2::from_shape_fn((9, 4), |(t, c)| t as f32 * (c as f32 - 1.0) + 5.0);
    assert!((semantic_density(line.view()).unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(semantic_density(Array2::ones((5, 3)).view()).unwrap(), 0.0);
    assert_eq!(semantic_density(Array2::ones((0, 3)).view()).unwrap(), 0.0);
    assert_eq!(density_budgets(&[4.0, 1.0, 3.0], &[50, 50, 50], 40, 0).unwrap(), [20, 5, 15]);
    assert_eq!(density_budgets(&[4.0, 1.0, 3.0], &[16, 50, 50], 40, 8).unwrap(), [16, 8, 16]);
    let mut random = SplitMix::new(4);
    for _ in 0..200 {
        let densities: Vec<f64> = (0..5).map(|_| random.next_f64()).collect();
        let found = density_budgets(&densities, &[1000; 5], 900, 2).unwrap();
        let sum: f64 = densities.iter().sum();
        assert_eq!(found.iter().sum::<usize>(), 900);
        let near = |(n, d): (&usize, &f64)| (*n as f64 - 900.0 * d / sum).abs() < 3.0;
        assert!(found.iter().zip(&densities).all(near), "{found:?} {densities:?}");
    }
    assert!(density_budgets(&[1.0], &[5, 5], 3, 0).is_err());
    assert!(density_budgets(&[1.0, f64::NAN], &[5, 5], 3, 0).is_err());
    let error = density_budgets(&[1.0, 1.0], &[5, 5], 3, 2).unwrap_err();
    assert!(error.to_string().contains("allowed are 4 to 10"), "{error}");
}
