//! Programmes of depth beside trying everything.

use proptest::prelude::*;
use tensorpress_allocate::depth::{
    Conv, Importance, Kernel, Spans, fastest, kept_layers, layer_merge, two_stage,
};
use tensorpress_tensor::ErrorKind;

/// Something of each span, where it can be one; single layers always can.
fn spans<T: Clone + std::fmt::Debug + 'static>(
    layers: usize,
    of: impl Strategy<Value = T>,
) -> impl Strategy<Value = Spans<T>> {
    let pairs = layers * (layers + 1) / 2;
    prop::collection::vec((0u32..4, of), pairs).prop_map(move |all| {
        let mut next = all.into_iter();
        let span = |from: usize, to: usize| {
            let (missing, of) = next.next().unwrap();
            (missing > 0 || to == from + 1).then_some(of)
        };
        Spans::new(layers, span).unwrap()
    })
}

fn importances() -> impl Strategy<Value = Importance> {
    prop::array::uniform2(prop::array::uniform2(-20i32..10))
        .prop_map(|of| of.map(|of| of.map(f64::from)))
}

fn depths() -> impl Strategy<Value = (Spans<u64>, Spans<Importance>)> {
    (1usize..6).prop_flat_map(|layers| (spans(layers, 0u64..20), spans(layers, importances())))
}

/// All ways to choose among what is strictly between two boundaries.
fn subsets(from: usize, to: usize) -> Vec<Vec<usize>> {
    let inner: Vec<usize> = (from + 1..to).collect();
    let member = |set: usize| {
        inner.iter().enumerate().filter(move |(at, _)| set >> at & 1 == 1).map(|(_, l)| *l)
    };
    (0..1usize << inner.len()).map(|set| member(set).collect()).collect()
}

/// The ends of parts that a set of boundaries cuts a chain into.
fn parts(layers: usize, cuts: &[usize]) -> Vec<(usize, usize)> {
    let ends = [&[0], cuts, &[layers]].concat();
    ends.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// The greatest importance of all that can be had within a budget: every set of activations, every set of merges around it,
/// and every set of boundaries at which importances are added.
fn best_depth(latency: &Spans<u64>, importance: &Spans<Importance>, budget: u64) -> Option<f64> {
    let layers = latency.layers();
    let mut best: Option<f64> = None;
    for active in subsets(0, layers) {
        for last in 0..2 {
            let on = |boundary: usize| match boundary {
                0 => 1,
                _ if boundary == layers => last,
                _ => usize::from(active.contains(&boundary)),
            };
            let around = |set: &&Vec<usize>| active.iter().all(|boundary| set.contains(boundary));
            let sets = subsets(0, layers);
            let quick = |merges: &Vec<usize>| {
                let times =
                    parts(layers, merges).into_iter().map(|(a, b)| latency.get(a, b).copied());
                times.sum::<Option<u64>>()
            };
            let fits = sets.iter().filter(around).filter_map(quick).any(|time| time <= budget);
            if !fits {
                continue;
            }
            for cuts in sets.iter().filter(around) {
                let of = |(a, b): (usize, usize)| Some(importance.get(a, b)?[on(a)][on(b)]);
                let sum: Option<f64> = parts(layers, cuts).into_iter().map(of).sum();
                best = match (best, sum) {
                    (Some(best), Some(sum)) => Some(best.max(sum)),
                    (best, sum) => best.or(sum),
                };
            }
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_two_stages_find_the_best_of_all((latency, importance) in depths(), budget in 0u64..60) {
        let best = best_depth(&latency, &importance, budget);
        match two_stage(&latency, &importance, budget) {
            Ok(depth) => {
                prop_assert_eq!(Some(depth.importance), best);
                let layers = latency.layers();
                // The activations that are said to stay are worth what is said.
                let on = |at: usize| usize::from(at == 0 || depth.activations.contains(&at));
                let inner: Vec<usize> = depth.activations.iter().copied().filter(|at| *at < layers).collect();
                let around = |cuts: &Vec<usize>| inner.iter().all(|at| cuts.contains(at));
                let worth = |cuts: Vec<usize>| {
                    let of = |(a, b): (usize, usize)| Some(importance.get(a, b)?[on(a)][on(b)]);
                    parts(layers, &cuts).into_iter().map(of).sum::<Option<f64>>()
                };
                let sets = subsets(0, layers).into_iter().filter(around);
                let worth = sets.filter_map(worth).max_by(f64::total_cmp);
                prop_assert_eq!(worth, Some(depth.importance));
                prop_assert!(depth.activations.iter().all(|at| depth.merges.contains(at)));
                prop_assert_eq!(depth.merges.last(), Some(&layers));
                let cuts = &depth.merges[..depth.merges.len() - 1];
                let times = parts(layers, cuts).into_iter().map(|(a, b)| latency.get(a, b).copied());
                prop_assert_eq!(times.sum::<Option<u64>>(), Some(depth.latency));
                prop_assert!(depth.latency <= budget);
            }
            Err(refused) => {
                prop_assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
                prop_assert_eq!(best, None, "{}", refused);
            }
        }
    }

    #[test]
    fn the_first_stage_is_the_fastest_of_all_parts((latency, _) in depths()) {
        let fastest = fastest(&latency);
        let layers = latency.layers();
        for from in 0..layers {
            for to in from + 1..=layers {
                let time = |cuts: &Vec<usize>| {
                    let ends = [&[from], cuts.as_slice(), &[to]].concat();
                    ends.windows(2).map(|pair| latency.get(pair[0], pair[1]).copied()).sum::<Option<u64>>()
                };
                let best = subsets(from, to).iter().filter_map(time).min();
                let (least, ends) = fastest.get(from, to).unwrap();
                prop_assert_eq!(Some(*least), best);
                prop_assert_eq!(time(&ends[..ends.len() - 1].to_vec()), best);
            }
        }
    }

    #[test]
    fn merged_layers_are_the_best_of_all(
        kernels in (1usize..6).prop_flat_map(|layers| {
            let kernel = (1usize..6, 0u64..20, -2000i32..1000);
            let kernel = kernel.prop_map(|(width, time, of)| Kernel::new(width, time, f64::from(of) / 1024.0));
            spans(layers, prop::collection::vec(kernel, 0..4))
        }),
        budget in 0u64..60,
        base in prop_oneof![Just(0u64), Just(300_000_000_000_000u64)],
    ) {
        let layers = kernels.layers();
        // As much again for every layer, beside which latencies are nothing.
        let (budget, kernels) = (budget + base * layers as u64, Spans::new(layers, |from, to| {
            let dearer = |kernel: &Kernel| Kernel::new(kernel.width, kernel.latency + base * (to - from) as u64, kernel.importance);
            Some(kernels.get(from, to)?.iter().map(dearer).collect::<Vec<_>>())
        }).unwrap());
        let mut best: Option<f64> = None;
        for cuts in subsets(0, layers) {
            // All kernels of all parts, one part after another.
            let mut sums = vec![(0u64, 0.0)];
            for (from, to) in parts(layers, &cuts) {
                let of = kernels.get(from, to).cloned().unwrap_or_default();
                let with = |(time, sum): &(u64, f64)| {
                    let (time, sum) = (*time, *sum);
                    of.iter().map(move |kernel| (time + kernel.latency, sum + kernel.importance)).collect::<Vec<_>>()
                };
                sums = sums.iter().flat_map(with).collect();
            }
            let fits = sums.into_iter().filter(|(time, _)| *time <= budget).map(|(_, sum)| sum);
            best = fits.chain(best).max_by(f64::total_cmp);
        }
        match layer_merge(&kernels, budget) {
            Ok(merges) => {
                let sum: f64 = merges.iter().map(|merge| merge.kernel.importance).sum();
                prop_assert_eq!(Some(sum), best);
                prop_assert!(merges.iter().map(|merge| merge.kernel.latency).sum::<u64>() <= budget);
                prop_assert_eq!((merges[0].from, merges[merges.len() - 1].to), (0, layers));
                prop_assert!(merges.windows(2).all(|pair| pair[0].to == pair[1].from));
                prop_assert!(merges.iter().all(|m| kernels.get(m.from, m.to).unwrap().contains(&m.kernel)));
            }
            Err(refused) => {
                prop_assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
                prop_assert_eq!(best, None, "{}", refused);
            }
        }
    }

    #[test]
    fn kept_layers_are_those_of_the_largest_norms(
        convs in prop::collection::vec((1usize..5, 0u32..9, 0u32..4), 0..8),
        width in 1usize..14,
    ) {
        let conv = |(width, norm, fixed): &(usize, u32, u32)| match fixed {
            0 => Conv::irreducible(*width, f64::from(*norm)),
            _ => Conv::new(*width, f64::from(*norm)),
        };
        let convs: Vec<Conv> = convs.iter().map(conv).collect();
        let norm = |kept: &[usize]| kept.iter().map(|at| convs[*at].norm).sum::<f64>();
        let reaches = |kept: &Vec<usize>| {
            let all = (0..convs.len()).all(|at| convs[at].reducible || kept.contains(&at));
            all && kept.iter().map(|at| convs[*at].width - 1).sum::<usize>() + 1 == width
        };
        let sets = (0..1usize << convs.len())
            .map(|set| (0..convs.len()).filter(|at| set >> at & 1 == 1).collect::<Vec<_>>());
        let best = sets.filter(reaches).map(|kept| norm(&kept)).max_by(f64::total_cmp);
        let found = kept_layers(&convs, width).unwrap();
        prop_assert!(found.as_ref().is_none_or(reaches));
        prop_assert_eq!(found.map(|kept| norm(&kept)), best);
    }
}

/// Fifty layers with latencies in nanoseconds, which have no common measure.
#[test]
fn deep_networks_are_solved() {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(5);
    let kernels = |from: usize, to: usize| {
        let long = (to - from) as f64;
        let kernel = |width: usize| {
            let time = 1e5 * (1.0 + width as f64 + random.next_f64());
            Kernel::new(
                width,
                time as u64,
                -(long - 1.0).powf(1.5) * (0.5 + random.next_f64()) / width as f64,
            )
        };
        (long <= 12.0).then(|| [1, 3, 5, 7].map(kernel).to_vec())
    };
    let kernels = Spans::new(50, kernels).unwrap();
    for budget in [3_000_000, 6_000_000, 9_000_000, 12_000_000] {
        let start = std::time::Instant::now();
        let merges = layer_merge(&kernels, budget).unwrap();
        let time: u64 = merges.iter().map(|merge| merge.kernel.latency).sum();
        println!(
            "{budget} ns: {} layers take {time}, found in {:?}",
            merges.len(),
            start.elapsed()
        );
        assert!(time <= budget && time as f64 > 0.99 * budget as f64);
    }
}

#[test]
fn bad_input_is_refused() {
    let none = Spans::<u64>::new(0, |_, _| None).unwrap();
    let empty = Spans::<Importance>::new(0, |_, _| None).unwrap();
    let depth = two_stage(&none, &empty, 0).unwrap();
    assert_eq!((depth.merges.len(), depth.latency), (0, 0));
    assert!(layer_merge(&Spans::new(0, |_, _| None).unwrap(), 0).unwrap().is_empty());
    let one = |importance: f64, latency: u64, budget: u64| {
        let latency = Spans::new(1, |_, _| Some(latency)).unwrap();
        let importance = Spans::new(1, |_, _| Some([[importance; 2]; 2])).unwrap();
        two_stage(&latency, &importance, budget).map_err(|error| (error.kind(), error.to_string()))
    };
    assert_eq!(one(1.0, 3, 3).unwrap().latency, 3);
    let (kind, text) = one(1.0, 3, 0).unwrap_err();
    assert_eq!(kind, ErrorKind::InvalidArgument);
    assert!(text.contains("the least is 3"), "{text}");
    assert_eq!(one(f64::NAN, 3, 3).unwrap_err().0, ErrorKind::Numerical);
    assert_eq!(one(1.0, u64::MAX, u64::MAX).unwrap_err().0, ErrorKind::InvalidArgument);
    let wide = Spans::new(2, |_, _| Some(1)).unwrap();
    let narrow = Spans::new(1, |_, _| Some([[0.0; 2]; 2])).unwrap();
    assert_eq!(two_stage(&wide, &narrow, 9).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    // No way through the second layer.
    let torn = Spans::new(2, |from, _| (from == 0).then(|| vec![Kernel::new(3, 1, 0.0)])).unwrap();
    assert!(layer_merge(&torn, 9).is_ok(), "the span of both");
    let torn = Spans::new(2, |_, to| (to == 1).then(|| vec![Kernel::new(3, 1, 0.0)])).unwrap();
    assert_eq!(layer_merge(&torn, 9).unwrap_err().kind(), ErrorKind::InvalidArgument);
    // What no way meets may cost anything.
    let aside = |from: usize, to: usize| match (from, to) {
        (0, 4) => {
            Some(vec![Kernel::new(3, 7, 0.0), Kernel::new(3, 9, 1.0), Kernel::new(3, 8, 0.5)])
        }
        (0, _) => None,
        _ => Some(vec![Kernel::new(1, u64::MAX, 0.0)]),
    };
    let aside = Spans::new(4, aside).unwrap();
    assert_eq!(layer_merge(&aside, 8).unwrap()[0].kernel.latency, 8);
    let nan = Spans::new(1, |_, _| Some(vec![Kernel::new(3, 1, f64::NAN)])).unwrap();
    assert_eq!(layer_merge(&nan, 9).unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(Spans::new(5000, |_, _| Some(())).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!((wide.get(1, 1), wide.get(0, 3), wide.get(0, 2)), (None, None, Some(&1)));

    assert_eq!(kept_layers(&[], 1).unwrap(), Some(vec![]));
    assert_eq!(kept_layers(&[], 3).unwrap(), None);
    assert_eq!(kept_layers(&[], 0).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        kept_layers(&[Conv::new(0, 1.0)], 3).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(kept_layers(&[Conv::new(3, f64::NAN)], 3).unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(
        kept_layers(&[Conv::new(3, 1.0)], usize::MAX).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}
