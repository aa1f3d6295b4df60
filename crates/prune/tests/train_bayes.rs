//! Turbo-VBI against a slow reference, and on planted supports.

use proptest::prelude::*;
use tensorpress_prune::train::{Gamma, MarkovChain, TurboFit, TurboVbi};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::{Par, SplitMix, gaussian};
use tensorpress_tensor::ndarray::{Array2, array};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// What all others say of each entry, by all 2ⁿ supports.
fn all_supports(chain: MarkovChain, evidence: &[f64]) -> Vec<f64> {
    let (n, d) = (evidence.len(), chain.density);
    let stay = d + (1.0 - d) * chain.persistence;
    let rise = d * (1.0 - chain.persistence);
    let mut sums = vec![[0.0, 0.0]; n];
    for bits in 0u32..1 << n {
        let s: Vec<bool> = (0..n).map(|i| bits >> i & 1 == 1).collect();
        let step = |i: usize| match (s[i], s[i + 1]) {
            (true, true) => stay,
            (true, false) => 1.0 - stay,
            (false, true) => rise,
            (false, false) => 1.0 - rise,
        };
        let first = if s[0] { d } else { 1.0 - d };
        let prior = first * (0..n - 1).map(step).product::<f64>();
        for i in 0..n {
            let of_others = (0..n).filter(|j| *j != i && s[*j]).map(|j| evidence[j]).sum::<f64>();
            sums[i][usize::from(s[i])] += prior * of_others.exp();
        }
    }
    sums.iter().map(|[none, one]| one / (none + one)).collect()
}

/// The extrinsic messages. Fails if an entry's own evidence comes back to it, or only one direction is passed.
#[test]
fn messages_are_marginals_over_all_supports() {
    for (seed, density, persistence) in
        [(1, 0.1, 0.8), (2, 0.5, 0.0), (3, 0.3, 0.99), (4, 0.9, 0.5)]
    {
        let chain = MarkovChain { density, persistence };
        for n in [1, 2, 7, 11] {
            let evidence: Vec<f64> = (0..n).map(|i| 2.0 * gaussian(seed, i as u64)).collect();
            let ours = chain.extrinsic(&evidence).unwrap();
            for (ours, wanted) in ours.iter().zip(all_supports(chain, &evidence)) {
                assert!((ours - wanted).abs() < 1e-12, "{ours} {wanted}");
            }
        }
    }
    assert!(MarkovChain { density: 0.5, persistence: 0.5 }.extrinsic(&[]).unwrap().is_empty());
}

/// ψ by its series, with the tail as an integral.
fn digamma(x: f64) -> f64 {
    let n = 2_000_000;
    let sum: f64 = (0..n).map(|k| 1.0 / (f64::from(k) + 1.0) - 1.0 / (f64::from(k) + x)).sum();
    -0.577_215_664_901_532_9 + sum + (x - 1.0) / f64::from(n)
}

/// The inverse of a symmetric positive matrix, by Gauss and Jordan.
fn inverse(mut a: Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    let mut b = Array2::<f64>::eye(n);
    for i in 0..n {
        let d = a[[i, i]];
        for c in 0..n {
            a[[i, c]] /= d;
            b[[i, c]] /= d;
        }
        for r in (0..n).filter(|r| *r != i) {
            let f = a[[r, i]];
            for c in 0..n {
                a[[r, c]] -= f * a[[i, c]];
                b[[r, c]] -= f * b[[i, c]];
            }
        }
    }
    b
}

/// The updates as the paper has them, turn by turn: q(w), q(ρ), q(s), then the chain by all supports. Shapes that are
/// not 1 make E ln ρ count. Fails if any of the three layers is left out.
#[test]
fn turns_are_as_stated() {
    let (n, samples) = (6, 9);
    let (x, y) = (random(samples, n, 1), random(samples, 1, 2));
    let method = TurboVbi::default()
        .with_precisions(Gamma { shape: 2.0, rate: 1.5 }, Gamma { shape: 3.0, rate: 0.2 })
        .with_noise(0.3)
        .with_warm(0)
        .with_chain(MarkovChain { density: 0.3, persistence: 0.6 });
    let (on, off) = (method.on, method.off);
    let (wide, target) = (x.mapv(f64::from), y.mapv(f64::from));
    let (mut rho, mut p, mut prior): (Vec<f64>, Vec<f64>, Vec<f64>) =
        (vec![on.shape / on.rate; n], vec![0.0; n], vec![0.3; n]);
    for turns in 1..=4 {
        let mut a = wide.t().dot(&wide) / 0.3;
        (0..n).for_each(|i| a[[i, i]] += rho[i]);
        let sigma = inverse(a);
        let mean = sigma.dot(&(wide.t().dot(&target) / 0.3));
        let mut evidence = vec![0.0; n];
        for i in 0..n {
            let shape = p[i] * on.shape + (1.0 - p[i]) * off.shape + 0.5;
            let rate = p[i] * on.rate
                + (1.0 - p[i]) * off.rate
                + 0.5 * (mean[[i, 0]].powi(2) + sigma[[i, i]]);
            rho[i] = shape / rate;
            let log = digamma(shape) - rate.ln();
            // ln Γ(2) = 0, ln Γ(3) = ln 2.
            let of_on = 2.0 * 1.5f64.ln() + log - 1.5 * rho[i];
            let of_off = 3.0 * 0.2f64.ln() - 2f64.ln() + 2.0 * log - 0.2 * rho[i];
            evidence[i] = of_on - of_off;
            let odds = (prior[i] / (1.0 - prior[i])).ln() + evidence[i];
            p[i] = 1.0 / (1.0 + (-odds).exp());
        }
        prior = all_supports(method.chain, &evidence);
        let fit = method.with_iterations(turns, 0.0).fit(x.view(), y.view(), Par::Seq).unwrap();
        for i in 0..n {
            let pairs = [
                (fit.mean[[0, i]], mean[[i, 0]]),
                (fit.variance[[0, i]], sigma[[i, i]]),
                (fit.support[[0, i]], p[i]),
            ];
            for (ours, wanted) in pairs {
                assert!((ours - wanted).abs() < 1e-8, "turn {turns}, {i}: {ours} {wanted}");
            }
        }
    }
}

/// Weights in runs, with fewer samples than inputs.
fn planted(seed: u64) -> (Array2<f32>, Array2<f32>, Array2<f32>) {
    let (samples, n, out) = (33, 60, 4);
    let mut bits = SplitMix::new(seed);
    let mut w = Array2::zeros((out, n));
    for row in 0..out {
        for _ in 0..2 {
            let first = (bits.next_u64() % 54) as usize;
            for c in first..first + 6 {
                let g = gaussian(seed + 1000, (row * n + c) as u64) as f32;
                w[[row, c]] = g + g.signum() * 0.5;
            }
        }
    }
    let x = random(samples, n, seed + 2000) / (samples as f32).sqrt();
    let y = x.dot(&w.t()) + random(samples, out, seed + 3000) * 0.05;
    (x, y, w)
}

fn wrong(fit: &TurboFit, w: &Array2<f32>) -> usize {
    let mask = fit.mask();
    w.indexed_iter().filter(|((r, c), w)| mask.keeps(*r, *c) != (**w != 0.0)).count()
}

/// Fails if the chain is left out: of the same density, without persistence, it finds fewer of the planted supports,
/// and worse weights.
#[test]
fn runs_are_found_better_with_the_chain_than_without() {
    let method = TurboVbi::default().with_noise(0.0025);
    let run = |persistence: f64| {
        let chain = MarkovChain { density: 0.2, persistence };
        let (mut errors, mut off, mut all) = (0, 0.0, 0.0);
        for seed in 0..12 {
            let (x, y, w) = planted(seed);
            let fit = method.with_chain(chain).fit(x.view(), y.view(), Par::Seq).unwrap();
            errors += wrong(&fit, &w);
            off += (&fit.mean - &w.mapv(f64::from)).iter().map(|d| d * d).sum::<f64>();
            all += w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        }
        (errors, off / all)
    };
    let (with, without) = (run(0.8), run(0.0));
    println!("wrong of 2880, squared error: {with:?} with the chain, {without:?} without");
    assert!((with.0 as f64) < 0.6 * without.0 as f64, "{with:?} {without:?}");
    assert!(with.1 < 0.8 * without.1, "{with:?} {without:?}");
}

#[test]
fn threads_do_not_change_the_result() {
    let (x, y, _) = planted(1);
    let run = |par| TurboVbi::default().fit(x.view(), y.view(), par).unwrap();
    assert_eq!(run(Par::Seq), run(Par::Rayon));
}

#[test]
fn errors_say_what_is_allowed() {
    let (x, y) = (random(4, 3, 1), random(4, 2, 2));
    let kind = |method: TurboVbi, x: &Array2<f32>, y: &Array2<f32>, kind: ErrorKind, part: &str| {
        let error = method.fit(x.view(), y.view(), Par::Seq).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    use ErrorKind::{InvalidArgument, Numerical, ShapeMismatch};
    let method = TurboVbi::default();
    let chain = |density, persistence| method.with_chain(MarkovChain { density, persistence });
    kind(chain(0.0, 0.5), &x, &y, InvalidArgument, "density");
    kind(chain(0.5, 1.0), &x, &y, InvalidArgument, "persistence");
    kind(chain(f64::NAN, 0.0), &x, &y, InvalidArgument, "density");
    let bad = Gamma { shape: 0.0, rate: 1.0 };
    kind(method.with_precisions(bad, method.off), &x, &y, InvalidArgument, "on.shape");
    kind(method.with_noise(f64::NAN), &x, &y, InvalidArgument, "noise");
    kind(method.with_iterations(0, 0.0), &x, &y, InvalidArgument, "iterations");
    kind(method.with_iterations(1, f64::NAN), &x, &y, InvalidArgument, "tolerance");
    kind(method, &random(3, 3, 1), &y, ShapeMismatch, "3 samples");
    kind(method, &array![[f32::NAN, 0.0]], &array![[1.0]], Numerical, "input 0");
    kind(method, &array![[1.0, 0.0]], &array![[f32::INFINITY]], Numerical, "output 0");
    assert!(MarkovChain { density: 0.5, persistence: 0.1 }.extrinsic(&[f64::NAN]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// No samples, one input, zero columns, constant rows: finite, and probabilities.
    #[test]
    fn any_shape_gives_probabilities(
        samples in 0usize..6, inputs in 1usize..8, out in 0usize..3, size in -3i32..4,
        dead in any::<bool>(), seed in 0u64..999,
    ) {
        let mut x = random(samples, inputs, seed) * 10f32.powi(size);
        if dead {
            x.column_mut(0).fill(0.0);
            if samples > 0 { x.row_mut(0).fill(1.0); }
        }
        let fit = TurboVbi::default().fit(x.view(), random(samples, out, seed + 1).view(), Par::Seq).unwrap();
        prop_assert_eq!(fit.mean.dim(), (out, inputs));
        prop_assert!(fit.mean.iter().chain(&fit.variance).all(|v| v.is_finite()));
        prop_assert!(fit.support.iter().all(|p| (0.0..=1.0).contains(p)));
    }
}
