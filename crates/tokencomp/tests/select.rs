//! Methods that keep tokens, against slow ones written from their formulae.

mod common;

use common::{clustered, cosine, kept, ranked, remainders, values};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tokencomp::{
    Crops, EfficientVla, GlobalCom2, Place, RandomKeep, SubmodularSelect, TokenCorr, TokenHints,
    TokenReduce, grid, knn_graph, relevance,
};

#[test]
fn token_corr_is_the_slow_one() {
    let (n, keep) = (90, 40);
    let x = clustered(n, 24, 3);
    let attention: Vec<f32> = values(n, 1, 4).iter().copied().collect();
    let of: Vec<usize> = (0..n).map(|t| t / 30).collect();
    let hints = TokenHints::default().with_class_attention(&attention).with_crops(Crops::new(&of));
    let method = TokenCorr::default().with_threshold(0.75).with_neighbours(4);
    let mut weights = Vec::new();
    for crop in 0..3 {
        let tokens = || (0..n).filter(|t| of[*t] == crop);
        let redundant = tokens().filter(|a| {
            tokens().filter(|b| a != b && cosine(x.view(), *a, *b) > 0.75).count() >= 4
        });
        weights.push(30.0 - redundant.count() as f64);
    }
    assert!(weights.iter().all(|w| *w > 0.0 && *w < 30.0), "{weights:?}");
    let natural = method.natural_keep(x.view(), &hints).unwrap();
    assert_eq!(natural as f64, weights.iter().sum::<f64>());
    let mut slow = Vec::new();
    for (crop, count) in remainders(&weights, keep).into_iter().enumerate() {
        let scores: Vec<f64> = (0..30).map(|i| f64::from(attention[crop * 30 + i])).collect();
        slow.extend(ranked(&scores)[..count].iter().map(|i| crop * 30 + i));
    }
    slow.sort_unstable();
    assert_eq!(kept(&method.plan(x.view(), &hints, keep).unwrap()), slow);
}

/// What sets it apart from attention alone: of two crops, the one that repeats keeps less, though it is looked at more.
#[test]
fn crops_that_repeat_keep_few() {
    let mut x = values(40, 16, 5);
    let first = x.row(0).to_owned();
    (0..20).for_each(|t| x.row_mut(t).scaled_add(9.0, &first));
    let attention: Vec<f32> = (0..40).map(|t| 40.0 - t as f32).collect();
    let of: Vec<usize> = (0..40).map(|t| t / 20).collect();
    let hints = TokenHints::default().with_attention(&attention).with_crops(Crops::new(&of));
    let method = TokenCorr::default();
    let map = method.plan(x.view(), &hints, 20).unwrap();
    assert_eq!(kept(&map), (20..40).collect::<Vec<_>>());
    assert_eq!(method.natural_keep(x.view(), &hints).unwrap(), 20);
    // More than the dense crop has: the other takes the rest, its best first.
    let map = method.plan(x.view(), &hints, 23).unwrap();
    assert_eq!(kept(&map), [vec![0, 1, 2], (20..40).collect::<Vec<_>>()].concat());
}

/// A thumbnail of 4 x 4 and four crops of 4 x 4, written with whole matrices.
#[test]
fn globalcom2_is_the_slow_one() {
    let mut of = vec![0; 16];
    (1..5).for_each(|crop| of.extend([crop; 16]));
    let places: Vec<Option<Place>> = grid(4, 4, 5);
    let attention: Vec<f32> = values(80, 1, 8).iter().map(|v| v.abs()).collect();
    let crops = Crops::new(&of).with_thumbnail(0, [2, 2]);
    let hints = TokenHints::default()
        .with_class_attention(&attention)
        .with_places(&places)
        .with_crops(crops);
    let x = values(80, 3, 9);
    for (keep, temperature) in [(20, 10.0), (40, 0.5), (55, 5.0)] {
        let thumbnail = Array2::from_shape_fn((4, 4), |(r, c)| f64::from(attention[4 * r + c]));
        let wide = |r: usize, c: usize| {
            // Half pixels: the tent of each of the four rows and columns, borders repeated.
            let tent = |at: usize, of: usize| {
                let at = ((at as f64 + 0.5) / 2.0 - 0.5).clamp(0.0, 3.0);
                (1.0 - (at - of as f64).abs()).max(0.0)
            };
            thumbnail.indexed_iter().map(|((a, b), v)| tent(r, a) * tent(c, b) * v).sum::<f64>()
        };
        let share = keep as f64 / 80.0;
        let sums: Vec<f64> = (0..4)
            .map(|i| thumbnail.slice(s![i / 2 * 2..i / 2 * 2 + 2, i % 2 * 2..i % 2 * 2 + 2]).sum())
            .collect();
        let powers: Vec<f64> = sums.iter().map(|s| (s / temperature).exp()).collect();
        let total: f64 = powers.iter().sum();
        let rates = powers.iter().map(|p| share * (1.0 + p / total - 0.25));
        let mut weights = vec![16.0 * share];
        weights.extend(rates.map(|rate| {
            assert!(rate < 1.0);
            rate * 16.0
        }));
        let counts = remainders(&weights, keep);
        let mut slow: Vec<usize> = Vec::new();
        let own: Vec<f64> = thumbnail.iter().copied().collect();
        slow.extend(&ranked(&own)[..counts[0]]);
        for crop in 1..5 {
            let (down, right) = ((crop - 1) / 2 * 4, (crop - 1) % 2 * 4);
            let global: Vec<f64> = (0..16).map(|i| wide(down + i / 4, right + i % 4)).collect();
            let local: Vec<f64> = (0..16).map(|i| f64::from(attention[crop * 16 + i])).collect();
            let length = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
            let both = local.iter().zip(&global);
            let scores: Vec<f64> =
                both.map(|(l, g)| l / length(&local) + g / length(&global)).collect();
            slow.extend(ranked(&scores)[..counts[crop]].iter().map(|i| crop * 16 + i));
        }
        slow.sort_unstable();
        let method = GlobalCom2::default().with_temperature(temperature);
        assert_eq!(kept(&method.plan(x.view(), &hints, keep).unwrap()), slow, "{keep}");
        assert!(counts[1..].iter().any(|c| *c != counts[1]) || temperature > 1.0, "{counts:?}");
    }
}

/// What sets it apart: the thumbnail decides how much a crop keeps, and which of its tokens.
#[test]
fn the_thumbnail_guides() {
    let mut of = vec![0; 4];
    (1..5).for_each(|crop| of.extend([crop; 4]));
    let places = grid(2, 2, 5);
    let mut attention = vec![1.0; 20];
    attention[..4].copy_from_slice(&[0.0, 0.0, 0.0, 60.0]); // the last crop
    let hints = TokenHints::default()
        .with_class_attention(&attention)
        .with_places(&places)
        .with_crops(Crops::new(&of).with_thumbnail(0, [2, 2]));
    let map = GlobalCom2::default().plan(values(20, 2, 1).view(), &hints, 10).unwrap();
    let counts = |crop: usize| kept(&map).iter().filter(|t| of[**t] == crop).count();
    assert_eq!((counts(0), counts(4)), (2, 3), "{map:?}");
    assert_eq!((1..4).map(counts).sum::<usize>(), 5);
    // A share above 1 is all of the crop.
    let more = GlobalCom2::default().plan(values(20, 2, 1).view(), &hints, 12).unwrap();
    assert_eq!(kept(&more).iter().filter(|t| of[**t] == 4).count(), 4);
    // Of alike tokens those nearest to what it sees: the middle of the picture's lower right.
    let upper = kept(&map).into_iter().filter(|t| of[*t] == 2 || of[*t] == 3).collect::<Vec<_>>();
    assert!(upper.contains(&10) || upper.contains(&11), "{upper:?}");
    let none = hints.with_crops(Crops::new(&of));
    let error = GlobalCom2::default().plan(values(20, 2, 1).view(), &none, 10).unwrap_err();
    assert!(error.to_string().contains("crops with a thumbnail"), "{error}");
}

#[test]
fn efficient_vla_is_the_slow_one() {
    let x = clustered(60, 12, 6);
    let relevance: Vec<f32> = values(60, 1, 7).iter().copied().collect();
    let protected = [0, 59];
    let hints = TokenHints::default().with_relevance(&relevance).with_protected(&protected);
    let method = EfficientVla::default().with_key(0.25).with_alpha(0.4);
    let mut scores: Vec<f64> = relevance.iter().map(|r| f64::from(*r)).collect();
    protected.iter().for_each(|t| scores[*t] = f64::INFINITY);
    // 20 beside the two: 5 by relevance, 6 of the other 15 too, then 9 far from all.
    let mut slow = ranked(&scores)[..13].to_vec();
    while slow.len() < 22 {
        let near = |t: usize| slow.iter().map(|k| cosine(x.view(), t, *k)).fold(-2.0, f64::max);
        let far =
            (0..60).filter(|t| !slow.contains(t)).min_by(|a, b| near(*a).total_cmp(&near(*b)));
        slow.push(far.expect("one is left"));
    }
    slow.sort_unstable();
    assert_eq!(kept(&method.plan(x.view(), &hints, 22).unwrap()), slow);
    // What sets it apart from relevance alone: copies of the best are not kept.
    let mut x = values(12, 8, 2);
    for copy in 1..6 {
        let first = x.row(0).to_owned();
        x.row_mut(copy).assign(&first);
    }
    let relevance: Vec<f32> = (0..12).map(|t| 12.0 - t as f32).collect();
    let hints = TokenHints::default().with_relevance(&relevance);
    let map =
        EfficientVla::default().with_key(0.0).with_alpha(0.25).plan(x.view(), &hints, 4).unwrap();
    let kept = kept(&map);
    assert_eq!(kept[0], 0);
    assert!(kept[1..].iter().all(|t| *t > 5), "{kept:?}");
}

/// F of a choice, all at once.
fn coverage(x: &Array2<f32>, weights: &[f64], chosen: &[usize], lambda: f64) -> f64 {
    let near = |i: usize| chosen.iter().map(|s| 1.0 + cosine(x.view(), i, *s)).fold(0.0, f64::max);
    let covered: f64 = weights.iter().enumerate().map(|(i, w)| w * near(i)).sum();
    let pairs =
        chosen.iter().enumerate().flat_map(|(i, a)| chosen[..i].iter().map(move |b| (a, b)));
    covered + lambda * pairs.map(|(a, b)| 1.0 - cosine(x.view(), *a, *b)).sum::<f64>()
}

#[test]
fn lazy_greedy_is_greedy() {
    for (seed, lambda) in [(1, 0.0), (2, 0.1), (3, 2.0), (4, 30.0)] {
        let x = clustered(50, 10, seed);
        let relevance: Vec<f32> = values(50, 1, seed + 9).iter().map(|v| v + 1.0).collect();
        let mean = relevance.iter().map(|r| f64::from(r.max(0.0))).sum::<f64>() / 50.0;
        let weights: Vec<f64> = relevance.iter().map(|r| f64::from(r.max(0.0)) / mean).collect();
        let mut slow = vec![17];
        while slow.len() < 14 {
            let with = |t: usize| coverage(&x, &weights, &[&slow[..], &[t]].concat(), lambda);
            let scores: Vec<f64> = (0..50)
                .map(|t| if slow.contains(&t) { f64::NEG_INFINITY } else { with(t) })
                .collect();
            slow.push(ranked(&scores)[0]);
        }
        let hints = TokenHints::default().with_relevance(&relevance).with_protected(&[17]);
        let method = SubmodularSelect::default().with_lambda(lambda);
        assert_eq!(method.order(x.view(), &hints, 14).unwrap(), slow, "lambda {lambda}");
    }
}

/// What sets it apart from the nearest: of two groups, the larger and nearer does not take all places; and diversity leaves
/// the middle.
#[test]
fn coverage_goes_where_nearness_does_not() {
    let mut x = Array2::zeros((12, 6));
    (0..8).for_each(|t| x[[t, 0]] = 1.0);
    (0..8).for_each(|t| x[[t, 2 + t % 4]] = 0.1);
    (8..12).for_each(|t| x[[t, 1]] = 1.0);
    let query = x.row(0).to_owned();
    let near = relevance(x.view(), query.view()).unwrap();
    assert!(near[7] > 0.9 && near[8] == 0.0);
    let map = SubmodularSelect::default().plan(x.view(), &TokenHints::default(), 2).unwrap();
    let kept = kept(&map);
    assert!(kept[0] < 8 && kept[1] >= 8, "{kept:?}");
    let spread = |lambda| {
        let x = clustered(80, 12, 11);
        let method = SubmodularSelect::default().with_lambda(lambda);
        let chosen = method.order(x.view(), &TokenHints::default(), 10).unwrap();
        coverage(&x, &[], &chosen, 1.0)
    };
    assert!(spread(10.0) > spread(0.0));
    let x = clustered(80, 12, 11);
    let covers = |chosen: &[usize]| coverage(&x, &[1.0; 80], chosen, 0.0);
    let ours = SubmodularSelect::default().plan(x.view(), &TokenHints::default(), 10).unwrap();
    let random = RandomKeep::new(1).plan(x.view(), &TokenHints::default(), 10).unwrap();
    assert!(covers(&self::kept(&ours)) > covers(&self::kept(&random)));
}

#[test]
fn pagerank_is_the_fixed_point() {
    let x = clustered(40, 8, 12);
    let graph = knn_graph(x.view(), 5).unwrap();
    for (i, neighbours) in graph.neighbours.iter().enumerate() {
        let cosines: Vec<f64> = (0..40)
            .map(|j| if i == j { f64::NEG_INFINITY } else { cosine(x.view(), i, j) })
            .collect();
        let best: Vec<usize> = ranked(&cosines)[..5].to_vec();
        assert_eq!(neighbours.iter().map(|(to, _)| *to).collect::<Vec<_>>(), best);
        let sum: f64 = best.iter().map(|j| cosines[*j]).sum();
        assert!(neighbours.iter().all(|(to, w)| (w - cosines[*to] / sum).abs() < 1e-6));
    }
    let seeds: Vec<f32> = (0..40).map(|i| (i % 3) as f32).collect();
    let (damping, total) = (0.85, seeds.iter().sum::<f32>());
    let scores = graph.spread(&seeds, damping, 300).unwrap();
    assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    for (i, score) in scores.iter().enumerate() {
        let flown: f64 = (0..40)
            .flat_map(|j| graph.neighbours[j].iter().map(move |edge| (j, edge)))
            .filter(|(_, edge)| edge.0 == i)
            .map(|(j, edge)| f64::from(scores[j]) * edge.1)
            .sum();
        let fixed = (1.0 - damping) * f64::from(seeds[i] / total) + damping * flown;
        assert!((f64::from(*score) - fixed).abs() < 1e-6, "{i}");
    }
    // One hop by hand, and weights that reach the choice.
    let pair =
        knn_graph(Array2::from_shape_fn((3, 2), |(r, c)| f32::from(r / 2 == c)).view(), 1).unwrap();
    assert_eq!(pair.spread(&[1.0, 0.0, 1.0], 0.5, 1).unwrap(), [0.375, 0.25, 0.375]);
    let method = SubmodularSelect::default();
    let hints = TokenHints::default().with_relevance(&seeds);
    let spread = method.clone().with_graph(5, 0.85, 3).order(x.view(), &hints, 12).unwrap();
    assert_ne!(spread, method.order(x.view(), &hints, 12).unwrap());
    let kind = |seeds: &[f32], damping| graph.spread(seeds, damping, 1).unwrap_err().kind();
    assert_eq!(kind(&seeds[1..], 0.5), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&seeds, 1.5), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[-1.0; 40], 0.5), ErrorKind::InvalidArgument);
    assert!(knn_graph(x.view(), 0).is_err());
}
