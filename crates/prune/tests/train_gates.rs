//! Gates and sizes: gradients by differences, chances by counting.

use proptest::prelude::*;
use tensorpress_prune::train::{
    Annealing, Bottleneck, Budget, Gate, HardConcrete, Lagrangian, LearnedThreshold, Size, Sloped,
    export,
};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::{Error, ErrorKind};

fn kind(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

/// The slopes of `f` at `at` are its differences.
fn slopes_hold(f: impl Fn([f64; 2]) -> Sloped, at: [f64; 2]) {
    let h = 1e-6;
    for i in 0..2 {
        let moved = |by: f64| {
            let mut moved = at;
            moved[i] += by;
            f(moved).value
        };
        let wanted = (moved(h) - moved(-h)) / (2.0 * h);
        let stated = f(at).slope[i];
        assert!(
            (stated - wanted).abs() < 1e-6 * (1.0 + wanted.abs()),
            "{at:?}, {i}: {stated} {wanted}"
        );
    }
}

/// Compresso. Fails without the stretch (z would never be 0 or 1), and for any other expected L0 than that of the
/// draws.
#[test]
fn the_expected_l0_is_that_of_the_draws() {
    for log_alpha in [-4.0, -2.0, -0.5, 0.0, 1.0, 3.0] {
        let gate = HardConcrete::new(log_alpha).unwrap();
        let draws: Vec<f64> = (0..200_000).map(|i| gate.sample(5, i).value).collect();
        let share = |of: &dyn Fn(f64) -> bool| {
            draws.iter().filter(|z| of(**z)).count() as f64 / draws.len() as f64
        };
        assert!((share(&|z| z > 0.0) - gate.presence().value).abs() < 5e-3, "{log_alpha}");
        // By symmetry, z is 1 with the chance that a gate of -log α is 0.
        let mirrored = 1.0 - HardConcrete::new(-log_alpha).unwrap().presence().value;
        assert!((share(&|z| z == 1.0) - mirrored).abs() < 5e-3, "{log_alpha}");
        assert!(draws.iter().all(|z| (0.0..=1.0).contains(z)));
        let again = gate.sample(5, 17).value;
        assert_eq!(again, draws[17]);
    }
    assert_eq!(HardConcrete::new(-5.0).unwrap().value(), 0.0);
    assert_eq!(HardConcrete::new(5.0).unwrap().value(), 1.0);
}

#[test]
fn gates_slope_as_they_say() {
    for at in 0..40u64 {
        let a = 3.0 * gaussian(1, at);
        let concrete = |p: [f64; 2]| HardConcrete::new(p[0]).unwrap();
        slopes_hold(|p| concrete(p).sample(2, at), [a, 0.0]);
        slopes_hold(|p| concrete(p).presence(), [a, 0.0]);
        let bottleneck = |p: [f64; 2]| Bottleneck::new(p[0], p[1]).unwrap();
        let params = [a, 2.0 * gaussian(3, at)];
        slopes_hold(|p| bottleneck(p).sample(2, at), params);
        slopes_hold(|p| bottleneck(p).presence(), params);
        slopes_hold(|p| bottleneck(p).rate(), params);
        let threshold = |p: [f64; 2]| {
            LearnedThreshold::new(p[1], 0.7).unwrap().gates(&[p[0]]).unwrap()[0].sample(0, 0)
        };
        slopes_hold(threshold, params);
        let annealing = Annealing::new(100).unwrap();
        slopes_hold(|p| annealing.gate(3 * at, p[0]).unwrap().sample(0, 0), [0.2 * a + 0.05, 0.0]);
    }
}

/// Compresso's export. Fails if gates are cut at a fixed presence in the place of the expected count.
#[test]
fn as_many_stay_as_are_expected() {
    let gates = [-0.5, -0.8, -1.0, -1.2, -0.7].map(|a| HardConcrete::new(a).unwrap());
    let expected: f64 = gates.iter().map(|g| g.presence().value).sum();
    let keep = export(&gates);
    assert_eq!(keep.iter().filter(|k| **k).count(), expected.round() as usize);
    assert_eq!(keep, [true, true, false, false, true]);
    assert!(export::<HardConcrete>(&[]).is_empty());
}

/// VTrans. Fails for the KL term of VIBNet's other half, ½ ln(1 + σ²/μ²), or if the threshold is on μ.
#[test]
fn the_bottleneck_is_the_divergence_it_bounds() {
    for (mean, log_variance) in [(0.5f64, -1.0f64), (2.0, 0.5), (-0.1, 0.0)] {
        let gate = Bottleneck::new(mean, log_variance).unwrap();
        // KL(N(μ, σ²) || N(0, s²)) at the best s² = μ² + σ².
        let (variance, s2) = (log_variance.exp(), mean * mean + log_variance.exp());
        let kl = 0.5 * ((s2 / variance).ln() + (variance + mean * mean) / s2 - 1.0);
        assert!((gate.rate().value - kl).abs() < 1e-12);
        assert!((gate.presence().value - (1.0 - (-2.0 * kl).exp())).abs() < 1e-12);
        assert_eq!(gate.keeps(), mean * mean > variance);
        assert_eq!(gate.with_threshold(0.009).unwrap().keeps(), mean * mean > 0.009 * variance);
        let draws: Vec<f64> = (0..100_000).map(|i| gate.sample(9, i).value).collect();
        let average = draws.iter().sum::<f64>() / draws.len() as f64;
        let spread = draws.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(
            (average - mean).abs() < 0.02 * variance.sqrt()
                && (spread / variance - 1.0).abs() < 0.02
        );
    }
    let shut = Bottleneck::new(0.0, 0.0).unwrap();
    assert_eq!((shut.rate(), shut.keeps()), (Sloped { value: 0.0, slope: [0.0, 0.0] }, false));
    assert!(Bottleneck::new(1e200, -200.0).unwrap().rate().value.is_finite());
}

/// The size by counting what is there, and its gradient by differences.
#[test]
fn the_share_is_what_is_counted() {
    // Embeddings of 4 channels; 3 heads of 2 dims in and out of them; 5 units in and out; 6 fixed weights.
    let mut size = Size::new();
    let (channels, heads, units) = (size.gates(4), size.gates(3), size.gates(5));
    size.add(4.0, [channels, heads]).unwrap();
    size.add(2.0, [channels, units]).unwrap();
    size.add(6.0, []).unwrap();
    assert_eq!(units.range(), 7..12);
    let hard: Vec<f64> = (0..12).map(|i| f64::from(u8::from(i % 3 != 1))).collect();
    let there = |set: std::ops::Range<usize>| set.filter(|i| i % 3 != 1).count() as f64;
    let wanted = 4.0 * there(0..4) * there(4..7) + 2.0 * there(0..4) * there(7..12) + 6.0;
    let whole = 4.0 * 12.0 + 2.0 * 20.0 + 6.0;
    assert!((size.share(&hard).unwrap().value - wanted / whole).abs() < 1e-12);
    assert!((size.share(&[1.0; 12]).unwrap().value - 1.0).abs() < 1e-12);
    let soft: Vec<f64> = (0..12).map(|i| 0.1 + 0.07 * f64::from(i)).collect();
    let share = size.share(&soft).unwrap();
    for i in 0..12 {
        let mut moved = soft.clone();
        moved[i] += 1e-3;
        let slope = (size.share(&moved).unwrap().value - share.value) / 1e-3;
        assert!((slope - share.gradient[i]).abs() < 1e-9, "{i}");
    }
}

/// Compresso's constraint, a whole run: gates of different worth are trained to half the size, and the worthy ones
/// stay. Fails without the multipliers' ascent: the loss alone opens all gates.
#[test]
fn the_multipliers_hold_the_size() {
    let n = 16;
    let worth: Vec<f64> = (0..n).map(|i| 0.02 + 0.05 * i as f64).collect();
    let mut size = Size::new();
    let gates = size.gates(n);
    size.add(1.0, [gates]).unwrap();
    let run = |climb: f64| {
        let (mut logs, mut constraint) = (vec![2.0; n], Lagrangian::default());
        for step in 0..6000u64 {
            let gates: Vec<HardConcrete> =
                logs.iter().map(|a| HardConcrete::new(*a).unwrap()).collect();
            let presences: Vec<Sloped> = gates.iter().map(Gate::presence).collect();
            let values: Vec<f64> = presences.iter().map(|p| p.value).collect();
            let share = size.share(&values).unwrap();
            let by_share = constraint.penalty(share.value, 0.5).slope[0];
            for i in 0..n {
                // The loss is Σ worth (1 - z).
                let by_z = -worth[i] * gates[i].sample(step, i as u64).slope[0];
                logs[i] -= 0.2 * (by_z + by_share * share.gradient[i] * presences[i].slope[0]);
                logs[i] = f64::clamp(logs[i], -6.0, 6.0);
            }
            constraint.ascend(share.value, 0.5, climb);
        }
        export(&logs.iter().map(|a| HardConcrete::new(*a).unwrap()).collect::<Vec<_>>())
    };
    assert!(run(0.0).iter().all(|keep| *keep));
    let keep = run(0.05);
    let kept = keep.iter().filter(|k| **k).count();
    assert!((7..=9).contains(&kept), "{kept}");
    assert!(keep[n - 5..].iter().all(|k| *k) && !keep[..4].iter().any(|k| *k), "{keep:?}");
}

/// LAPP, a whole run: two layers alike but for what their filters are worth find ratios of their own under one budget.
/// Fails if the budget's gradient, or the task's, does not reach the thresholds.
#[test]
fn layers_find_their_own_ratios() {
    let scores: Vec<f64> = (0..10).map(|i| 0.1 * f64::from(i) + 0.05).collect();
    let (worth, budget) = ([0.02, 0.5], Budget::new(0.5, 40.0));
    let mut size = Size::new();
    for _ in 0..2 {
        let layer = size.gates(10);
        size.add(1.0, [layer]).unwrap();
    }
    let mut thresholds = [0.0f64, 0.0];
    let mut share = 1.0;
    for _ in 0..3000 {
        let layers = thresholds.map(|t| LearnedThreshold::new(t, 0.05).unwrap());
        let gates = layers.map(|layer| layer.gates(&scores).unwrap());
        let soft: Vec<f64> = gates.iter().flatten().map(|gate| gate.presence().value).collect();
        let found = size.share(&soft).unwrap();
        let by_share = budget.penalty(found.value).slope[0];
        share = found.value;
        for layer in 0..2 {
            let by_mask: Vec<f64> = (0..10)
                .map(|i| by_share * found.gradient[layer * 10 + i] - worth[layer] * scores[i])
                .collect();
            thresholds[layer] -= 0.01 * layers[layer].gradient(&gates[layer], &by_mask).unwrap();
        }
    }
    let ratio = |layer: usize| {
        let of = LearnedThreshold::new(thresholds[layer], 0.05).unwrap();
        of.ratio(&of.gates(&scores).unwrap())
    };
    assert!(share < 0.6, "{share}");
    assert!(ratio(1) > ratio(0) + 0.3, "{} {}", ratio(0), ratio(1));
}

/// PAT's mask: the paper's formulas at some steps. Fails if logits of 0 do not start at 1, or masks do not end hard.
#[test]
fn the_mask_hardens_as_stated() {
    let annealing = Annealing::new(200).unwrap();
    for (step, tau, beta) in [
        (0, 1.0, 0.5),
        (50, 1.0 / (1.0 - 50f64.ln() / 200f64.ln()), 0.25),
        (150, 1.0 / (1.0 - 150f64.ln() / 200f64.ln()), 0.0),
        (200, 1e6, 0.0),
        (u64::MAX, 1e6, 0.0),
    ] {
        assert!(
            (annealing.temperature(step) - tau).abs() < 1e-9
                && (annealing.offset(step) - beta).abs() < 1e-12
        );
        let gate = annealing.gate(step, 0.3).unwrap();
        let wanted = 1.0 / (1.0 + (-tau * 0.3f64).exp()) + beta;
        assert!((gate.sample(0, 0).value - wanted).abs() < 1e-12);
    }
    assert_eq!(annealing.gate(0, 0.0).unwrap().sample(0, 0).value, 1.0);
    assert_eq!(Annealing::active(&[0.0, -1.0, 2.0, 3.0], 2), (1.0, 1.0));
    assert_eq!(Annealing::active(&[0.0, -1.0, -2.0, 3.0], 2), (0.0, 0.0));
    assert_eq!(Annealing::active(&[-0.1, -1.0], 2), (2.0, -1.0));
}

#[test]
fn errors_say_what_is_allowed() {
    use ErrorKind::{InsufficientData, InvalidArgument, ShapeMismatch};
    kind(&HardConcrete::new(f64::NAN).unwrap_err(), InvalidArgument, "log_alpha");
    kind(&Bottleneck::new(f64::INFINITY, 0.0).unwrap_err(), InvalidArgument, "mean");
    kind(&Bottleneck::new(0.0, 300.0).unwrap_err(), InvalidArgument, "log_variance");
    let gate = Bottleneck::new(0.0, 0.0).unwrap();
    kind(&gate.with_threshold(0.0).unwrap_err(), InvalidArgument, "threshold");
    kind(&LearnedThreshold::new(f64::NAN, 1.0).unwrap_err(), InvalidArgument, "threshold");
    kind(&LearnedThreshold::new(0.0, 0.0).unwrap_err(), InvalidArgument, "temperature");
    let layer = LearnedThreshold::new(0.0, 1.0).unwrap();
    kind(&layer.gates(&[f64::NAN]).unwrap_err(), InvalidArgument, "score");
    let gates = layer.gates(&[1.0]).unwrap();
    kind(&layer.gradient(&gates, &[]).unwrap_err(), ShapeMismatch, "1 gates");
    assert_eq!(layer.ratio(&[]), 0.0);
    kind(&Annealing::new(1).unwrap_err(), InvalidArgument, "milestone");
    kind(&Annealing::new(9).unwrap().gate(0, f64::NAN).unwrap_err(), InvalidArgument, "logit");
    let mut size = Size::new();
    let two = size.gates(2);
    kind(&size.share(&[1.0, 1.0]).unwrap_err(), InsufficientData, "size 0");
    kind(&size.add(-1.0, [two]).unwrap_err(), InvalidArgument, "cost");
    kind(&Size::new().add(1.0, [two]).unwrap_err(), InvalidArgument, "0..2 of 0");
    size.add(1.0, [two]).unwrap();
    kind(&size.share(&[1.0]).unwrap_err(), ShapeMismatch, "1 presences");
    kind(&size.share(&[1.0, f64::NAN]).unwrap_err(), InvalidArgument, "gate 1");
}

proptest! {
    #[test]
    fn gates_are_finite_whatever_their_parameters(a in -1e300f64..1e300, l in -200.0f64..200.0, at in any::<u64>()) {
        let concrete = HardConcrete::new(a).unwrap();
        let bottleneck = Bottleneck::new(a, l).unwrap();
        for Sloped { value, slope } in [
            concrete.sample(1, at), concrete.presence(), bottleneck.rate(),
            bottleneck.sample(1, at), bottleneck.presence(),
            Annealing::new(9).unwrap().gate(at, a).unwrap().sample(0, 0),
        ] {
            prop_assert!(value.is_finite() && slope.iter().all(|s| s.is_finite()));
        }
        prop_assert!((0.0..=1.0).contains(&bottleneck.presence().value));
    }
}
