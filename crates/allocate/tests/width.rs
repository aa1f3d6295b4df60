//! Widths beside trying everything, and flows beside their definition.

use proptest::prelude::*;
use tensorpress_allocate::width::{Between, Flow, Group, crop, flows, synflow};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array1, Array2, array};

/// The output of a chain where all inputs are 1: a convolution's weights over one input channel all see it.
fn through(chain: &[(Array2<f32>, usize)]) -> f64 {
    let mut flow = Array1::<f64>::ones(chain[0].0.ncols() / chain[0].1);
    for (weight, area) in chain {
        let row = |row: tensorpress_tensor::ndarray::ArrayView1<'_, f32>| {
            row.iter().enumerate().map(|(at, w)| f64::from(w.abs()) * flow[at / area]).sum::<f64>()
        };
        flow = weight.outer_iter().map(row).collect();
    }
    flow.sum()
}

fn chain(random: &mut SplitMix, widths: &[usize], areas: &[usize]) -> Vec<(Array2<f32>, usize)> {
    let mut layer = |at: usize| {
        let shape = (widths[at + 1], widths[at] * areas[at]);
        (Array2::from_shape_simple_fn(shape, || (random.next_f64() - 0.5) as f32), areas[at])
    };
    (0..areas.len()).map(&mut layer).collect()
}

fn views(chain: &[(Array2<f32>, usize)]) -> Vec<Flow<'_>> {
    chain.iter().map(|(weight, area)| Flow::conv(weight.view(), *area)).collect()
}

/// A weight's share is what of the flow is missing without it.
#[test]
fn shares_are_what_a_weight_carries() {
    let mut random = SplitMix::new(2);
    let mut chain = chain(&mut random, &[3, 4, 2, 5], &[9, 1, 4]);
    let shares = flows(&views(&chain)).unwrap();
    let all = through(&chain);
    for layer in 0..chain.len() {
        assert!((shares[layer].sum() - 1.0).abs() < 1e-12, "conserved");
        for at in 0..chain[layer].0.len() {
            let weight = chain[layer].0.iter().nth(at).copied().unwrap();
            *chain[layer].0.iter_mut().nth(at).unwrap() = 0.0;
            let without = 1.0 - through(&chain) / all;
            *chain[layer].0.iter_mut().nth(at).unwrap() = weight;
            assert!((shares[layer].iter().nth(at).unwrap() - without).abs() < 1e-12);
        }
    }
    // A hundred layers of a thousandth, whose product is no number.
    let tiny: Vec<_> = (0..400).map(|_| (Array2::from_elem((2, 2), 1e-3f32), 1)).collect();
    assert!(
        flows(&views(&tiny)).unwrap().iter().flatten().all(|share| (share - 0.25).abs() < 1e-9)
    );
}

/// Densities beside pruning the weights themselves, round by round, sorted as a whole.
#[test]
fn densities_are_those_of_pruned_weights() {
    let mut random = SplitMix::new(4);
    for rounds in [1, 2, 10] {
        for density in [1.0, 0.5, 0.1] {
            let mut chain = chain(&mut random, &[5, 8, 8, 3], &[4, 1, 1]);
            let densities = synflow(&views(&chain), density, rounds).unwrap();
            let all: usize = chain.iter().map(|(weight, _)| weight.len()).sum();
            for round in 1..=rounds {
                let keep =
                    (density.powf(round as f64 / rounds as f64) * all as f64).round() as usize;
                let shares = flows(&views(&chain)).unwrap();
                let mut sorted: Vec<f64> = shares.iter().flatten().copied().collect();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let threshold = sorted[keep - 1];
                for ((weight, _), share) in chain.iter_mut().zip(&shares) {
                    weight.zip_mut_with(share, |w, share| {
                        *w = if *share >= threshold { *w } else { 0.0 }
                    });
                }
            }
            for ((weight, _), density) in chain.iter().zip(&densities) {
                let kept = weight.iter().filter(|w| **w != 0.0).count();
                assert!((kept as f64 / weight.len() as f64 - density).abs() < 1e-12);
            }
            // Pruned at once, a layer may be lost as a whole: what the rounds are for.
            let lost = densities.contains(&0.0);
            assert!(rounds < 10 || !lost, "{densities:?}");
        }
    }
}

#[test]
fn flows_are_checked() {
    let (a, b) = (Array2::<f32>::ones((3, 4)), Array2::<f32>::ones((2, 5)));
    let kind =
        |chain: &[Flow<'_>], density, rounds| synflow(chain, density, rounds).unwrap_err().kind();
    let fine = [Flow::matrix(a.view())];
    assert_eq!(kind(&[fine[0], Flow::matrix(b.view())], 0.5, 1), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[Flow::conv(a.view(), 3)], 0.5, 1), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[Flow::conv(a.view(), 0)], 0.5, 1), ErrorKind::ShapeMismatch);
    assert_eq!(
        kind(&[Flow::matrix(Array2::zeros((0, 4)).view())], 0.5, 1),
        ErrorKind::ShapeMismatch
    );
    assert_eq!(kind(&[Flow::matrix(array![[f32::NAN]].view())], 0.5, 1), ErrorKind::Numerical);
    assert_eq!(kind(&[Flow::matrix(array![[0.0f32]].view())], 0.5, 1), ErrorKind::InsufficientData);
    for density in [0.0, 1.5, f64::NAN] {
        assert_eq!(kind(&fine, density, 1), ErrorKind::InvalidArgument);
    }
    assert_eq!(kind(&fine, 0.5, 0), ErrorKind::InvalidArgument);
    assert_eq!(synflow(&fine, 1e-9, 1).unwrap(), [1.0 / 12.0]);
    assert!(synflow(&[], 0.5, 3).unwrap().is_empty());
}

fn off(groups: &[usize], layers: &[(usize, usize, f64)], counts: &[usize]) -> f64 {
    let off = |(from, to, density): &(usize, usize, f64)| {
        let target = (density * (groups[*from] * groups[*to]) as f64).max(1.0);
        ((counts[*from] * counts[*to]) as f64 / target).ln().powi(2)
    };
    layers.iter().map(off).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Joins are groups that several layers share, among them loops.
    #[test]
    fn channels_keep_densities(
        groups in prop::collection::vec(1usize..7, 2..5),
        layers in prop::collection::vec((0usize..4, 0usize..4, 0.0..1.0f64), 1..6),
        fixed in any::<bool>(),
    ) {
        let layers: Vec<(usize, usize, f64)> =
            layers.iter().map(|(a, b, d)| (a % groups.len(), b % groups.len(), *d)).collect();
        let group = |(at, n): (usize, &usize)| if fixed && at == 0 { Group::fixed(*n) } else { Group::new(*n) };
        let asked: Vec<Group> = groups.iter().enumerate().map(group).collect();
        let between: Vec<Between> = layers.iter().map(|(a, b, d)| Between::new(*a, *b, *d)).collect();
        let counts = crop(&asked, &between).unwrap();
        prop_assert!(counts.iter().zip(&groups).all(|(count, most)| (1..=*most).contains(count)));
        prop_assert!(!fixed || counts[0] == groups[0]);
        let all: usize = groups.iter().product();
        let others = (0..all).map(|mut at| {
            groups.iter().map(|n| { let count = at % n + 1; at /= n; count }).collect::<Vec<usize>>()
        });
        let allowed = others.filter(|counts| !fixed || counts[0] == groups[0]);
        let best = allowed.map(|counts| off(&groups, &layers, &counts)).min_by(f64::total_cmp).unwrap();
        let found = off(&groups, &layers, &counts);
        prop_assert!(found >= best - 1e-9 && found <= best + 0.5, "{found} for {best}");
    }
}

/// How often single and paired steps end at the optimum of small chains, and by how much they miss.
#[test]
fn cropped_chains_are_near_the_best() {
    let mut random = SplitMix::new(8);
    let (mut same, mut worst, all) = (0, 0.0f64, 300);
    for _ in 0..all {
        let groups: Vec<usize> = (0..4).map(|_| 4 + (random.next_u64() % 9) as usize).collect();
        let layers: Vec<(usize, usize, f64)> =
            (0..3).map(|at| (at, at + 1, 0.05 + 0.9 * random.next_f64())).collect();
        let asked: Vec<Group> = groups.iter().map(|n| Group::new(*n)).collect();
        let between: Vec<Between> =
            layers.iter().map(|(a, b, d)| Between::new(*a, *b, *d)).collect();
        let found = off(&groups, &layers, &crop(&asked, &between).unwrap());
        let mut best = f64::INFINITY;
        for mut at in 0..groups.iter().product::<usize>() {
            let counts: Vec<usize> = groups
                .iter()
                .map(|n| {
                    let count = at % n + 1;
                    at /= n;
                    count
                })
                .collect();
            best = best.min(off(&groups, &layers, &counts));
        }
        same += usize::from(found <= best + 1e-9);
        worst = worst.max((found.sqrt() - best.sqrt()).exp() - 1.0);
    }
    println!("the optimum in {same} of {all} chains; off by {:.1}% more at worst", 100.0 * worst);
    assert!(same >= 290 && worst < 0.05);
}

/// A residual network: 64 channels that six layers write to, each with its own width inside.
#[test]
fn joins_share_their_channels() {
    let mut groups = vec![Group::fixed(3), Group::new(64)];
    let mut layers = vec![Between::new(0, 1, 0.5)];
    for block in 0..3 {
        groups.push(Group::new(64));
        layers.push(Between::new(1, 2 + block, 0.25));
        layers.push(Between::new(2 + block, 1, 0.25));
    }
    let counts = crop(&groups, &layers).unwrap();
    assert_eq!(counts, [3, 32, 32, 32, 32]);
    let kind = |groups: &[Group], layers: &[Between]| crop(groups, layers).unwrap_err().kind();
    assert_eq!(kind(&[Group::new(0)], &[]), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[Group::new(1)], &[Between::new(0, 1, 0.5)]), ErrorKind::InvalidArgument);
    for density in [-0.1, 1.1, f64::NAN] {
        assert_eq!(
            kind(&[Group::new(4)], &[Between::new(0, 0, density)]),
            ErrorKind::InvalidArgument
        );
    }
    assert_eq!(crop(&[Group::new(9)], &[Between::new(0, 0, 0.0)]).unwrap(), [1]);
    assert_eq!(crop(&[Group::new(8)], &[Between::new(0, 0, 0.25)]).unwrap(), [4]);
    assert!(crop(&[], &[]).unwrap().is_empty());
    assert_eq!(crop(&[Group::new(5)], &[]).unwrap(), [5], "what no layer asks for stays");
    let huge = crop(&[Group::new(usize::MAX), Group::new(3)], &[Between::new(0, 1, 1.0)]).unwrap();
    assert!(huge[0] >= 1 && huge[1] <= 3);
}
