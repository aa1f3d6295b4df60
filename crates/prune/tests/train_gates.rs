//! Gates, sizes and PAT's operator: gradients by differences, chances by counting, folding by running both networks.

use proptest::prelude::*;
use tensorpress_prune::train::{
    Annealing, Bottleneck, Budget, Gate, HardConcrete, HybridIdentity, Lagrangian,
    LearnedThreshold, Size, Sloped, export, fold_rms_norm, keep_inputs,
};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array1, Array2, Axis};
use tensorpress_tensor::{Error, ErrorKind};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

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

fn operator(channels: usize, rank: usize, seed: u64) -> HybridIdentity {
    let mut operator = HybridIdentity::new(channels, rank, seed).unwrap();
    operator.scale = Array1::from_iter((0..rank).map(|i| 0.5 + i as f32));
    operator.down += &(random(rank, channels, seed + 1) * 0.2);
    operator.up += &(random(channels, rank, seed + 2) * 0.2);
    operator
}

/// PAT's operator and identity loss, by differences.
#[test]
fn the_operator_slopes_as_it_says() {
    let (x, weigh) = (random(5, 7, 1), random(5, 7, 2));
    let base = operator(7, 3, 3);
    let loss = |operator: &HybridIdentity, x: &Array2<f32>| -> f64 {
        (&operator.apply(x.view()).unwrap() * &weigh).iter().map(|v| f64::from(*v)).sum()
    };
    let found = base.backward(x.view(), weigh.view()).unwrap();
    let orthogonal = base.identity_loss();
    let near = |stated: f32, up: f64, down: f64, h: f64| {
        let wanted = (up - down) / (2.0 * h);
        assert!(
            (f64::from(stated) - wanted).abs() < 2e-3 * (1.0 + wanted.abs()),
            "{stated} {wanted}"
        );
    };
    let h = 0.0625f32;
    for (r, c) in [(0, 0), (2, 6), (1, 3)] {
        let moved = |by: f32, what: usize| {
            let mut moved = base.clone();
            match what {
                0 => moved.down[[r, c]] += by,
                1 => moved.up[[c, r]] += by,
                _ => moved.scale[r] += by,
            }
            moved
        };
        for (what, stated) in
            [found.down[[r, c]], found.up[[c, r]], found.scale[r]].into_iter().enumerate()
        {
            let at = |by: f32| loss(&moved(by, what), &x);
            near(stated, at(h), at(-h), f64::from(h));
        }
        let small = 1.0 / 1024.0;
        for (what, stated) in
            [orthogonal.down[[r, c]], orthogonal.up[[c, r]]].into_iter().enumerate()
        {
            let at = |by: f32| moved(by, what).identity_loss().value;
            near(stated, at(small), at(-small), f64::from(small));
        }
        let step = |by: f32| {
            let mut x = x.clone();
            x[[r, c]] += by;
            loss(&base, &x)
        };
        near(found.input[[r, c]], step(h), step(-h), f64::from(h));
    }
    assert!(HybridIdentity::new(9, 4, 5).unwrap().identity_loss().value < 1e-10);
    assert!(orthogonal.value > 0.01);
}

/// An RMS norm in f64.
fn rms_norm(x: &Array2<f64>, gain: &[f32], epsilon: f64) -> Array2<f64> {
    let mut y = x.clone();
    for mut row in y.rows_mut() {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let by = 1.0 / (mean + epsilon).sqrt();
        row.iter_mut().zip(gain).for_each(|(v, g)| *v *= by * f64::from(*g));
    }
    y
}

/// PAT's folding: two linears that write to a stream behind operators and one mask, a norm, and a linear that reads it.
/// Fails if the operator is folded behind the mask, the bias is not folded, or the norm keeps its gain or ε.
#[test]
fn folded_neighbours_compute_the_same() {
    let (channels, inputs, out) = (12, 5, 4);
    let keep: Vec<bool> = (0..channels).map(|c| c % 3 != 0).collect();
    let mask = Array1::from_iter(keep.iter().map(|k| f64::from(u8::from(*k))));
    let (w, b) =
        ([random(channels, inputs, 1), random(channels, inputs, 2)], random(1, channels, 3));
    let operators = [operator(channels, 4, 4), operator(channels, 4, 8)];
    let (reads, gain, epsilon) = (random(out, channels, 12), random(1, channels, 13), 0.03);
    let (gain, x) = (gain.row(0).to_vec(), random(6, inputs, 14).mapv(f64::from));
    let wide = |m: &Array2<f32>| m.mapv(f64::from);
    let stream = (0..2).fold(Array2::<f64>::zeros((6, channels)), |stream, i| {
        let (down, up) = (wide(&operators[i].down), wide(&operators[i].up));
        let mut d = Array2::<f64>::eye(channels);
        d += &(up * &operators[i].scale.mapv(f64::from)).dot(&down);
        let written = x.dot(&wide(&w[i]).t()) + &b.row(0).mapv(f64::from);
        stream + written.dot(&d.t()) * &mask
    });
    let wanted = rms_norm(&stream, &gain, epsilon).dot(&wide(&reads).t());
    let kept = keep.iter().filter(|k| **k).count();
    let small = (0..2).fold(Array2::<f64>::zeros((6, kept)), |stream, i| {
        let bias = b.row(0).to_vec();
        let (weight, bias) = operators[i].fold(w[i].view(), Some(&bias), &keep).unwrap();
        let bias = Array1::from(bias.unwrap()).mapv(f64::from);
        assert_eq!((weight.dim(), bias.len()), ((kept, inputs), kept));
        stream + x.dot(&wide(&weight).t()) + &bias.insert_axis(Axis(0))
    });
    let (gain, epsilon) = fold_rms_norm(&gain, epsilon, &keep).unwrap();
    let reads = keep_inputs(reads.view(), &keep).unwrap();
    let ours = rms_norm(&small, &gain, epsilon).dot(&wide(&reads).t());
    let apart = ours.iter().zip(&wanted).fold(0.0f64, |a, (x, y)| a.max((x - y).abs()));
    assert!(apart < 1e-5, "{apart}");
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
    for rank in [0, 5] {
        kind(&HybridIdentity::new(4, rank, 0).unwrap_err(), InvalidArgument, "rank");
    }
    let operator = HybridIdentity::new(4, 2, 0).unwrap();
    let x = random(3, 4, 1);
    kind(&operator.apply(x.t()).unwrap_err(), ShapeMismatch, "operator of 4");
    kind(&operator.backward(x.view(), x.t()).unwrap_err(), ShapeMismatch, "(4, 3)");
    kind(&operator.fold(x.view(), None, &[true; 4]).unwrap_err(), ShapeMismatch, "3 outputs");
    kind(&operator.fold(x.t(), Some(&[1.0]), &[true; 4]).unwrap_err(), ShapeMismatch, "biases");
    kind(&operator.fold(x.t(), None, &[true; 3]).unwrap_err(), ShapeMismatch, "mask");
    kind(&keep_inputs(x.view(), &[true]).unwrap_err(), ShapeMismatch, "4 inputs");
    kind(&fold_rms_norm(&[1.0], 0.0, &[]).unwrap_err(), ShapeMismatch, "1 gains");
    kind(&fold_rms_norm(&[1.0], 0.0, &[false]).unwrap_err(), InvalidArgument, "no channel");
    let mut odd = operator;
    odd.scale = Array1::zeros(3);
    kind(&odd.apply(x.view()).unwrap_err(), ShapeMismatch, "v 3");
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
