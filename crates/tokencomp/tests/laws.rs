//! What holds for every map and every method, and what is refused.

use proptest::prelude::*;
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array1, Array2, Array3, Axis};
use tensorpress_tokencomp::{
    AttentionTopK, ConceptChunk, Crops, DiffRate, DivPrune, EfficientVla, GeometryMerge,
    GlobalCom2, MaskGuidedToMe, MigMerge, Place, Pooling, QueryPooling, RandomKeep, Schedule,
    SubmodularSelect, TemporalMerge, ToMe, TokenCorr, TokenHints, TokenMap, TokenReduce, TokenRole,
    grid, kth_matching, match_tokens, stages,
};

/// A map of `sources` tokens in which no target is empty: the first sources fill them.
fn maps(sources: std::ops::Range<usize>) -> impl Strategy<Value = TokenMap> {
    (sources, any::<u64>()).prop_flat_map(|(sources, seed)| {
        (0..=sources).prop_flat_map(move |targets| {
            proptest::collection::vec(proptest::option::weighted(0.8, 0..targets.max(1)), sources)
                .prop_map(move |mut assignment| {
                    let start = if sources == 0 { 0 } else { seed as usize % sources };
                    for target in 0..targets {
                        assignment[(start + target) % sources] = Some(target);
                    }
                    if targets == 0 {
                        assignment.fill(None);
                    }
                    TokenMap::new(&assignment, targets).expect("every target has a source")
                })
        })
    })
}

fn values(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32 * 3.0)
}

/// The mean of each target's sources, the slow way.
fn slow_merge(map: &TokenMap, x: &Array2<f32>, sizes: &[f32]) -> Array2<f32> {
    Array2::from_shape_fn((map.targets(), x.ncols()), |(target, c)| {
        let of = |s: &usize| map.target(*s) == Some(target);
        let sources: Vec<usize> = (0..map.sources()).filter(of).collect();
        let weight: f64 = sources.iter().map(|s| f64::from(sizes[*s])).sum();
        let sum: f64 = sources.iter().map(|s| f64::from(sizes[*s]) * f64::from(x[[*s, c]])).sum();
        (sum / weight) as f32
    })
}

proptest! {
    #[test]
    fn merging_what_was_unmerged_gives_it_back(map in maps(0..40), cols in 0usize..5, seed in 0u64..99) {
        let z = values(map.targets(), cols, seed);
        let back = map.unmerge(z.view()).unwrap();
        prop_assert_eq!(map.merge(back.view(), None).unwrap(), z.clone());
        let sizes: Vec<f32> = (0..map.sources()).map(|i| (1 + i * 7 % 5) as f32).collect();
        prop_assert_eq!(map.merge(back.view(), Some(&sizes)).unwrap(), z);
    }

    #[test]
    fn merging_is_the_weighted_mean(map in maps(1..40), seed in 0u64..99) {
        let x = values(map.sources(), 3, seed);
        let sizes: Vec<f32> = (0..map.sources()).map(|i| (1 + i * 7 % 5) as f32).collect();
        prop_assert_eq!(map.merge(x.view(), Some(&sizes)).unwrap(), slow_merge(&map, &x, &sizes));
        // One plan for tensors of any number of axes.
        let heads = Array3::from_shape_fn((map.sources(), 1, 3), |(t, _, c)| x[[t, c]]);
        let merged = map.merge(heads.view(), Some(&sizes)).unwrap();
        prop_assert_eq!(merged.index_axis(Axis(1), 0), map.merge(x.view(), Some(&sizes)).unwrap());
        let positions = Array1::from_iter((0..map.sources()).map(|p| p as f32));
        let merged = map.merge(positions.view(), None).unwrap();
        prop_assert!(merged.iter().zip(map.firsts()).all(|(mean, first)| *mean >= first as f32));
    }

    /// One plan for states `[tokens, channels]`, keys and values `[tokens, heads, dim]`, and positions `[tokens]`.
    #[test]
    fn a_plan_does_not_care_what_it_is_applied_to(map in maps(1..40), next in any::<u64>(), seed in 0u64..99) {
        let (heads, dim) = (3, 2);
        let x = values(map.sources(), heads * dim, seed);
        let by_head = |x: &Array2<f32>| x.to_shape((x.nrows(), heads, dim)).unwrap().to_owned();
        let flat = |x: Array3<f32>| x.to_shape((x.len_of(Axis(0)), heads * dim)).unwrap().to_owned();
        let sizes: Vec<f32> = (0..map.sources()).map(|i| (1 + i * 7 % 5) as f32).collect();
        let merged = map.merge(x.view(), Some(&sizes)).unwrap();
        prop_assert_eq!(flat(map.merge(by_head(&x).view(), Some(&sizes)).unwrap()), merged.clone());
        prop_assert_eq!(flat(map.unmerge(by_head(&merged).view()).unwrap()), map.unmerge(merged.view()).unwrap());
        // Positions and ids that cannot be averaged: those of the first token, whichever way the map came about.
        let ids: Vec<u64> = (0..map.sources() as u64).map(|i| i ^ next).collect();
        let all: Vec<Option<usize>> = (0..map.targets()).map(|t| Some(t / 2)).collect();
        let pairs = TokenMap::new(&all, map.targets().div_ceil(2)).unwrap();
        let stepwise = pairs.first_of(&map.sorted().first_of(&ids).unwrap()).unwrap();
        prop_assert_eq!(map.sorted().then(&pairs).unwrap().first_of(&ids).unwrap(), stepwise);
    }

    /// What the bias is for: attention over merged tokens is that over all tokens, where merged ones were alike.
    #[test]
    fn log_sizes_make_a_token_weigh_as_many(map in maps(1..30), seed in 0u64..99) {
        prop_assume!(map.targets() > 0);
        let keys = values(map.targets(), 4, seed);
        let states = values(map.targets(), 3, seed + 100);
        let query = values(1, 4, seed + 200);
        let attend = |keys: &Array2<f32>, values: &Array2<f32>, bias: &[f32]| {
            let weights: Vec<f64> = keys.rows().into_iter().zip(bias)
                .map(|(key, bias)| f64::from(key.dot(&query.row(0)) / 2.0 + bias).exp()).collect();
            let sum: f64 = weights.iter().sum();
            (0..3).map(|c| values.column(c).iter().zip(&weights).map(|(v, w)| f64::from(*v) * w).sum::<f64>() / sum).collect::<Vec<_>>()
        };
        // Each source a copy of its target; those that are dropped have no weight.
        let (all_keys, all_states) = (map.unmerge(keys.view()).unwrap(), map.unmerge(states.view()).unwrap());
        let sizes: Vec<f32> = (0..map.sources()).map(|i| (1 + i * 7 % 5) as f32).collect();
        for sizes in [None, Some(&sizes[..])] {
            let own = |s: usize| sizes.map_or(1.0, |sizes| sizes[s]).ln();
            let bias: Vec<f32> = (0..map.sources()).map(|s| if map.target(s).is_some() { own(s) } else { f32::NEG_INFINITY }).collect();
            let expected = attend(&all_keys, &all_states, &bias);
            let merged = attend(&keys, &states, &map.log_sizes(sizes).unwrap());
            prop_assert!(expected.iter().zip(&merged).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs())), "{:?} {:?}", expected, merged);
        }
    }

    #[test]
    fn sizes_sum_to_the_source_count(map in maps(0..60)) {
        let sum: u32 = map.counts().iter().sum();
        prop_assert_eq!(sum as usize + map.dropped(), map.sources());
        let sizes: f32 = map.sizes(None).unwrap().iter().sum();
        prop_assert_eq!(sizes as usize + map.dropped(), map.sources());
        let sorted = map.sorted();
        prop_assert!(sorted.firsts().is_sorted());
        prop_assert_eq!(sorted.dropped(), map.dropped());
    }

    #[test]
    fn composition_holds(first in maps(1..40), pick in any::<u64>(), seed in 0u64..99) {
        // A second map: neighbours in pairs, one of them dropped where there are several.
        let half = |t: usize| (t != pick as usize % first.targets().max(2)).then_some(t / 2);
        let assignment: Vec<_> = (0..first.targets()).map(half).collect();
        let targets = first.targets().div_ceil(2);
        let Ok(second) = TokenMap::new(&assignment, targets) else { return Ok(()) };
        let both = first.then(&second).unwrap();
        let x = values(first.sources(), 3, seed);
        let sizes = first.sizes(None).unwrap();
        let stepwise = second.merge(first.merge(x.view(), None).unwrap().view(), Some(&sizes)).unwrap();
        let at_once = both.merge(x.view(), None).unwrap();
        prop_assert!(stepwise.iter().zip(&at_once).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs())));
        prop_assert_eq!(both.sizes(None).unwrap(), second.sizes(Some(&sizes)).unwrap());
        let z = values(both.targets(), 2, seed);
        let unmerged = first.unmerge(second.unmerge(z.view()).unwrap().view()).unwrap();
        prop_assert_eq!(both.unmerge(z.view()).unwrap(), unmerged);
    }

    #[test]
    fn plans_keep_what_they_are_asked_to(
        tokens in 1usize..70, share in 0.0f64..1.0, marks in proptest::collection::vec(0usize..70, 0..5), seed in 0u64..99,
    ) {
        let protected: Vec<usize> = marks.into_iter().filter(|m| *m < tokens).collect();
        let mut distinct = protected.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let least = (distinct.len() + 1).min(tokens);
        let keep = least + ((tokens - least) as f64 * share) as usize;
        let x = values(tokens, 8, seed);
        let known = Known::new(&x, seed);
        let hints = known.hints().with_protected(&protected);
        for method in methods() {
            let reduced = method.reduce(x.view(), &hints, keep).unwrap();
            let map = reduced.map;
            prop_assert_eq!((map.sources(), map.targets()), (tokens, keep), "{}", method.id());
            prop_assert!(map.firsts().is_sorted(), "{}", method.id());
            let merged = map.merge(x.view(), None).unwrap();
            for p in &protected {
                let target = map.target(*p).expect("protected tokens stay");
                prop_assert_eq!(map.counts()[target], 1, "{}", method.id());
                prop_assert_eq!(merged.row(target), x.row(*p), "{}", method.id());
            }
            // Weights of a method leave what is alone as it is.
            for (target, token) in map.firsts().into_iter().enumerate() {
                if map.counts()[target] == 1 {
                    prop_assert_eq!(reduced.states.row(target), x.row(token), "{}", method.id());
                }
            }
            let all: f32 = known.sizes.iter().sum();
            let dropped: f32 = (0..tokens).filter(|t| map.target(*t).is_none()).map(|t| known.sizes[t]).sum();
            prop_assert_eq!(reduced.sizes.iter().sum::<f32>() + dropped, all, "{}", method.id());
            prop_assert_eq!(map, method.plan(x.view(), &hints, keep).unwrap());
        }
    }
}

fn methods() -> [Box<dyn TokenReduce>; 19] {
    [
        Box::new(ToMe::new()),
        Box::new(DivPrune::new()),
        Box::new(AttentionTopK::new()),
        Box::new(RandomKeep::new(3)),
        Box::new(Pooling::new()),
        Box::new(TokenCorr::default()),
        Box::new(GlobalCom2::default()),
        Box::new(EfficientVla::default()),
        Box::new(SubmodularSelect::default()),
        Box::new(SubmodularSelect::default().with_graph(3, 0.85, 2)),
        Box::new(DiffRate::default()),
        Box::new(GeometryMerge::default()),
        Box::new(MigMerge::new()),
        Box::new(ConceptChunk::new()),
        Box::new(ConceptChunk::new().with_mean(true)),
        Box::new(QueryPooling::default()),
        Box::new(MaskGuidedToMe::new()),
        Box::new(TemporalMerge::default()),
        Box::new(TemporalMerge::default().with_drop(true)),
    ]
}

/// All that may be known of some tokens: frames of 3 x 4 places and a token of no place, three crops.
struct Known {
    sizes: Vec<f32>,
    attention: Vec<f32>,
    relevance: Vec<f32>,
    foreground: Vec<bool>,
    places: Vec<Option<Place>>,
    frames: Vec<usize>,
    crops: Vec<usize>,
}

impl Known {
    fn new(x: &Array2<f32>, seed: u64) -> Self {
        let tokens = x.nrows();
        let channel = |c: usize| (0..tokens).map(move |t| x.get([t, c]).copied().unwrap_or(0.5));
        let mut frame = grid(3, 4, 1);
        frame.push(None);
        Self {
            sizes: (0..tokens).map(|t| (1 + t * 7 % 5) as f32).collect(),
            attention: channel(0).collect(),
            relevance: channel(1).map(|v| v / 10.0).collect(),
            foreground: (0..tokens).map(|t| (t as u64 * 3 + seed) % 7 < 2).collect(),
            places: frame.iter().cycle().take(tokens).copied().collect(),
            frames: (0..tokens).map(|t| t / frame.len()).collect(),
            crops: (0..tokens).map(|t| t * 3 / tokens).collect(),
        }
    }

    fn hints(&self) -> TokenHints<'_> {
        TokenHints::default()
            .with_sizes(&self.sizes)
            .with_attention(&self.attention)
            .with_class_attention(&self.attention)
            .with_relevance(&self.relevance)
            .with_saliency(&self.relevance)
            .with_foreground(&self.foreground)
            .with_places(&self.places)
            .with_frames(&self.frames)
            .with_crops(Crops::new(&self.crops).with_thumbnail(1, [2, 1]))
    }
}

#[test]
fn every_stage_is_held_to_the_laws() {
    let ids: Vec<&str> = methods().iter().map(|method| method.id()).collect();
    let rows = stages();
    let states = rows.rows().iter().filter(|row| row.role() == TokenRole::Reduce);
    assert!(states.map(|row| row.name()).all(|name| ids.contains(&name)), "{ids:?}");
}

/// Cosine similarities of all pairs, in f64.
fn cosine(x: &Array2<f32>, a: usize, b: usize) -> f64 {
    let dot = |a, b| {
        x.row(a)
            .iter()
            .zip(x.row(b))
            .map(|(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    let (a, b): (usize, usize) = (a, b);
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn matching_over_many_tiles_is_the_slow_one() {
    for tokens in [1, 2, 3, 255, 511, 512, 513, 1100] {
        let x = values(tokens, 17, tokens as u64);
        let matching = match_tokens(x.view(), tokens, &[]).unwrap();
        assert_eq!(matching.merged.len(), tokens / 2);
        let odd = || (1..tokens).step_by(2);
        for (source, into) in matching.merged.iter().zip(&matching.into) {
            let best = odd().map(|t| cosine(&x, *source, t)).fold(f64::NEG_INFINITY, f64::max);
            assert!(cosine(&x, *source, *into) >= best - 1e-6, "{tokens}: {source}");
        }
        let similarity = |i: usize| cosine(&x, matching.merged[i], matching.into[i]);
        assert!((1..matching.merged.len()).all(|i| similarity(i) <= similarity(i - 1) + 1e-6));
    }
}

/// Products in 8 bits choose the candidates of large matchings; what is chosen must not show it.
#[test]
fn large_matchings_are_the_slow_ones() {
    let noise = |t: usize, c: usize| gaussian(5, (t * 1000 + c) as u64) as f32;
    let shared = |t: usize, c: usize| gaussian(t as u64 % 7, c as u64) as f32;
    type States = Box<dyn Fn(usize, usize) -> f32>;
    let kinds: [(&str, States); 5] = [
        ("noise", Box::new(noise)),
        ("directions", Box::new(move |t, c| shared(t, c) + 0.7 * noise(t, c))),
        ("near-copies", Box::new(move |t, c| shared(t, c) + 1e-3 * noise(t, c))),
        (
            "large channels",
            Box::new(move |t, c| noise(t, c) * if c % 90 == 7 { 100.0 } else { 1.0 }),
        ),
        ("zeros", Box::new(move |t, c| if t.is_multiple_of(3) { 0.0 } else { noise(t, c) })),
    ];
    for (kind, states) in kinds {
        // Odd sizes, so that the last panel, tile and block are not full; more than 2^24 multiplications.
        let (tokens, channels) = (741, 211);
        let x = Array2::from_shape_fn((tokens, channels), |(t, c)| states(t, c));
        // A transposed layout is the same matrix.
        let turned = x.t().as_standard_layout().to_owned();
        let matching = match_tokens(x.view(), tokens, &[]).unwrap();
        assert_eq!(match_tokens(turned.t(), tokens, &[]).unwrap(), matching, "{kind}");
        assert_eq!(matching.merged.len(), tokens / 2);
        for (source, into) in matching.merged.iter().zip(&matching.into) {
            let of = |t: usize| {
                if kind == "zeros" && (t.is_multiple_of(3) || source.is_multiple_of(3)) {
                    0.0
                } else {
                    cosine(&x, *source, t)
                }
            };
            let best = (1..tokens).step_by(2).map(of).fold(f64::NEG_INFINITY, f64::max);
            assert!(of(*into) >= best - 1e-6, "{kind}: {source} into {into}");
        }
    }
}

#[test]
fn equal_tokens_and_zeros_are_fine() {
    for x in [Array2::zeros((9, 4)), Array2::ones((9, 4)), Array2::zeros((9, 0))] {
        let known = Known::new(&x, 1);
        let hints = known.hints();
        for method in methods() {
            for keep in 1..=9 {
                assert_eq!(
                    method.plan(x.view(), &hints, keep).unwrap().targets(),
                    keep,
                    "{}",
                    method.id()
                );
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let x = values(6, 4, 0);
    let mut spoilt = x.clone();
    spoilt[[4, 2]] = f32::NAN;
    let attention = [1.0, 2.0, f32::INFINITY, 0.0, 0.0, 0.0];
    let plain = TokenHints::default();
    let known = Known::new(&values(6, 4, 1), 0);
    let fine = [1.0; 6];
    let with = |attention| known.hints().with_sizes(&fine).with_attention(attention);
    for method in methods() {
        let refused = |x: &Array2<f32>, hints: &TokenHints<'_>, keep: usize, kind, says: &str| {
            let error = method.plan(x.view(), hints, keep).expect_err(says);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(says), "`{error}` lacks `{says}`");
        };
        use ErrorKind::{InvalidArgument, Numerical, ShapeMismatch};
        refused(&x, &with(&fine), 0, InvalidArgument, "keep = 0 of 6 tokens; allowed are 1 to 6");
        refused(&x, &with(&fine), 7, InvalidArgument, "keep = 7");
        refused(&Array2::zeros((0, 4)), &plain, 0, InvalidArgument, "keep = 0");
        refused(&spoilt, &with(&fine), 3, Numerical, "state [4, 2] is NaN");
        refused(
            &x,
            &with(&fine).with_protected(&[1, 6]),
            3,
            InvalidArgument,
            "protected token 6 of 6",
        );
        refused(
            &x,
            &with(&fine).with_protected(&[0, 1, 2]),
            2,
            InvalidArgument,
            "3 tokens are protected",
        );
        refused(&x, &with(&fine[..5]), 3, ShapeMismatch, "5 values of attention");
        refused(&x, &with(&attention), 3, Numerical, "attention of token 2 is inf");
        refused(
            &x,
            &with(&fine).with_sizes(&[1.0, 1.0, 1.0, 1.0, 0.0, 1.0]),
            3,
            InvalidArgument,
            "token 4",
        );
    }
    for method in [&ToMe::new() as &dyn TokenReduce, &Pooling::new()] {
        let error =
            method.plan(x.view(), &plain.with_protected(&[0, 5]), 2).expect_err("nowhere to go");
        assert!(error.to_string().contains("at least 1 to merge into"), "{error}");
    }
    let needs = [
        ("attention_top_k", "attention"),
        ("token_corr", "attention"),
        ("globalcom2", "attention"),
        ("diffrate", "attention"),
        ("efficient_vla", "relevance"),
        ("mig_merge", "relevance"),
        ("query_pooling", "relevance"),
        ("geometry_cached_merge", "places"),
        ("temporal_merge", "places"),
        ("mask_guided_tome", "foreground"),
    ];
    for (id, says) in needs {
        let methods = methods();
        let method = methods.iter().find(|method| method.id() == id).expect(id);
        let error = method.plan(x.view(), &plain, 3).expect_err(id);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(says), "{error}");
    }
    let refused = |hints: TokenHints<'_>, says: &str| {
        let error = ToMe::new().plan(x.view(), &hints, 3).expect_err(says);
        assert!(error.to_string().contains(says), "`{error}` lacks `{says}`");
    };
    refused(plain.with_relevance(&fine[..4]), "4 values of relevance for 6");
    refused(plain.with_saliency(&attention), "saliency of token 2 is inf");
    refused(plain.with_places(&[None; 3]), "3 values of places");
    refused(plain.with_frames(&[0; 7]), "7 values of frames");
    refused(plain.with_foreground(&[true]), "1 values of foreground");
    refused(plain.with_crops(Crops::new(&[0; 2])), "2 values of crops");
    refused(plain.with_crops(Crops::new(&[0, 1, 2, 3, 4, 5]).with_thumbnail(0, [2, 2])), "crop 5");
    refused(plain.with_crops(Crops::new(&[0; 6]).with_thumbnail(5, [2, 2])), "thumbnail is crop 5");
    let huge = Crops::new(&[0; 6]).with_thumbnail(5, [usize::MAX, 2]);
    refused(plain.with_crops(huge), "allowed are 2^20");
    assert!(
        match_tokens(x.view(), 1, &[9]).is_err() && match_tokens(spoilt.view(), 1, &[]).is_err()
    );
    assert!(kth_matching(x.view(), 0).is_err() && kth_matching(x.view(), 7).is_err());
    assert!(Schedule::line(3, 4, 1.5).is_err() && Schedule::share(1.0).is_err());
    assert!(Schedule::share(f64::NAN).is_err());
}

#[test]
fn impossible_maps_are_refused() {
    assert!(TokenMap::new(&[Some(0), Some(2)], 2).is_err(), "out of range");
    assert!(TokenMap::new(&[Some(0), None], 2).is_err(), "an empty target");
    assert!(TokenMap::new(&[], usize::MAX).is_err(), "more targets than sources");
    assert!(TokenMap::keep(3, &[0, 3]).is_err() && TokenMap::keep(3, &[1, 1]).is_err());
    let map = TokenMap::keep(3, &[2, 0]).unwrap();
    assert_eq!((map.firsts(), map.dropped()), (vec![0, 2], 1));
    assert!(map.merge(values(2, 2, 0).view(), None).is_err());
    assert!(map.merge(values(3, 2, 0).view(), Some(&[1.0])).is_err());
    assert!(map.unmerge(values(3, 2, 0).view()).is_err());
    assert!(map.then(&map).is_err() && map.first_of(&[1, 2]).is_err());
    assert_eq!(map.first_of(&["a", "b", "c"]).unwrap(), ["a", "c"]);
    let pair = TokenMap::new(&[Some(0), Some(0)], 1).unwrap();
    assert_eq!(pair.log_sizes(Some(&[1.0, 3.0])).unwrap(), [4.0f32.ln()]);
}

#[test]
fn pooling_is_even() {
    let map = Pooling::new().plan(values(10, 2, 0).view(), &TokenHints::default(), 4).unwrap();
    assert_eq!(map.counts(), [3, 2, 3, 2]);
}
