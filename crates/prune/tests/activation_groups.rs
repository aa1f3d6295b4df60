//! Blocks with a router (BlockFFN) and channels parted into groups (MoE-fication), beside sums written out.

use tensorpress_prune::activation::{
    Activation, Activity, Affine, BlockNetwork, BlockRouter, FeedForward, Moefication,
    RoutedNetwork, choose,
};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array1, Array2, Axis, array};
use tensorpress_tensor::{DType, Error, ErrorKind, Scratch};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn kind(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

fn near(found: &Array2<f32>, exact: &Array2<f64>, within: f64) {
    assert_eq!(found.dim(), exact.dim());
    for (found, exact) in found.iter().zip(exact) {
        assert!((f64::from(*found) - exact).abs() <= within, "{found} {exact}");
    }
}

/// The norm stands behind the ReLU: what it divides by is the open blocks' alone. Before it, or without it, factors differ.
#[test]
fn factors_are_the_norm_of_what_is_open() {
    for (tokens, inputs, blocks) in [(1, 1, 1), (4, 7, 5), (9, 3, 16)] {
        let (weight, x) = (random(blocks, inputs, 1), random(tokens, inputs, 2));
        let gain = Array1::from_shape_fn(blocks, |b| 0.5 + b as f32);
        let router = BlockRouter::new(weight.clone()).with_gain(gain.clone()).with_epsilon(0.01);
        let factors = router.factors(x.view()).unwrap();
        for ((t, b), factor) in factors.indexed_iter() {
            let score = |b: usize| -> f64 {
                (0..inputs).map(|i| f64::from(x[[t, i]]) * f64::from(weight[[b, i]])).sum()
            };
            let square: f64 = (0..blocks).map(|b| score(b).max(0.0).powi(2)).sum();
            let root = (square / blocks as f64 + 0.01).sqrt();
            let wanted = score(b).max(0.0) / root * f64::from(gain[b]);
            assert!(
                (f64::from(*factor) - wanted).abs() < 1e-5 * (1.0 + wanted),
                "{factor} {wanted}"
            );
            assert!(score(b) > 0.0 || *factor == 0.0, "a block that is shut");
        }
    }
    // All shut: 0, not 0 / 0.
    let shut = BlockRouter::new(array![[-1.0], [-2.0]]).factors(array![[3.0], [0.0]].view());
    assert_eq!(shut.unwrap(), Array2::<f32>::zeros((2, 2)));
    let router = BlockRouter::new(array![[1.0]]);
    let epsilon = router.clone().with_epsilon(0.0).factors(array![[1.0]].view()).unwrap_err();
    kind(&epsilon, ErrorKind::InvalidArgument, "epsilon");
    kind(&router.factors(random(1, 2, 1).view()).unwrap_err(), ErrorKind::ShapeMismatch, "router");
}

/// CLS counts the union of a run: it is not TLS, and is that of a run of one token.
#[test]
fn inactive_shares_are_counted() {
    let factors = random(23, 12, 3).mapv(|v| if v < 0.8 { 0.0 } else { v });
    for length in [1, 2, 8, 23] {
        let activity = Activity::of(factors.view(), length).unwrap();
        let (mut token, mut chunk, mut runs) = (0.0, 0.0, 0.0);
        for t in 0..23 {
            token += (0..12).filter(|b| factors[[t, *b]] == 0.0).count() as f64 / 12.0 / 23.0;
            if t + length <= 23 {
                let shut = |b: &usize| (t..t + length).all(|t| factors[[t, *b]] == 0.0);
                chunk += (0..12).filter(shut).count() as f64 / 12.0;
                runs += 1.0;
            }
        }
        assert!((activity.token - token).abs() < 1e-12);
        assert!((activity.chunk - chunk / runs).abs() < 1e-12);
        assert!(if length == 1 {
            activity.chunk == activity.token
        } else {
            activity.chunk < token
        });
    }
    let zero = Activity::of(factors.view(), 0).unwrap_err();
    kind(&zero, ErrorKind::InvalidArgument, "length");
    let few = Activity::of(factors.view(), 24).unwrap_err();
    kind(&few, ErrorKind::InsufficientData, "23 tokens");
}

/// Every token's own blocks, summed; blocks that no token of the chunk opens are NaN, and are not read.
#[test]
fn a_chunk_reads_the_union_of_its_blocks() {
    let (blocks, width, hidden, tokens) = (10, 6, 14, 5);
    let (mut up, mut down) = (random(blocks * width, hidden, 4), random(hidden, blocks * width, 5));
    let x = random(tokens, hidden, 6);
    let mut factors = random(tokens, blocks, 7).mapv(|v| if v < 0.7 { 0.0 } else { v });
    factors.column_mut(3).fill(0.0);
    factors[[2, 9]] = 1.5;
    let open = |b: &usize| factors.column(*b).iter().any(|f| *f != 0.0);
    let mut exact = Array2::<f64>::zeros((tokens, hidden));
    for t in 0..tokens {
        for b in (0..blocks).filter(|b| factors[[t, *b]] != 0.0) {
            for c in b * width..(b + 1) * width {
                let z: f64 =
                    (0..hidden).map(|i| f64::from(x[[t, i]]) * f64::from(up[[c, i]])).sum();
                let h = f64::from(factors[[t, b]]) * z / (1.0 + (-z).exp());
                (0..hidden).for_each(|o| exact[[t, o]] += h * f64::from(down[[o, c]]));
            }
        }
    }
    for b in (0..blocks).filter(|b| !open(b)) {
        for c in b * width..(b + 1) * width {
            up.row_mut(c).fill(f32::NAN);
            down.column_mut(c).fill(f32::NAN);
        }
    }
    let network =
        FeedForward::new(None, up.view(), down.view(), Activation::Silu, DType::F32).unwrap();
    let network = BlockNetwork::new(network, blocks).unwrap();
    let mut scratch = Scratch::default();
    let step = network.apply(x.view(), factors.view(), &mut scratch).unwrap();
    near(&step.output, &exact, 1e-4);
    let union: Vec<usize> =
        (0..blocks * width).filter(|channel| open(&(channel / width))).collect();
    assert!(union.len() < blocks * width);
    assert_eq!(step.channels, union);
    for t in 0..tokens {
        let (x, factors) = (x.select(Axis(0), &[t]), factors.select(Axis(0), &[t]));
        let one = network.apply(x.view(), factors.view(), &mut scratch).unwrap();
        assert_eq!(one.output.row(0), step.output.row(t), "a token alone");
        assert!(one.channels.len() < union.len());
    }
    // No token, and none that opens anything.
    let none = network.apply(
        Array2::<f32>::zeros((0, hidden)).view(),
        Array2::<f32>::zeros((0, blocks)).view(),
        &mut scratch,
    );
    assert_eq!(none.unwrap().output.dim(), (0, hidden));
    let shut = Array2::<f32>::zeros((tokens, blocks));
    let shut = network.apply(x.view(), shut.view(), &mut scratch).unwrap();
    assert_eq!((shut.output, shut.channels), (Array2::<f32>::zeros((tokens, hidden)), vec![]));
    let wrong = network.apply(x.view(), random(2, blocks, 1).view(), &mut scratch).unwrap_err();
    kind(&wrong, ErrorKind::ShapeMismatch, "factors");
    let network = FeedForward::new(None, up.view(), down.view(), Activation::Silu, DType::F32);
    for blocks in [0, 7] {
        let bad = BlockNetwork::new(network.as_ref().unwrap().clone(), blocks).unwrap_err();
        kind(&bad, ErrorKind::InvalidArgument, "blocks");
    }
}

/// Contributions of channels in `groups` that are strong at tokens of their own, shuffled, and `shared` that always are.
fn planted(groups: usize, size: usize, shared: usize, tokens: usize) -> (Array2<f32>, Vec<usize>) {
    let channels = groups * size + shared;
    // 7 and the number of channels have no divisor in common.
    assert!(!channels.is_multiple_of(7));
    let group: Vec<usize> = (0..channels).map(|c| (c * 7 % channels) / size).collect();
    let strength = |t: usize, c: usize| match group[c] {
        g if g * size >= groups * size => 20.0,
        g if g == t % groups => 5.0,
        _ => 0.0,
    };
    let noise = random(tokens, channels, 8).mapv(|v| v.abs().min(3.0) * 0.3);
    let made = Array2::from_shape_fn((tokens, channels), |(t, c)| strength(t, c) + noise[[t, c]]);
    (made, group)
}

/// Groups of channels that are strong together are found, whatever their order: parting channels as they come finds none.
#[test]
fn channels_that_are_strong_together_stay_together() {
    let (groups, size, shared) = (4, 10, 5);
    let (contributions, group) = planted(groups, size, shared, 60);
    for seed in 0..5 {
        let how = Moefication::default()
            .with_experts(groups)
            .with_shared(shared as f64 / 45.0)
            .with_strong(15.0 / 45.0)
            .with_seed(seed);
        let partition = how.partition(contributions.view()).unwrap();
        assert!(partition.shared.iter().all(|c| group[*c] == groups));
        assert_eq!(partition.shared.len(), shared);
        for expert in &partition.experts {
            assert_eq!(expert.len(), size);
            assert!(expert.iter().all(|c| group[*c] == group[expert[0]]), "{expert:?}");
        }
        assert_eq!(partition, how.partition(contributions.view()).unwrap(), "one seed");
    }
}

/// Every channel in one place, groups of one size give or take a channel, whatever the patterns: plain clusters differ.
#[test]
fn groups_are_of_one_size() {
    for (channels, tokens, experts, shared) in
        [(1, 3, 1, 0.0), (9, 4, 4, 0.3), (40, 30, 7, 0.25), (12, 0, 5, 0.5), (17, 6, 17, 0.0)]
    {
        // Half of the channels are alike: a cluster of their own, if size did not matter.
        let mut contributions = random(tokens, channels, 9).mapv(f32::abs);
        contributions.indexed_iter_mut().for_each(|((_, c), v)| *v *= (c % 2) as f32);
        let how = Moefication::default().with_experts(experts).with_shared(shared);
        let partition = how.partition(contributions.view()).unwrap();
        let sizes = partition.experts.iter().map(Vec::len);
        assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        let mut all = [partition.shared, partition.experts.concat()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..channels).collect::<Vec<_>>());
    }
    let some = random(4, 10, 1).mapv(f32::abs);
    let bad = |how: Moefication, part| {
        kind(&how.partition(some.view()).unwrap_err(), ErrorKind::InvalidArgument, part);
    };
    bad(Moefication::default().with_experts(0), "experts");
    bad(Moefication::default().with_experts(9), "allowed are 1 to 8");
    bad(Moefication::default().with_shared(1.0), "shared");
    bad(Moefication::default().with_strong(0.0), "strong");
    let nan = array![[0.0, f32::NAN]];
    let error = Moefication::default().with_experts(1).partition(nan.view()).unwrap_err();
    kind(&error, ErrorKind::Numerical, "contributions");
}

/// What always runs and the chosen groups, summed; with all groups the dense network to the bit.
#[test]
fn a_token_runs_its_groups() {
    let (hidden, channels, tokens) = (8, 20, 4);
    let (gate, up) = (random(channels, hidden, 11), random(channels, hidden, 12));
    let (down, x) = (random(hidden, channels, 13), random(tokens, hidden, 14));
    let network =
        FeedForward::new(Some(gate.view()), up.view(), down.view(), Activation::Silu, DType::F32);
    let network = network.unwrap();
    let mut partition = Moefication::default()
        .with_experts(3)
        .partition(random(6, channels, 15).mapv(f32::abs).view())
        .unwrap();
    let routed = RoutedNetwork::new(network.clone(), partition.clone()).unwrap();
    let mut scratch = Scratch::default();
    let oracle = routed.oracle(x.view(), &mut scratch).unwrap();
    let wide = |m: &Array2<f32>| m.mapv(f64::from);
    let gates = wide(&x).dot(&wide(&gate).t()).mapv(|z| z / (1.0 + (-z).exp()));
    let h = gates * wide(&x).dot(&wide(&up).t());
    let reach = |c: usize| wide(&down).column(c).dot(&wide(&down).column(c));
    let wanted = Array2::from_shape_fn((tokens, 3), |(t, e)| {
        let channels = partition.experts[e].iter();
        channels.map(|c| h[[t, *c]].powi(2) * reach(*c)).sum::<f64>().sqrt()
    });
    near(&oracle, &wanted, 1e-3);
    let chosen = choose(oracle.view(), 1);
    let step = routed.apply(x.view(), &chosen, &mut scratch).unwrap();
    let mut kept = h.clone();
    for ((t, c), h) in kept.indexed_iter_mut() {
        let best = (0..3).max_by(|a, b| wanted[[t, *a]].total_cmp(&wanted[[t, *b]])).unwrap();
        let runs = partition.shared.contains(&c) || partition.experts[best].contains(&c);
        *h = if runs { *h } else { 0.0 };
    }
    near(&step.output, &kept.dot(&wide(&down).t()), 1e-3);
    let all = routed.apply(x.view(), &choose(oracle.view(), 9), &mut scratch).unwrap();
    assert_eq!(all.output, network.apply(x.view(), &mut scratch).unwrap());
    let none = routed.apply(x.view(), &vec![vec![]; tokens], &mut scratch).unwrap();
    assert_eq!(none.channels, partition.shared);

    let beyond = routed.apply(x.view(), &vec![vec![3]; tokens], &mut scratch).unwrap_err();
    kind(&beyond, ErrorKind::InvalidArgument, "group");
    let few = routed.apply(x.view(), &[vec![0]], &mut scratch).unwrap_err();
    kind(&few, ErrorKind::ShapeMismatch, "choices");
    partition.shared.push(partition.experts[0][0]);
    let twice = RoutedNetwork::new(network, partition).unwrap_err();
    kind(&twice, ErrorKind::ShapeMismatch, "2 places");
}

/// The router is least squares: no slope is left in what it misses; of an affine map nothing is.
#[test]
fn routers_are_least_squares() {
    let (x, weight) = (random(50, 6, 21), random(3, 6, 22));
    let exact = x.dot(&weight.t()) + 2.5;
    let map = Affine::fit(x.view(), exact.view()).unwrap();
    near(&map.apply(x.view()).unwrap(), &exact.mapv(f64::from), 1e-4);
    let noisy = &exact + &random(50, 3, 23);
    let map = Affine::fit(x.view(), noisy.view()).unwrap();
    let missed = (&noisy - &map.apply(x.view()).unwrap()).mapv(f64::from);
    assert!(x.mapv(f64::from).t().dot(&missed).iter().all(|v| v.abs() < 1e-4));
    assert!(missed.sum_axis(Axis(0)).iter().all(|v| v.abs() < 1e-4));
    assert!(missed.iter().map(|v| v * v).sum::<f64>() > 50.0);
    // Constant inputs, one token, none: the mean, or 0.
    let same = Affine::fit(Array2::ones((3, 2)).view(), array![[1.0], [2.0], [6.0]].view());
    near(&same.unwrap().apply(Array2::ones((1, 2)).view()).unwrap(), &array![[3.0]], 1e-6);
    let none =
        Affine::fit(Array2::<f32>::zeros((0, 2)).view(), Array2::<f32>::zeros((0, 1)).view())
            .unwrap();
    assert_eq!(none.apply(Array2::ones((1, 2)).view()).unwrap(), array![[0.0]]);
    let nan = Affine::fit(array![[f32::NAN]].view(), array![[1.0]].view()).unwrap_err();
    assert_eq!(nan.kind(), ErrorKind::Numerical);

    // A network whose groups answer to inputs of their own: the router finds the group that the oracle does.
    let group = |c: usize| c / 5;
    let up = Array2::from_shape_fn((15, 3), |(c, i)| if group(c) == i { 1.0 } else { 0.0 });
    let network = FeedForward::new(
        None,
        up.view(),
        Array2::ones((2, 15)).view(),
        Activation::Relu,
        DType::F32,
    );
    let experts = (0..3).map(|g| (5 * g..5 * g + 5).collect()).collect();
    let mut partition =
        Moefication::default().with_experts(1).partition(Array2::ones((1, 15)).view()).unwrap();
    partition.shared.clear();
    partition.experts = experts;
    let routed = RoutedNetwork::new(network.unwrap(), partition).unwrap();
    let (seen, unseen) = (random(80, 3, 24), random(200, 3, 25));
    let mut scratch = Scratch::default();
    let router = routed.fit_router(seen.view(), &mut scratch).unwrap();
    let guessed = choose(router.apply(unseen.view()).unwrap().view(), 1);
    let right = choose(routed.oracle(unseen.view(), &mut scratch).unwrap().view(), 1);
    let agree = guessed.iter().zip(&right).filter(|(a, b)| a == b).count();
    // By chance a third would.
    assert!(agree > 140, "{agree} of 200");
}
