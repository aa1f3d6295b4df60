//! Groups of variables: the envelope against convex analysis, half-spaces, forgetting.

use proptest::prelude::*;
use tensorpress_prune::train::{
    Cric, Envelope, Forgetting, Groups, HalfSpace, Salience, redundant,
};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::{Error, ErrorKind};

fn random(length: usize, seed: u64) -> Vec<f32> {
    (0..length).map(|i| gaussian(seed, i as u64) as f32).collect()
}

fn kind(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

/// All sets of `k` of `n`.
fn supports(n: usize, k: usize) -> Vec<Vec<usize>> {
    let sets = (0u32..1 << n).filter(|bits| bits.count_ones() as usize == k);
    sets.map(|bits| (0..n).filter(|i| bits >> i & 1 == 1).collect()).collect()
}

/// The conjugate of ½ Σ d ‖x‖² on k groups: the best of all supports. With the support.
fn conjugate(norms: &[f64], d: &[f64], k: usize) -> (f64, Vec<usize>) {
    let of =
        |support: &Vec<usize>| support.iter().map(|j| norms[*j].powi(2) / d[*j]).sum::<f64>() / 2.0;
    let all = supports(norms.len(), k.min(norms.len())).into_iter();
    all.map(|s| (of(&s), s)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// The square of the k-support norm by its closed form (Argyriou, Foygel, Srebro, 2012, proposition 2.1), for all
/// weights 1.
fn k_support(norms: &[f64], k: usize) -> f64 {
    let mut z = norms.to_vec();
    z.sort_by(|a, b| b.total_cmp(a));
    for r in 0..k {
        let rest: f64 = z[k - r - 1..].iter().sum();
        let mean = rest / (r + 1) as f64;
        let above = if k - r - 1 == 0 { f64::INFINITY } else { z[k - r - 2] };
        if above > mean && mean >= z[k - r - 1] {
            return z[..k - r - 1].iter().map(|v| v * v).sum::<f64>() + rest * mean;
        }
    }
    unreachable!()
}

/// WGSEF. Fails for a group lasso, for another k, and without the weights.
#[test]
fn the_envelope_is_half_the_square_of_the_k_support_norm() {
    for seed in 0..20 {
        let (n, size) = (6, 3);
        let x = random(n * size, seed);
        let groups = Groups::even(n * size, size).unwrap();
        let d: Vec<f64> = (0..n).map(|g| 0.5 + gaussian(seed + 100, g as u64).abs()).collect();
        for k in 1..n {
            let scaled = |g: usize| d[g].sqrt() * groups.norm(&x, g);
            let norms: Vec<f64> = (0..n).map(scaled).collect();
            let value = Envelope::new(k).with_weights(d.clone()).value(&x, &groups).unwrap();
            let wanted = 0.5 * k_support(&norms, k);
            assert!((value - wanted).abs() < 1e-9 * wanted, "k {k}: {value} {wanted}");
            // Above the plain square where more than k groups are not 0, and equal to it where there are k.
            assert!(value > 0.5 * norms.iter().map(|v| v * v).sum::<f64>());
            let mut sparse = x.clone();
            (k..n).for_each(|g| groups.scale(&mut sparse, g, 0.0));
            let value = Envelope::new(k).with_weights(d.clone()).value(&sparse, &groups).unwrap();
            let plain = 0.5 * norms[..k].iter().map(|v| v * v).sum::<f64>();
            assert!((value - plain).abs() < 1e-9 * plain);
        }
    }
}

/// WGSEF's prox: Fenchel's equality for (x - z) / t at z, with the conjugate by brute force over supports: it holds at
/// the minimiser and nowhere else.
#[test]
fn the_prox_is_the_minimiser() {
    for seed in 0..30 {
        let (n, size) = (7, 2);
        let x = random(n * size, seed);
        let groups = Groups::even(n * size, size).unwrap();
        let d: Vec<f64> = (0..n).map(|g| 0.2 + gaussian(seed + 50, g as u64).abs()).collect();
        for (k, t) in [(1, 0.3), (3, 0.05), (3, 2.0), (6, 1.0)] {
            let envelope = Envelope::new(k).with_weights(d.clone());
            let mut z = x.clone();
            envelope.prox(&mut z, &groups, t).unwrap();
            let y: Vec<f32> = x.iter().zip(&z).map(|(x, z)| ((x - z) as f64 / t) as f32).collect();
            let norms: Vec<f64> = (0..n).map(|g| groups.norm(&y, g)).collect();
            let inner: f64 = (0..n).map(|g| groups.dot(&z, &y, g)).sum();
            let gap = envelope.value(&z, &groups).unwrap() + conjugate(&norms, &d, k).0 - inner;
            assert!(gap.abs() < 1e-5 * inner.abs().max(1.0), "k {k}, t {t}: {gap}");
        }
    }
}

/// WGSEF's prox: x = prox_tE(x) + t prox_E*/t(x / t) (Moreau), the second by a solver that knows only supports.
#[test]
fn moreaus_identity_holds() {
    let (n, k, t) = (5, 2, 0.7);
    let x: Vec<f32> = random(n, 3).iter().map(|v| v.abs()).collect();
    let d = [1.0, 0.5, 2.0, 1.5, 0.8];
    let groups = Groups::even(n, 1).unwrap();
    let mut ours = x.clone();
    Envelope::new(k).with_weights(d.to_vec()).prox(&mut ours, &groups, t).unwrap();
    // argmin ½ ‖y - w‖² + E*(y) / t by subgradients, strongly convex, averaged with growing weights.
    let w: Vec<f64> = x.iter().map(|v| f64::from(*v) / t).collect();
    let (mut y, mut mean) = (w.clone(), vec![0.0; n]);
    for step in 1..=200_000u32 {
        let support = conjugate(&y, &d, k).1;
        let rate = 2.0 / (f64::from(step) + 1.0);
        for j in 0..n {
            let of_conjugate = if support.contains(&j) { y[j] / d[j] / t } else { 0.0 };
            y[j] -= rate * (y[j] - w[j] + of_conjugate);
        }
        mean.iter_mut().zip(&y).for_each(|(m, y)| *m += (y - *m) * rate);
    }
    for j in 0..n {
        let wanted = f64::from(x[j]) - t * mean[j];
        assert!((f64::from(ours[j]) - wanted).abs() < 1e-3, "{j}: {} {wanted}", ours[j]);
    }
}

/// WGSEF: proximal gradient steps on a regression reach the preset number of groups, which plain ones never do.
#[test]
fn k_groups_are_left() {
    let (samples, n, size, k) = (60, 8, 2, 3);
    let a: Vec<Vec<f32>> = (0..samples).map(|s| random(n * size, 500 + s as u64)).collect();
    let truth: Vec<f32> = (0..n * size).map(|i| if i < k * size { 1.0 } else { 0.0 }).collect();
    let noise = random(samples, 9);
    let target: Vec<f32> = (0..samples)
        .map(|s| a[s].iter().zip(&truth).map(|(a, w)| a * w).sum::<f32>() + 0.3 * noise[s])
        .collect();
    let groups = Groups::even(n * size, size).unwrap();
    let run = |envelope: Option<Envelope>| {
        let mut x = vec![0.0f32; n * size];
        for _ in 0..400 {
            let mut gradient = vec![0.0f32; n * size];
            for (row, y) in a.iter().zip(&target) {
                let off = row.iter().zip(&x).map(|(a, w)| a * w).sum::<f32>() - y;
                gradient.iter_mut().zip(row).for_each(|(g, a)| *g += off * a / samples as f32);
            }
            x.iter_mut().zip(&gradient).for_each(|(x, g)| *x -= 0.3 * g);
            if let Some(envelope) = &envelope {
                envelope.prox(&mut x, &groups, 0.3 * 0.3).unwrap();
            }
        }
        (0..n).filter(|g| groups.norm(&x, *g) > 0.0).collect::<Vec<_>>()
    };
    assert_eq!(run(None).len(), n);
    assert_eq!(run(Some(Envelope::new(k))), [0, 1, 2]);
}

/// OTOv2. Fails if the half-space is that of the trial alone, or ε is ignored.
#[test]
fn a_group_that_leaves_its_half_space_is_zero() {
    let groups = Groups::even(2, 2).unwrap();
    let x = [1.0f32, 1.0];
    for (trial, epsilon, gone) in [
        ([0.5f32, 0.5], 0.0, false),
        ([0.5, 0.5], 0.4, false),
        ([0.5, 0.5], 0.6, true),
        ([2.0, -1.9], 0.0, false),
        ([2.0, -2.1], 0.0, true),
    ] {
        let mut after = trial;
        let ours = HalfSpace::default().with_epsilon(epsilon).project(&mut after, &x, &groups, 0);
        assert_eq!(ours, gone, "{trial:?}");
        assert_eq!(after, if gone { [0.0, 0.0] } else { trial });
    }
}

/// OTOv2. Fails with a constant penalty: a small one lets the norm grow, a large one the loss.
#[test]
fn the_penalty_descends_on_loss_and_norm() {
    let groups = Groups::even(3, 3).unwrap();
    for seed in 0..200 {
        let (x, mut g) = (random(3, seed), random(3, seed + 1000));
        let size = 10f32.powi((seed % 7) as i32 - 3);
        g.iter_mut().for_each(|g| *g *= size);
        let penalty = HalfSpace::default().penalty_of(&x, &g, &groups, 0);
        let norm = groups.norm(&x, 0);
        let d: Vec<f32> =
            x.iter().zip(&g).map(|(x, g)| -g - (penalty * f64::from(*x) / norm) as f32).collect();
        let size = f64::from(size);
        assert!(groups.dot(&d, &x, 0) < 1e-5 * size, "seed {seed}: the norm");
        assert!(groups.dot(&d, &g, 0) < 1e-5 * size * size, "seed {seed}: the loss");
    }
}

/// OTOv2, a whole run: redundant groups, which plain descent only brings near to 0, end at exactly 0, all others where
/// plain descent takes them.
#[test]
fn redundant_groups_go_and_the_others_train() {
    let (groups, rule) = (Groups::even(8, 2).unwrap(), HalfSpace::default().with_epsilon(0.1));
    let goal = [1.0f32, -1.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0];
    let mut x = random(8, 4);
    let mut plain = x.clone();
    let scores: Vec<f64> = (0..4).map(|g| groups.norm(&goal, g)).collect();
    let go = redundant(&scores, 2, &groups).unwrap();
    assert_eq!(go, [1, 3]);
    for _ in 0..200 {
        let gradient: Vec<f32> = x.iter().zip(&goal).map(|(x, t)| x - t).collect();
        rule.step(&mut x, &gradient, 0.1, &groups, &go).unwrap();
        plain.iter_mut().zip(&goal).for_each(|(x, t)| *x -= 0.1 * (*x - t));
    }
    assert!(groups.norm(&plain, 1) > 0.0 && groups.norm(&plain, 3) > 0.0);
    assert_eq!((groups.norm(&x, 1), groups.norm(&x, 3)), (0.0, 0.0));
    assert!([0, 1, 4, 5].iter().all(|i| (x[*i] - goal[*i]).abs() < 1e-4));
}

/// HESSO. Fails if all groups are marked at once, or drop to 0 at once.
#[test]
fn groups_are_forgotten_in_periods_and_steps() {
    let groups = Groups::even(6, 1).unwrap();
    let mut x = [6.0f32, 1.0, 5.0, 2.0, 4.0, 3.0];
    let mut forgetting = Forgetting::new(3).with_periods(2).with_steps(4);
    let mut path = Vec::new();
    for step in 0..8 {
        // From the second period on, what was large is not any more.
        let scores = if step < 4 { x.map(f64::from) } else { [0.0, 9.0, 0.5, 9.0, 4.0, 3.0] };
        forgetting.step(&mut x, &scores, &groups).unwrap();
        path.push(x);
    }
    let of = |variable: usize| path.iter().map(|x| x[variable]).collect::<Vec<_>>();
    assert_eq!(of(1), [0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(of(0)[3..], [6.0, 4.5, 3.0, 1.5, 0.0]);
    assert_eq!(of(2)[3..], [5.0, 3.75, 2.5, 1.25, 0.0]);
    assert_eq!((of(3)[7], of(4)[7], of(5)[7]), (2.0, 4.0, 3.0));
    assert_eq!((forgetting.gone(), forgetting.is_done()), (&[1usize, 0, 2][..], true));
    // What went stays at 0, whatever the trainer does.
    x[1] = 5.0;
    forgetting.step(&mut x, &[], &groups).unwrap();
    assert_eq!(x[1], 0.0);
}

/// HESSO's scores. Fails if a criterion is missing or not normalised.
#[test]
fn saliency_adds_up_its_criteria() {
    let groups = Groups::even(6, 2).unwrap();
    let x = [3.0f32, 4.0, 0.6, 0.8, 1.0, 0.0];
    let g = [4.0f32, -3.0, 0.3, 0.4, -2.0, 0.0];
    let alone = |salience: Salience| salience.scores(&x, &g, &groups).unwrap();
    let none = Salience::default().with_magnitude(0.0).with_taylor(0.0).with_cosine(0.0);
    let near = |ours: &[f64], wanted: [f64; 3]| {
        let mean = wanted.iter().sum::<f64>() / 3.0;
        ours.iter().zip(wanted).for_each(|(o, w)| assert!((o - w / mean).abs() < 1e-6, "{o} {w}"));
    };
    near(&alone(none.with_magnitude(1.0)), [5.0, 1.0, 1.0]);
    near(&alone(none.with_taylor(1.0)), [0.0, 0.5, 2.0]);
    near(&alone(none.with_cosine(1.0)), [1.0, 0.0, 2.0]);
    let all = alone(none.with_magnitude(1.0).with_taylor(2.0).with_cosine(0.5));
    assert!((all[2] - (3.0 / 7.0 + 2.0 * 2.0 * 3.0 / 2.5 + 0.5 * 2.0)).abs() < 1e-6);
    // Nothing known of a group is no error.
    assert_eq!(none.with_taylor(1.0).scores(&x, &[0.0; 6], &groups).unwrap(), [0.0; 3]);
}

/// CRIC. Without its cycles the smallest group goes, and the loss with it; its cycles see on the way to 0 that it
/// cannot.
#[test]
fn what_is_indispensable_is_swapped_out() {
    let groups = Groups::even(5, 1).unwrap();
    // A loss that hardly changes at the point, but grows beyond all measure as variable 0 goes to 0.
    let start = [0.2f32, 0.5, 0.6, 2.0, 3.0];
    let gradient = |x: &[f32]| -> Vec<f32> {
        let mut g: Vec<f32> = x.iter().map(|x| 0.1 * x).collect();
        g[0] -= 300.0 * (0.2 - x[0]).max(0.0);
        g
    };
    let score = |x: &[f32]| Salience::default().scores(x, &gradient(x), &groups).unwrap();
    assert!(redundant(&score(&start), 2, &groups).unwrap().contains(&0));
    let mut x = start;
    let mut cric = Cric::new(2).with_steps(10);
    let mut steps = 0;
    while !cric.is_done() {
        let scores = score(&x);
        cric.step(&mut x, &scores, &groups).unwrap();
        steps += 1;
    }
    assert!(!cric.redundant().contains(&0), "{:?}", cric.redundant());
    assert_eq!(cric.redundant().len(), 2);
    assert_eq!(x, start, "trial is no error");
    assert!((20..=100).contains(&steps), "{steps}");
    // The rest is progressive forgetting.
    let mut forgetting = Forgetting::of(cric.redundant().to_vec()).with_steps(3);
    while !forgetting.is_done() {
        forgetting.step(&mut x, &[], &groups).unwrap();
    }
    assert_eq!(x.iter().filter(|x| **x == 0.0).count(), 2);
}

#[test]
fn errors_say_what_is_allowed() {
    use ErrorKind::{InvalidArgument, Numerical, ShapeMismatch};
    let groups = Groups::even(4, 2).unwrap();
    kind(&Groups::even(4, 0).unwrap_err(), InvalidArgument, "size");
    kind(&Groups::new(4, [vec![0], vec![]]).unwrap_err(), InvalidArgument, "group 1");
    kind(&Groups::new(4, [vec![0, 4]]).unwrap_err(), InvalidArgument, "4 of 4");
    kind(&Groups::new(4, [vec![0], vec![0]]).unwrap_err(), InvalidArgument, "two groups");
    let (x, nan) = ([1.0f32; 4], [1.0, f32::NAN, 0.0, 0.0]);
    kind(&Envelope::new(0).value(&x, &groups).unwrap_err(), InvalidArgument, "k = 0");
    for weights in [vec![1.0, 0.0], vec![1.0, f64::NAN]] {
        let error = Envelope::new(1).with_weights(weights).value(&x, &groups).unwrap_err();
        kind(&error, InvalidArgument, "weights[1]");
    }
    let error = Envelope::new(1).with_weights(vec![1.0]).value(&x, &groups).unwrap_err();
    kind(&error, ShapeMismatch, "1 weights");
    kind(&Envelope::new(1).value(&nan, &groups).unwrap_err(), Numerical, "variable 1");
    kind(&Envelope::new(1).value(&x[1..], &groups).unwrap_err(), ShapeMismatch, "3 values");
    let mut z = x;
    kind(&Envelope::new(1).prox(&mut z, &groups, 0.0).unwrap_err(), InvalidArgument, "step");
    let step = |rule: HalfSpace, rate, go: &[usize]| {
        rule.step(&mut { x }, &x, rate, &groups, go).unwrap_err()
    };
    let rule = HalfSpace::default();
    kind(&step(rule.with_epsilon(1.0), 0.1, &[]), InvalidArgument, "epsilon");
    kind(&step(rule.with_penalty(-1.0), 0.1, &[]), InvalidArgument, "penalty");
    kind(&step(rule, f64::NAN, &[]), InvalidArgument, "rate");
    kind(&step(rule, 0.1, &[2]), InvalidArgument, "group 2");
    kind(&redundant(&[1.0], 1, &groups).unwrap_err(), ShapeMismatch, "1 scores");
    kind(&redundant(&[1.0, f64::NAN], 1, &groups).unwrap_err(), Numerical, "group 1");
    let error = Salience::default().with_taylor(-1.0).scores(&x, &x, &groups).unwrap_err();
    kind(&error, InvalidArgument, "taylor");
    kind(&Salience::default().scores(&x, &nan, &groups).unwrap_err(), Numerical, "gradients");
    let scores = [1.0, 2.0];
    for forgetting in [Forgetting::new(1).with_steps(0), Forgetting::new(1).with_periods(0)] {
        let error = forgetting.clone().step(&mut z, &scores, &groups).unwrap_err();
        kind(&error, InvalidArgument, "steps");
    }
    kind(
        &Forgetting::new(3).step(&mut z, &scores, &groups).unwrap_err(),
        InvalidArgument,
        "3 groups",
    );
    kind(&Forgetting::new(1).step(&mut z, &[1.0], &groups).unwrap_err(), ShapeMismatch, "1 scores");
    kind(&Cric::new(3).step(&mut z, &scores, &groups).unwrap_err(), InvalidArgument, "3 groups");
    kind(
        &Cric::new(1).with_cycles(0).step(&mut z, &scores, &groups).unwrap_err(),
        InvalidArgument,
        "cycles",
    );
    assert_eq!(z, x);
    let unknown = Forgetting::of(vec![2]).step(&mut z, &scores, &groups).unwrap_err();
    kind(&unknown, InvalidArgument, "group 2");
    let mut cric = Cric::new(1);
    cric.step(&mut z, &scores, &groups).unwrap();
    let other = Groups::even(4, 1).unwrap();
    kind(&cric.step(&mut z, &[1.0; 4], &other).unwrap_err(), ShapeMismatch, "4 groups");
    // Periods that do not fit what was marked before are no panic.
    let mut odd = Forgetting::of(vec![0, 1]).with_periods(3).with_steps(1);
    while !odd.is_done() {
        odd.step(&mut z, &scores, &groups).unwrap();
    }
    assert_eq!(odd.gone(), [0, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// The prox of groups of any sizes, many alike, many 0, k small and beyond: finite, never longer, and a fixed k of
    /// ramps.
    #[test]
    fn the_prox_of_anything_is_finite_and_shorter(
        sizes in proptest::collection::vec(1usize..4, 1..12),
        k in 1usize..14, step in 1e-6f64..1e6, alike in any::<bool>(), zeros in any::<bool>(), seed in any::<u64>(),
    ) {
        let n: usize = sizes.iter().sum();
        let mut at = 0;
        let groups = Groups::new(n, sizes.iter().map(|size| { at += size; (at - size..at).collect() })).unwrap();
        let mut x = random(n, seed);
        if alike { x.fill(-0.5); }
        if zeros { x.iter_mut().step_by(2).for_each(|x| *x = 0.0); }
        let mut z = x.clone();
        Envelope::new(k).prox(&mut z, &groups, step).unwrap();
        prop_assert!(z.iter().zip(&x).all(|(z, x)| z.is_finite() && z.abs() <= x.abs() && z * x >= 0.0));
        let value = |x: &[f32]| Envelope::new(k).value(x, &groups).unwrap();
        let objective = |y: &[f32]| {
            y.iter().zip(&x).map(|(y, x)| (f64::from(*y) - f64::from(*x)).powi(2)).sum::<f64>() / 2.0 + step * value(y)
        };
        prop_assert!(objective(&z) <= objective(&x) * (1.0 + 1e-6) + 1e-12);
        if k >= groups.len() {
            let plain = x.iter().zip(&z).all(|(x, z)| (f64::from(*x) / (1.0 + step) - f64::from(*z)).abs() < 1e-6);
            prop_assert!(plain);
        }
    }
}
