//! Schedules, masks in training and the bypass beside them, against their formulas.

use proptest::prelude::*;
use tensorpress_prune::train::{BlockSums, Curve, MaskedWeight, Schedule, StructureDecay};
use tensorpress_prune::{Pattern, Scope};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array2, array};
use tensorpress_tensor::node::Mask;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Gradual magnitude pruning: the cubic of the paper. Fails with any other power.
#[test]
fn the_cubic_is_that_of_gradual_pruning() {
    let (s_i, s_f, t_0, n, dt) = (0.25f64, 0.875f64, 40u64, 10u64, 7u64);
    let schedule = Schedule::cubic(s_i, s_f).with_begin(t_0).with_steps(n * dt).with_every(dt);
    for k in 0..=n {
        let wanted = s_f + (s_i - s_f) * (1.0 - k as f64 / n as f64).powi(3);
        for step in t_0 + k * dt..t_0 + k * dt + if k == n { 1 } else { dt } {
            assert!((schedule.at(step) - wanted).abs() < 1e-12, "step {step}");
            assert_eq!(schedule.changes(step), step == t_0 + k * dt, "step {step}");
        }
    }
    assert_eq!((schedule.at(0), schedule.at(9999)), (s_i, s_f));
    assert!(!schedule.changes(39) && !schedule.changes(t_0 + n * dt + dt));
}

/// Gradual magnitude pruning, a whole run: the mask has the schedule's sparsity at each update and never loosens, since
/// masked weights get no gradient here.
#[test]
fn gradual_pruning_prunes_to_the_schedule() {
    let mut w = random(8, 16, 1);
    let schedule = Schedule::cubic(0.0, 0.75).with_steps(40).with_every(4);
    let mut support = MaskedWeight::new(w.view(), Pattern::unstructured(0.0)).unwrap();
    let mut gone = 0;
    for step in 0..=40 {
        if schedule.changes(step) {
            let sparsity = schedule.at(step);
            let pattern = Pattern::Unstructured { sparsity, scope: Scope::Matrix };
            support.update(w.view(), pattern).unwrap();
            let now = 128 - support.mask().kept(0..8);
            assert_eq!(now, (128.0 * sparsity + 1e-9) as usize);
            assert!(now >= gone);
            gone = now;
        }
        w = support.forward(w.view(), 0.0).unwrap();
        w.mapv_inplace(|v| v * 0.99);
    }
    assert_eq!(gone, 96);
}

/// Progressive gradient flow. Fails if the forward pass is a plain mask, or if masked weights get no gradient.
#[test]
fn masked_weights_fade() {
    let w = array![[4.0f32, -1.0, 2.0, -8.0]];
    let support = MaskedWeight::new(w.view(), Pattern::nm(2, 4)).unwrap();
    for (schedule, wanted) in [
        (Schedule::linear(1.0, 0.0).with_steps(8), [1.0, 0.75, 0.5]),
        (
            Schedule::exponential(1.0, 0.0, 4.0).with_steps(8),
            [1.0, (-1.0f64).exp(), (-2.0f64).exp()],
        ),
    ] {
        for (step, beta) in [0, 2, 4].into_iter().zip(wanted) {
            assert!((schedule.at(step) - beta).abs() < 1e-12);
            let used = support.forward(w.view(), schedule.at(step) as f32).unwrap();
            let beta = beta as f32;
            assert_eq!(used, array![[4.0, -beta, 2.0 * beta, -8.0]]);
        }
        assert_eq!(schedule.at(8), 0.0);
    }
}

/// Structure decay. Fails if the target holds from the start.
#[test]
fn structure_decays_by_halves() {
    let decay = StructureDecay::new(3, 16).with_begin(10).with_every(5);
    let kept = |step| match decay.at(step) {
        Pattern::NM { n, m: 16 } => n,
        pattern => panic!("{pattern:?}"),
    };
    let steps = [0, 9, 10, 14, 15, 20, 25, 30, u64::MAX];
    assert_eq!(steps.map(kept), [16, 16, 15, 15, 8, 4, 3, 3, 3]);
    let w = random(3, 16, 4);
    assert!(steps.iter().all(|step| MaskedWeight::new(w.view(), decay.at(*step)).is_ok()));
}

/// AST. Fails if λ applies to kept weights too (weight decay), or not at all.
#[test]
fn only_masked_weights_decay() {
    let w = array![[4.0f32, -1.0, 2.0, -8.0]];
    let g = array![[0.5f32, 0.25, -0.5, 1.0]];
    let support = MaskedWeight::new(w.view(), Pattern::nm(2, 4)).unwrap();
    let ours = support.backward(g.view(), w.view(), 0.5).unwrap();
    assert_eq!(ours, array![[0.5, 0.25 - 0.5, -0.5 + 1.0, 1.0]]);
    // λ = α t up to T0, constant from there.
    let annealed = Schedule::linear(0.0, 2e-4 * 50.0).with_steps(50);
    assert!((annealed.at(20) - 2e-4 * 20.0).abs() < 1e-15);
    assert!((annealed.at(70) - 2e-4 * 50.0).abs() < 1e-15);
}

/// AST's churn. Fails if both rates are measured from the same support.
#[test]
fn flips_are_counted_from_the_last_and_from_the_first() {
    let pattern = Pattern::nm(1, 2);
    let a = array![[2.0f32, 1.0], [2.0, 1.0]];
    let b = array![[1.0f32, 2.0], [2.0, 1.0]];
    let mut support = MaskedWeight::new(a.view(), pattern).unwrap();
    assert_eq!((support.flipped(), support.flipped_since_first()), (0.0, 0.0));
    support.update(b.view(), pattern).unwrap();
    assert_eq!((support.flipped(), support.flipped_since_first()), (0.5, 0.5));
    support.update(b.view(), pattern).unwrap();
    assert_eq!((support.flipped(), support.flipped_since_first()), (0.0, 0.5));
    support.update_by(a.view(), pattern).unwrap();
    assert_eq!((support.flipped(), support.flipped_since_first()), (0.5, 0.0));
}

/// SLoRB's start. Fails for sums in the place of means, for kept weights among them, and for any other start: no S is
/// nearer.
#[test]
fn the_bypass_starts_nearest_to_what_was_pruned() {
    let w = random(5, 12, 6);
    let mask = Pattern::nm(2, 4).select(w.mapv(f32::abs).view()).unwrap();
    let pruned =
        Array2::from_shape_fn((5, 12), |(r, c)| if mask.keeps(r, c) { 0.0 } else { w[[r, c]] });
    let bypass = BlockSums::of_pruned(w.view(), &mask, 3).unwrap();
    let error = |bypass: &BlockSums| -> f64 {
        (&pruned - &bypass.dense()).iter().map(|d| f64::from(*d).powi(2)).sum()
    };
    let best = error(&bypass);
    assert!(best < pruned.iter().map(|d| f64::from(*d).powi(2)).sum());
    for at in 0..20 {
        for by in [-1e-2, 1e-2] {
            let mut other = bypass.clone();
            other.weight.as_slice_mut().unwrap()[at] += by;
            assert!(error(&other) > best);
        }
    }
    // The layer and its gradient by S, by differences.
    let (x, g) = (random(7, 12, 8), random(7, 5, 9));
    let mut y = random(7, 5, 7);
    let wanted = &y + &x.dot(&bypass.dense().t());
    bypass.add(x.view(), y.view_mut()).unwrap();
    assert!(y.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5));
    let gradient = g.t().dot(&bypass.sums(x.view()).unwrap());
    let loss = |bypass: &BlockSums| -> f64 {
        let mut y = Array2::zeros((7, 5));
        bypass.add(x.view(), y.view_mut()).unwrap();
        (&y * &g).iter().map(|v| f64::from(*v)).sum()
    };
    let mut moved = bypass.clone();
    moved.weight[[2, 1]] += 0.5;
    let slope = (loss(&moved) - loss(&bypass)) / 0.5;
    assert!((slope - f64::from(gradient[[2, 1]])).abs() < 1e-4);
}

#[test]
fn errors_say_what_is_allowed() {
    let kind = |error: tensorpress_tensor::Error, kind: ErrorKind, part: &str| {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    use ErrorKind::{InvalidArgument, Numerical, ShapeMismatch};
    for (schedule, part) in [
        (Schedule::linear(f64::NAN, 0.0), "first"),
        (Schedule::linear(0.0, f64::INFINITY), "last"),
        (Schedule::default().with_every(0), "every"),
        (Schedule::new(0.0, 1.0, Curve::Power(0.0)), "power"),
        (Schedule::exponential(0.0, 1.0, -1.0), "rate"),
    ] {
        kind(schedule.check().unwrap_err(), InvalidArgument, part);
    }
    assert!(Schedule::default().check().is_ok());
    let w = random(2, 4, 1);
    let bad = array![[1.0f32, f32::NAN, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]];
    let half = Pattern::unstructured(0.5);
    kind(MaskedWeight::new(bad.view(), half).unwrap_err(), Numerical, "[0, 1]");
    kind(MaskedWeight::new(w.view(), Pattern::nm(1, 3)).unwrap_err(), InvalidArgument, "divide");
    let mut support = MaskedWeight::new(w.view(), half).unwrap();
    kind(support.update(w.t(), half).unwrap_err(), ShapeMismatch, "(4, 2)");
    kind(support.forward(w.view(), 1.5).unwrap_err(), InvalidArgument, "beta");
    kind(support.backward(w.view(), w.view(), -1.0).unwrap_err(), InvalidArgument, "decay");
    kind(support.backward(w.t(), w.view(), 0.0).unwrap_err(), ShapeMismatch, "(4, 2)");
    let mask = support.mask();
    kind(BlockSums::of_pruned(w.view(), &mask, 3).unwrap_err(), InvalidArgument, "block = 3");
    kind(BlockSums::of_pruned(w.view(), &mask, 0).unwrap_err(), InvalidArgument, "block = 0");
    kind(BlockSums::of_pruned(w.t(), &mask, 1).unwrap_err(), ShapeMismatch, "4 x 2");
    kind(BlockSums::of_pruned(bad.view(), &mask, 2).unwrap_err(), Numerical, "[0, 1]");
    let bypass = BlockSums::of_pruned(w.view(), &mask, 2).unwrap();
    kind(bypass.sums(w.t()).unwrap_err(), ShapeMismatch, "inputs");
    let error = bypass.add(w.view(), Array2::zeros((2, 3)).view_mut()).unwrap_err();
    kind(error, ShapeMismatch, "outputs");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn schedules_stay_between_their_ends(
        first in -2.0f64..2.0, last in -2.0f64..2.0, power in 0.1f64..5.0, exponential in any::<bool>(),
        begin in 0u64..50, steps in 0u64..50, every in 1u64..20,
    ) {
        let curve = if exponential { Curve::Exponential(power) } else { Curve::Power(power) };
        let schedule = Schedule::new(first, last, curve).with_begin(begin).with_steps(steps).with_every(every);
        let (low, high) = (first.min(last) - 1e-12, first.max(last) + 1e-12);
        let mut before = schedule.at(0);
        for step in 1..120 {
            let now = schedule.at(step);
            prop_assert!((low..=high).contains(&now));
            prop_assert!(now == before || schedule.changes(step), "{}", step);
            prop_assert!((now - before) * (last - first) >= -1e-12);
            before = now;
        }
        prop_assert_eq!(before, last);
    }

    #[test]
    fn what_a_full_mask_keeps_is_all(rows in 1usize..5, cols in 1usize..7, seed in 0u64..99) {
        let w = random(rows, cols, seed);
        let support = MaskedWeight::new(w.view(), Pattern::unstructured(0.0)).unwrap();
        prop_assert_eq!(&support.forward(w.view(), 0.0).unwrap(), &w);
        let all = Mask::from_bools(Array2::from_elem((rows, cols), true).view());
        let bypass = BlockSums::of_pruned(w.view(), &all, cols).unwrap();
        prop_assert!(bypass.dense().iter().all(|v| *v == 0.0));
    }
}
