//! Methods that merge tokens, against slow ones written from their formulae.

mod common;

use common::{assert_near, clustered, cosine, kept, ranked, values};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tokencomp::layers::SignCodes;
use tensorpress_tokencomp::{
    ConceptChunk, GeometryMerge, MaskGuidedToMe, MigMerge, Place, QueryPooling, Reuse,
    TemporalMerge, ToMe, TokenHints, TokenMap, TokenReduce, grid, pixel_gradient, pool_windows,
};

#[test]
fn gradients_are_sobels() {
    // A ramp: 8 times the slope in the middle, half of it at borders that repeat.
    let ramp = Array2::from_shape_fn((8, 8), |(r, c)| 0.5 * r as f32 + 0.25 * c as f32);
    let found = pixel_gradient(ramp.view(), 2).unwrap();
    let whole = 8.0 * 0.5f32.hypot(0.25);
    assert!((found[5] - whole).abs() < 1e-5, "{found:?}");
    let across = Array2::from_shape_fn((4, 4), |(_, c)| c as f32);
    assert_eq!(pixel_gradient(across.view(), 2).unwrap(), [6.0; 4]); // (4 + 8) / 2
    assert!(pixel_gradient(ramp.view(), 3).is_err());
    assert!(pixel_gradient((&ramp * f32::NAN).view(), 2).is_err());
}

/// Two frames of 6 x 6, and how the method is put together.
#[test]
fn geometry_merging_is_the_slow_one() {
    let (n, keep) = (73usize, 30);
    let mut places = vec![None];
    places.extend(grid(6, 6, 2));
    let frames: Vec<usize> = (0..n).map(|t| t.saturating_sub(1) / 36).collect();
    let saliency: Vec<f32> = values(n, 1, 2).iter().map(|v| v.abs()).collect();
    let x = clustered(n, 9, 21);
    let hints = TokenHints::default()
        .with_protected(&[0])
        .with_places(&places)
        .with_frames(&frames)
        .with_saliency(&saliency);
    let mut variance = vec![0.0f64; n];
    for t in 1..n {
        let [row, col] = places[t].unwrap();
        let near = |u: &usize| {
            *u > 0 && frames[*u] == frames[t] && {
                let [r, c] = places[*u].unwrap();
                r.abs_diff(row) <= 1 && c.abs_diff(col) <= 1
            }
        };
        let near: Vec<usize> = (0..n).filter(near).collect();
        for channel in 0..9 {
            let sum =
                |power| near.iter().map(|u| f64::from(x[[*u, channel]]).powi(power)).sum::<f64>();
            let k = near.len() as f64;
            variance[t] += (sum(2) / k - (sum(1) / k).powi(2)) / 9.0;
        }
    }
    let all: Vec<f64> = saliency.iter().map(|v| f64::from(*v)).collect();
    let scaled = |v: &[f64], t: usize| {
        let own: Vec<f64> = (0..n).filter(|u| frames[*u] == frames[t]).map(|u| v[u]).collect();
        let least = own.iter().copied().fold(f64::INFINITY, f64::min);
        let most = own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (v[t] - least) / (most - least)
    };
    let score = |t: usize| 0.3 * scaled(&variance, t) + 0.7 * scaled(&all, t);
    let geometry: Vec<f64> = (0..n).map(score).collect();
    let ours = GeometryMerge::default().geometry(x.view(), &hints).unwrap();
    assert!(ours.iter().zip(&geometry).all(|(a, b)| (a - b).abs() < 1e-6));

    // Of each frame's 36 a tenth stays: 3.
    let order: Vec<usize> = ranked(&geometry).into_iter().filter(|t| *t > 0).collect();
    let of =
        |frame: usize| order.iter().copied().filter(move |t| t.saturating_sub(1) / 36 == frame);
    let stay: Vec<usize> = of(0).take(3).chain(of(1).take(3)).collect();
    let mut flat: Vec<usize> = order.iter().copied().filter(|t| !stay.contains(t)).collect();
    flat.reverse();
    let stay = stay.len();
    // Cells of 2 x 2: 18 anchors, of which no more than 23 may be; each the flattest of its cell.
    let mut anchors: Vec<usize> = Vec::new();
    for t in &flat {
        let cell = |t: usize| (frames[t], places[t].map(|[r, c]| [r / 2, c / 2]));
        if !anchors.iter().any(|a| cell(*a) == cell(*t)) {
            anchors.push(*t);
        }
    }
    assert!(anchors.len() <= 29 - stay);
    let others: Vec<usize> = flat.iter().copied().filter(|t| !anchors.contains(t)).collect();
    let best = |t: usize| {
        let cosines: Vec<f64> = anchors.iter().map(|a| cosine(x.view(), t, *a)).collect();
        let at = ranked(&cosines)[0];
        (cosines[at], anchors[at])
    };
    let cosines: Vec<f64> = others.iter().map(|t| best(*t).0).collect();
    let mut root: Vec<usize> = (0..n).collect();
    for i in &ranked(&cosines)[..n - keep] {
        root[others[*i]] = best(others[*i]).1;
    }
    let map = GeometryMerge::default().plan(x.view(), &hints, keep).unwrap();
    for (a, b) in (0..n).flat_map(|a| (0..n).map(move |b| (a, b))) {
        assert_eq!(map.target(a) == map.target(b), root[a] == root[b], "{a} {b}");
    }
}

/// What sets it apart from ToMe: an edge stays, and the plan holds for layers that follow.
#[test]
fn edges_stay_and_plans_are_reused() {
    let places = grid(8, 8, 1);
    // Left dark, right bright: columns 3 and 4 are the edge. States nearly alike on both sides of it.
    let noise = values(64, 4, 3) * 1e-3;
    let bright = |t: usize| if t % 8 > 3 { 1.2 } else { 1.0 };
    let x = Array2::from_shape_fn((64, 4), |(t, c)| bright(t) * (1 + c) as f32 + noise[[t, c]]);
    let hints = TokenHints::default().with_places(&places);
    let method = GeometryMerge::default().with_protect(0.25);
    let map = method.plan(x.view(), &hints, 32).unwrap();
    let edge = (0..64).filter(|t| matches!(t % 8, 3 | 4));
    let alone = |t: &usize| map.counts()[map.target(*t).unwrap()] == 1;
    assert_eq!(edge.clone().filter(alone).count(), 16, "{map:?}");
    let plain = ToMe::new().plan(x.view(), &hints, 32).unwrap();
    assert!(edge.filter(|t| plain.counts()[plain.target(*t).unwrap()] == 1).count() < 16);
    let (mut asked, mut reuse) = (0, Reuse::every(3).unwrap());
    for layer in 0..7 {
        let plan = reuse.at(layer, || {
            asked += 1;
            method.plan(x.view(), &hints, 32)
        });
        assert_eq!(*plan.unwrap(), map);
    }
    assert_eq!(asked, 3, "layers 0, 3 and 6");
    reuse.clear();
    assert!(reuse.is_fresh(6));
    // What fails leaves what was held.
    let mut held = Reuse::every(2).unwrap();
    assert_eq!(*held.at(0, || Ok(5)).unwrap(), 5);
    assert!(held.at(2, || TokenMap::new(&[Some(1)], 1).map(|_| 6)).is_err());
    assert_eq!(*held.at(1, || Ok(7)).unwrap(), 5);
    assert!(Reuse::<u8>::every(0).is_err());
}

/// MIG among some tokens.
fn gains(x: &Array2<f32>, relevance: &[f32], tokens: &[usize]) -> Vec<f64> {
    let gain = |u: &usize| {
        let others = tokens.iter().filter(|v| *v != u).map(|v| cosine(x.view(), *u, *v));
        let most = others.fold(f64::NEG_INFINITY, f64::max);
        f64::from(relevance[*u]) - if most.is_finite() { most } else { 0.0 }
    };
    tokens.iter().map(gain).collect()
}

#[test]
fn mig_merging_is_the_slow_one() {
    let (n, keep) = (61, 13);
    let x = clustered(n, 10, 31);
    let relevance: Vec<f32> = values(n, 1, 32).iter().map(|v| v * 0.4).collect();
    let hints = TokenHints::default().with_relevance(&relevance).with_protected(&[20]);
    let free: Vec<usize> = (0..n).filter(|t| *t != 20).collect();
    // 60 tokens in 12 groups of 5.
    let lead = |group: &[usize]| {
        let scores: Vec<f64> = group.iter().map(|t| f64::from(relevance[*t])).collect();
        group[ranked(&scores)[0]]
    };
    let leads: Vec<usize> = free.chunks(5).map(lead).collect();
    let weights: Vec<f64> = gains(&x, &relevance, &leads).iter().map(|g| (-g).exp()).collect();
    let lengths = common::remainders(&weights, 60);
    assert!(lengths.iter().all(|l| *l > 0) && lengths.iter().any(|l| *l != 5), "{lengths:?}");
    let reduced = MigMerge::new().reduce(x.view(), &hints, keep).unwrap();
    let groups = reduced.map.groups(n).unwrap();
    let mut at = 0;
    let slow = lengths.iter().map(|length| {
        at += length;
        free[at - length..at].to_vec()
    });
    let mut slow: Vec<Vec<usize>> = slow.collect();
    slow.push(vec![20]);
    slow.sort_by_key(|group| group[0]);
    assert_eq!(groups, slow);
    for (target, group) in groups.iter().enumerate() {
        let weights: Vec<f64> = gains(&x, &relevance, group).iter().map(|g| g.exp()).collect();
        let sum: f64 = weights.iter().sum();
        for c in 0..10 {
            let values = group.iter().zip(&weights).map(|(t, w)| w / sum * f64::from(x[[*t, c]]));
            let mean = values.sum::<f64>();
            assert!((f64::from(reduced.states[[target, c]]) - mean).abs() < 1e-5);
        }
    }
}

/// What sets it apart: what answers is cut finely, and of what repeats the answer weighs most.
#[test]
fn groups_are_short_where_the_answer_is() {
    let mut x = values(40, 12, 33);
    let relevance: Vec<f32> =
        (0..40).map(|t| if (8..12).contains(&t) { 1.0 } else { -0.5 }).collect();
    let hints = TokenHints::default().with_relevance(&relevance);
    let map = MigMerge::new().plan(x.view(), &hints, 10).unwrap();
    let lengths = map.counts();
    let shortest = (0..10).min_by_key(|g| lengths[*g]).unwrap();
    assert_eq!(shortest, 2, "{lengths:?}");
    let same = x.row(0).to_owned();
    (0..4).for_each(|t| x.row_mut(t).assign(&same));
    let relevance = [0.0, 0.9, 0.0, 0.0].map(|v: f32| v);
    let hints = TokenHints::default().with_relevance(&relevance);
    let four = x.select(Axis(0), &[0, 1, 2, 3]);
    let map = MigMerge::new().plan(four.view(), &hints, 1).unwrap();
    let weights = MigMerge::new().weights(four.view(), &hints, &map).unwrap().unwrap();
    assert!((weights[0] / weights[1] - (-0.9f32).exp()).abs() < 1e-6, "{weights:?}");
}

#[test]
fn concept_chunks_are_the_slow_ones() {
    let (n, keep) = (50, 12);
    let x = clustered(n, 8, 41);
    let (wq, wk) = (values(6, 8, 42), values(6, 8, 43));
    let method = ConceptChunk::new().with_projections(wq.clone(), wk.clone()).unwrap();
    let stacked = |t: usize| {
        let pair = [x.row(t - 1).dot(&wq.t()), x.row(t).dot(&wk.t())];
        Array2::from_shape_fn((2, 6), |(r, c)| pair[r][c])
    };
    let mut slow = vec![1.0];
    slow.extend((1..n).map(|t| (1.0 - cosine(stacked(t).view(), 0, 1)) / 2.0));
    let scores = method.boundary_scores(x.view()).unwrap();
    assert!(scores.iter().zip(&slow).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
    let begins = |map: &TokenMap| map.firsts();
    let mut best = ranked(&slow)[..keep].to_vec();
    best.sort_unstable();
    let map = method.plan(x.view(), &TokenHints::default(), keep).unwrap();
    assert_eq!(begins(&map), best, "cut where tokens differ most");
    assert!((1..n).all(|t| map.target(t) >= map.target(t - 1)));
    let chunks = method.chunks(x.view(), 0.5).unwrap();
    let above: Vec<usize> = (0..n).filter(|t| slow[*t] >= 0.5).collect();
    assert_eq!(begins(&chunks), above);
    assert!(method.plan(values(9, 7, 1).view(), &TokenHints::default(), 3).is_err());
    assert!(ConceptChunk::new().with_projections(wq, values(5, 8, 1)).is_err());
}

/// What comes after a token does not reach it: neither by cuts at a threshold nor by concepts given back.
#[test]
fn concepts_are_given_back_causally() {
    let x = clustered(40, 8, 44);
    let method = ConceptChunk::new();
    let back = |x: &Array2<f32>| {
        let map = method.chunks(x.view(), 0.3).unwrap();
        assert!(map.targets() > 4 && map.targets() < 38);
        let hints = TokenHints::default();
        let weights = method.weights(x.view(), &hints, &map).unwrap();
        let concepts = map.merge(x.view(), weights.as_deref()).unwrap();
        assert_eq!(concepts, x.select(Axis(0), &map.firsts()));
        let scores = method.boundary_scores(x.view()).unwrap();
        ConceptChunk::dechunk(concepts.view(), &scores, &map).unwrap()
    };
    let whole = back(&x);
    for t in 0..39 {
        let mut changed = x.clone();
        changed.row_mut(t + 1).mapv_inplace(|v| 3.0 - 2.0 * v);
        let other = back(&changed);
        assert_eq!(
            whole.slice_axis(Axis(0), (..=t).into()),
            other.slice_axis(Axis(0), (..=t).into())
        );
    }
    // The running blend of concepts, written out: each concept by its p and what later ones left of it.
    let map = method.chunks(x.view(), 0.3).unwrap();
    let (firsts, scores) = (map.firsts(), method.boundary_scores(x.view()).unwrap());
    for t in 0..40 {
        let own = map.target(t).unwrap();
        for c in 0..8 {
            let part = |chunk: usize| {
                let p = if chunk == 0 { 1.0 } else { f64::from(scores[firsts[chunk]]) };
                let left: f64 =
                    (chunk + 1..=own).map(|i| 1.0 - f64::from(scores[firsts[i]])).product();
                p * left * f64::from(x[[firsts[chunk], c]])
            };
            let slow: f64 = (0..=own).map(part).sum();
            assert!((f64::from(whole[[t, c]]) - slow).abs() < 1e-5);
        }
    }
    // Means of chunks would know what comes.
    let mean = method.clone().with_mean(true);
    assert_eq!(mean.weights(x.view(), &TokenHints::default(), &map).unwrap(), None);
    assert!(ConceptChunk::dechunk(x.view(), &scores, &map).is_err());
    assert!(ConceptChunk::dechunk(x.view(), &scores[1..], &map).is_err());
}

#[test]
fn pooling_by_a_question_is_the_slow_one() {
    let x = values(20, 5, 51);
    let relevance: Vec<f32> = values(20, 1, 52).iter().copied().collect();
    let sizes: Vec<f32> = (0..20).map(|t| (1 + t % 3) as f32).collect();
    let hints = TokenHints::default().with_relevance(&relevance).with_sizes(&sizes);
    let method = QueryPooling::default().with_temperature(0.5);
    let reduced = method.reduce(x.view(), &hints, 5).unwrap();
    let slow = Array2::from_shape_fn((5, 5), |(g, c)| {
        let tokens = || 4 * g..4 * g + 4;
        let weight = |t: usize| f64::from(sizes[t]) * (f64::from(relevance[t]) / 0.5).exp();
        let sum: f64 = tokens().map(weight).sum();
        (tokens().map(|t| weight(t) * f64::from(x[[t, c]])).sum::<f64>() / sum) as f32
    });
    assert_near(reduced.states.view(), slow.view(), 1e-5);
    // Weights so uneven that f32 does not hold the least: no group is without weight.
    let relevance = [100.0, -100.0, -1e6, -1e6];
    let hints = TokenHints::default().with_relevance(&relevance);
    let reduced =
        QueryPooling::default().with_temperature(1e-3).reduce(values(4, 5, 1).view(), &hints, 2);
    assert!(reduced.unwrap().states.iter().all(|v| v.is_finite()));
}

/// What sets it apart: the foreground is what it was.
#[test]
fn only_the_background_merges() {
    let x = clustered(48, 8, 61);
    let foreground: Vec<bool> = (0..48).map(|t| t % 5 < 2).collect();
    let hints = TokenHints::default().with_foreground(&foreground);
    let map = MaskGuidedToMe::new().plan(x.view(), &hints, 36).unwrap();
    let alone = |t: usize| map.counts()[map.target(t).unwrap()] == 1;
    assert!((0..48).filter(|t| foreground[*t]).all(alone));
    // Twelve of the background are merged: even ones into the odd ones most like them.
    let side = |parity: usize| (0..48).filter(move |t| t % 2 == parity);
    let background = |t: &usize| !foreground[*t];
    let best = |t: usize| {
        let near = |u: &usize| cosine(x.view(), t, *u);
        side(1).filter(background).max_by(|a, b| near(a).total_cmp(&near(b))).map(|u| (near(&u), u))
    };
    let even: Vec<usize> = side(0).filter(background).collect();
    let cosines: Vec<f64> = even.iter().map(|t| best(*t).unwrap().0).collect();
    let mut root: Vec<usize> = (0..48).collect();
    ranked(&cosines)[..12].iter().for_each(|i| root[even[*i]] = best(even[*i]).unwrap().1);
    assert_eq!(map, TokenMap::from_roots(&root).unwrap());
    // With less room than the foreground takes, all merge.
    let map = MaskGuidedToMe::new().plan(x.view(), &hints, 6).unwrap();
    assert_eq!(map.targets(), 6);
    assert_ne!(ToMe::new().plan(x.view(), &hints, 36).unwrap().targets(), 6);
}

/// A video whose background stands still: what stays is the first frame and what moves.
#[test]
fn later_frames_keep_what_is_new() {
    let (rows, cols, count) = (4, 5, 3);
    let picture = values(20, 6, 71);
    let moving = values(3, 6, 72);
    let noise = values(60, 6, 73) * 0.01;
    let at = |frame: usize| 6 + frame; // where something is seen
    let x = Array2::from_shape_fn((60, 6), |(t, c)| {
        let (frame, place) = (t / 20, t % 20);
        let seen = if place == at(frame) { moving[[frame, c]] * 3.0 } else { picture[[place, c]] };
        seen + noise[[t, c]]
    });
    let places = grid(rows, cols, count);
    let frames: Vec<usize> = (0..60).map(|t| t / 20).collect();
    let hints = TokenHints::default().with_places(&places).with_frames(&frames);
    // New: at each change where it is, and where it was.
    let new = [20 + at(0), 20 + at(1), 40 + at(1), 40 + at(2)];
    let first: Vec<usize> = (0..20).collect();
    let map = TemporalMerge::default().with_drop(true).plan(x.view(), &hints, 24).unwrap();
    assert_eq!(kept(&map), [&first[..], &new].concat());
    let map = TemporalMerge::default().plan(x.view(), &hints, 24).unwrap();
    assert_eq!(map.dropped(), 0);
    assert_eq!(map.firsts(), [&first[..], &new].concat());
    for t in (0..60).filter(|t| *t >= 20 && !new.contains(t)) {
        assert_eq!(map.target(t), map.target(t - 20), "merged with the same place before");
    }
    // Fewer than one frame: the rest is merged as by ToMe.
    let fewer = TemporalMerge::default().plan(x.view(), &hints, 10).unwrap();
    assert_eq!((fewer.targets(), fewer.dropped()), (10, 0));
    // The pooled path of fast frames: each window of each frame a token, a token of no place alone.
    let mut places = places;
    places[59] = None;
    let hints =
        TokenHints::default().with_places(&places).with_frames(&frames).with_protected(&[0]);
    let fast = pool_windows(60, &hints, [2, 5]).unwrap();
    assert_eq!(fast.targets(), 2 * 3 + 2);
    assert_eq!(fast.counts(), [1, 9, 10, 10, 10, 10, 9, 1]);
    assert!(pool_windows(60, &hints, [0, 1]).is_err() && pool_windows(59, &hints, [1, 1]).is_err());
}

/// MergeVQ: Sᵀ gives back what merging left, and signs are the nearest of all vectors of signs.
#[test]
fn merged_tokens_are_recovered_and_coded() {
    let x = clustered(30, 7, 81);
    let map = ToMe::new().plan(x.view(), &TokenHints::default(), 11).unwrap();
    let (s, z) = (map.source_matrix(), map.merge(x.view(), None).unwrap());
    assert_eq!(s.sum_axis(Axis(0)).to_vec(), vec![1.0; 30]);
    assert_near(map.unmerge(z.view()).unwrap().view(), s.t().dot(&z).view(), 0.0);
    let counts: Vec<f32> = map.counts().iter().map(|c| *c as f32).collect();
    assert_eq!(s.sum_axis(Axis(1)).to_vec(), counts);

    let codes = SignCodes::new(z.view()).unwrap();
    assert_eq!(codes.bits(), 7 * 11);
    let book = |code: u64| {
        Array2::from_shape_fn((1, 7), |(_, c)| if code >> c & 1 == 1 { 1.0f32 } else { -1.0 })
    };
    for (t, code) in codes.codes().iter().enumerate() {
        let apart = |code: u64| (&book(code).row(0) - &z.row(t)).mapv(|v| f64::from(v * v)).sum();
        let nearest = (0..128).min_by(|a, b| apart(*a).total_cmp(&apart(*b)));
        assert_eq!(nearest, Some(*code));
        assert_eq!(codes.decode().row(t), book(*code).row(0));
    }
    assert_eq!(SignCodes::new(codes.decode().view()).unwrap(), codes);
    assert_eq!(SignCodes::from_codes(codes.codes().to_vec(), 7).unwrap(), codes);
    assert_eq!(SignCodes::from_codes(vec![128], 7).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert!(SignCodes::new(values(2, 65, 1).view()).is_err());
    let wide = SignCodes::new(values(2, 64, 1).view()).unwrap();
    assert_eq!(SignCodes::new(wide.decode().view()).unwrap(), wide);
}

#[test]
fn maps_from_other_descriptions() {
    let map = TokenMap::runs(&[2, 1, 3]).unwrap();
    assert_eq!((map.counts(), map.firsts()), (&[2, 1, 3][..], vec![0, 2, 3]));
    assert!(TokenMap::runs(&[1, 0]).is_err());
    let map = TokenMap::from_roots(&[2, 1, 3, 3, 0]).unwrap();
    assert_eq!(map, TokenMap::new(&[0, 1, 0, 0, 0].map(Some), 2).unwrap());
    assert!(TokenMap::from_roots(&[1, 2, 0]).is_err() && TokenMap::from_roots(&[1]).is_err());
    let map = TokenMap::keep(4, &[1, 3]).unwrap();
    let (x, z) = (values(4, 2, 1), values(2, 2, 2));
    let back = map.unmerge_onto(z.view(), x.view()).unwrap();
    assert_eq!(
        [back.row(0), back.row(1), back.row(2), back.row(3)],
        [x.row(0), z.row(0), x.row(2), z.row(1)]
    );
    assert!(map.unmerge_onto(z.view(), values(4, 3, 1).view()).is_err());
    assert!(map.groups(5).is_err());
    let places: Vec<Option<Place>> = grid(1, 2, 2);
    assert_eq!(places, [Some([0, 0]), Some([0, 1]), Some([0, 0]), Some([0, 1])]);
}
