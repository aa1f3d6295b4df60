//! Ranks of all matrices by one price (`LowRank::bits`), against trying every rank.

mod common;

use std::hash::Hasher;
use std::sync::Arc;

use common::{energy, inputs, random};
use tensorpress_allocate::{Choice, Exact, Solver as _, Table, Unit};
use tensorpress_lowrank::{
    Factors, LowRank, Metric, Plain, Rank, Spectrum, asvd, svd, svd_llm, welore,
};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::rate::{OCTAVE, RateCurve, common_step};
use tensorpress_tensor::stats::{Calibration, Supplied, Supply};
use tensorpress_tensor::{
    Compress, Compressed, DType, ErrorKind, Group, Method, Result, RowFeedback, Storage, Target,
};

#[derive(Debug)]
struct Costs(Array2<f32>);

impl Supplied for Costs {
    fn of_weights(&self, supply: Supply, _: &str) -> Result<Option<Array2<f32>>> {
        Ok((supply == Supply::OUTPUT_FISHER).then(|| self.0.clone()))
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        self.0.iter().for_each(|g| hash.write_u32(g.to_bits()));
        Ok(())
    }
}

/// A matrix, its inputs, and what errors of its outputs cost.
struct Layer {
    weight: Array2<f32>,
    x: Array2<f32>,
    g: Array2<f32>,
}

impl Layer {
    fn new(out: usize, inp: usize, size: f32, seed: u64) -> Self {
        let gradients = inputs(4 * out, out, seed + 2);
        let g = gradients.t().dot(&gradients) * (1e-3 * size);
        Self { weight: random(out, inp, seed), x: inputs(120, inp, seed + 1), g }
    }

    fn calibration(&self) -> Calibration {
        let seen = Calibration::from_samples(self.x.clone(), Par::Seq);
        seen.with_supplied(Arc::new(Costs(self.g.clone())))
    }

    fn with<T>(&self, step: Option<f64>, act: impl FnOnce(Group<'_>) -> T) -> T {
        let asked = RowFeedback::new(0.0);
        let target = Target::new("w", self.weight.view()).with_rows(Some(&asked)).with_step(step);
        act(Group::single(target, self.calibration()))
    }

    fn made<M: Metric>(&self, method: &LowRank<M>, step: Option<f64>) -> Compressed {
        self.with(step, |group| method.compress_group(group).unwrap().layers.remove(0))
    }

    /// ½ tr(G E H Eᵀ) a token, in f64.
    fn nats(&self, made: &Compressed) -> f64 {
        let wide = |m: &Array2<f32>| m.mapv(f64::from);
        let lost = wide(&self.x).dot(&wide(&(&self.weight - &decode(&*made.node).unwrap())).t());
        0.5 * (&lost.dot(&wide(&self.g)) * &lost).sum() / self.x.nrows() as f64
    }

    fn curve<M: Metric>(&self, method: &LowRank<M>) -> RateCurve {
        self.with(None, |group| method.rates(group).unwrap().remove(0))
    }
}

fn bytes(made: &Compressed) -> u64 {
    Storage::of(&*made.node).unwrap().bytes()
}

fn layers() -> Vec<Layer> {
    [(16, 24, 1.0), (24, 16, 30.0), (12, 12, 0.03), (1, 9, 1.0)]
        .iter()
        .zip([1, 20, 40, 60])
        .map(|((out, inp, size), seed)| Layer::new(*out, *inp, *size, seed))
        .collect()
}

fn full(layer: &Layer) -> usize {
    layer.weight.nrows().min(layer.weight.ncols())
}

/// Each rank there is, compressed and measured: bytes and nats. All of it too.
fn tried(layer: &Layer) -> Vec<(u64, f64)> {
    let at = |rank| {
        let made = layer.made(&svd_llm(Rank::Number(rank)), None);
        (bytes(&made), layer.nats(&made))
    };
    (1..=full(layer)).map(at).collect()
}

/// Fails if a price were of a direction in place of a byte, if costs of outputs, tokens or the matrix itself were
/// forgotten.
#[test]
fn a_rank_is_what_trying_all_finds_best_at_a_price() {
    let mut dense = 0;
    for layer in layers() {
        let tried = tried(&layer);
        for step in (-14..6).map(|i| 0.5 * f64::from(i) - 0.13) {
            let made = layer.made(&svd_llm(Rank::default()).with_bits(Some(8.0)), Some(step));
            let cost = |bytes: u64, nats: f64| nats + 8.0 * (2.0 * step).exp2() * bytes as f64;
            let ours = cost(bytes(&made), layer.nats(&made));
            let all = tried.iter().map(|(bytes, nats)| cost(*bytes, *nats));
            let best = all.fold(f64::INFINITY, f64::min);
            assert!(ours <= best * (1.0 + 1e-3), "step {step}: {ours} against {best}");
            dense += usize::from(made.fallback.is_some());
        }
    }
    assert!((10..60).contains(&dense), "{dense} of 80 stay whole");
}

/// What a pipeline does: one step for all from the curves. Against the best of all choices, and equal ratios.
#[test]
fn at_one_step_all_matrices_together_lose_about_the_least_there_is() {
    let layers = layers();
    let method = svd_llm(Rank::default()).with_bits(Some(20.0));
    assert_eq!(method.shared_bits(), Some(20.0));
    let curves: Vec<RateCurve> = layers.iter().map(|layer| layer.curve(&method)).collect();
    let weights: u64 = curves.iter().map(RateCurve::weights).sum();
    let table = layers.iter().map(|layer| {
        let choices = tried(layer).into_iter().map(|(bytes, nats)| Choice::new(bytes, nats));
        Unit::new("w", choices.collect::<Vec<_>>())
    });
    let table = Table::new(table.collect::<Vec<_>>()).unwrap();
    for bits in [8.0, 14.0, 20.0, 26.0] {
        let step = common_step(curves.iter(), bits * weights as f64);
        let step = f64::from(step) / f64::from(OCTAVE);
        let method = svd_llm(Rank::default()).with_bits(Some(bits));
        let made: Vec<_> = layers.iter().map(|layer| layer.made(&method, Some(step))).collect();
        let (spent, lost) = layers
            .iter()
            .zip(&made)
            .fold((0, 0.0), |(spent, lost), (l, m)| (spent + bytes(m), lost + l.nats(m)));
        let least = Exact::new().solve(&table, spent).unwrap().error;
        assert!(lost <= least * 1.02 + 1e-9, "{bits}: {lost} against {least}");
        // Steps of whole ranks: no more than one direction of each away.
        let off = (8.0 * spent as f64 / weights as f64 - bits).abs();
        assert!(off < 0.1 * bits, "{bits} bits asked, {off} off");
        let alone = svd_llm(Rank::default()).with_bits(Some(bits));
        let alone: f64 = layers.iter().map(|layer| layer.nats(&layer.made(&alone, None))).sum();
        assert!(lost < 0.8 * alone, "{bits}: {lost} against {alone} by equal ratios");
        println!("{bits} bits: {lost:.4}, the least {least:.4}, equal ratios {alone:.4}");
    }
}

/// Without costs of outputs, errors are in parts of the outputs' energy: no scale of weights or inputs matters.
#[test]
fn without_costs_of_outputs_no_scale_matters() {
    let layer = Layer::new(16, 24, 1.0, 80);
    let ranks = |weight: &Array2<f32>, x: &Array2<f32>| -> Vec<u64> {
        let calibration = Calibration::from_samples(x.clone(), Par::Seq);
        let at = |step: i32| {
            let target = Target::new("w", weight.view()).with_step(Some(f64::from(step)));
            let group = Group::single(target, calibration.clone());
            bytes(
                &svd_llm(Rank::default())
                    .with_bits(Some(8.0))
                    .compress_group(group)
                    .unwrap()
                    .layers[0],
            )
        };
        (-8..2).map(at).collect()
    };
    let plain = ranks(&layer.weight, &layer.x);
    assert!(plain.first() > plain.last());
    // What is lost counts in parts of the mean output's energy.
    let outputs = |w: &Array2<f32>| energy(&layer.x.mapv(f64::from).dot(&w.mapv(f64::from).t()));
    let seen = Calibration::from_samples(layer.x.clone(), Par::Seq);
    let tried: Vec<(u64, f64)> = (1..=16)
        .map(|rank| {
            let made = svd_llm(Rank::Number(rank)).compress(layer.weight.view(), &seen).unwrap();
            let lost = outputs(&(&layer.weight - &decode(&*made.node).unwrap()));
            (bytes(&made), 16.0 * lost / outputs(&layer.weight))
        })
        .collect();
    for (step, ours) in (-8..2).zip(&plain) {
        let cost = |(bytes, lost): &(u64, f64)| lost + 8.0 * 4f64.powi(step) * *bytes as f64;
        let best = tried.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap();
        assert_eq!(*ours, best.0, "step {step}");
    }
    for scale in [1e-12f32, 1e3, 1e12] {
        assert_eq!(ranks(&(&layer.weight * scale), &layer.x), plain);
        assert_eq!(ranks(&layer.weight, &(&layer.x * scale)), plain);
    }
}

/// One threshold on normalised values: fails if errors decided, or half of the full rank were still factored.
#[test]
fn relative_ranks_are_those_of_welore() {
    let weights: Vec<Array2<f32>> = [(24, 16), (16, 40), (20, 20)]
        .iter()
        .zip(100..)
        .map(|((out, inp), seed)| {
            let weight = random(*out, *inp, seed);
            // Spectra that fall by different factors.
            &weight + &(random(*out, 2, seed + 9).dot(&random(2, *inp, seed + 10)) * seed as f32)
        })
        .collect();
    let spectrum =
        |w: &Array2<f32>| Spectrum::of(w.view(), &Plain, &Calibration::none(w.ncols()), Par::Seq);
    let spectra: Vec<_> = weights.iter().map(|w| spectrum(w).unwrap()).collect();
    let mut factored = 0;
    for kept in [0.05, 0.1, 0.3, 0.6] {
        let chosen = welore(&spectra, kept).unwrap();
        let step = (chosen.threshold.max(1e-9)).log2() + 1e-6;
        for (weight, rank) in weights.iter().zip(&chosen.ranks) {
            let target = Target::new("w", weight.view()).with_step(Some(step));
            let group = Group::single(target, Calibration::none(weight.ncols()));
            let method = svd(Rank::default()).with_bits(Some(16.0)).with_relative(true);
            let made = method.compress_group(group).unwrap().layers.remove(0);
            let found =
                made.fallback.is_none().then(|| made.node.describe()["left"]["shape"][1].as_u64());
            assert_eq!(found.flatten(), rank.map(|rank| rank as u64), "{kept}");
            factored += usize::from(rank.is_some());
        }
    }
    assert!((4..12).contains(&factored), "{factored}");
}

#[test]
fn alone_a_matrix_takes_no_more_than_its_bits() {
    let weight = random(40, 30, 200);
    for (dtype, factors) in
        [(DType::F32, None), (DType::BF16, None), (DType::F32, Some(DType::F16))]
    {
        for bits in [2.0, 7.5, 12.0] {
            let method = svd(Rank::default()).with_bits(Some(bits));
            let method = match factors {
                Some(dtype) => method.with_factors(Factors::Float(dtype)),
                None => method,
            };
            let target = Target::new("w", weight.view()).with_dtype(dtype);
            let group = Group::single(target, Calibration::none(30));
            let made = method.compress_group(group).unwrap().layers.remove(0);
            let size = factors.unwrap_or(dtype).size();
            let (spent, direction) = (bytes(&made) as f64, (70 * size) as f64);
            let budget = bits * 1200.0 / 8.0;
            assert!(
                spent <= budget.max(direction) && spent + direction > budget,
                "{bits}: {spent}"
            );
        }
    }
    let run = |method: LowRank<Plain>| method.compress(weight.view(), &Calibration::none(30));
    for method in [
        svd(Rank::default()).with_bits(Some(0.0)),
        svd(Rank::default()).with_bits(Some(f64::NAN)),
        svd(Rank::default()).with_bits(Some(4.0)).with_factors(Factors::Remapped),
    ] {
        let error = run(method).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("allowed"), "{error}");
    }
}

/// Zero, empty and unusable: a curve all the same.
#[test]
fn curves_of_whatever_there_is() {
    let zero = Array2::<f32>::zeros((6, 8));
    let none = Array2::<f32>::zeros((0, 8));
    let dead = Calibration::from_samples(Array2::zeros((5, 8)), Par::Seq);
    for weight in [&zero, &none, &random(6, 8, 1)] {
        for calibration in [&dead, &Calibration::from_samples(inputs(30, 8, 2), Par::Seq)] {
            let group = || Group::single(Target::new("w", weight.view()), calibration.clone());
            let curve =
                svd_llm(Rank::default()).with_bits(Some(8.0)).rates(group()).unwrap().remove(0);
            assert_eq!(curve.weights(), weight.len() as u64);
            let bits: Vec<f64> = (-90..90).map(|octave| curve.bits(octave * OCTAVE)).collect();
            assert!(bits.windows(2).all(|pair| pair[0] >= pair[1]));
            assert!(bits.iter().all(|bits| *bits <= 32.0 * weight.len() as f64));
        }
    }
    let mut nan = zero.clone();
    nan[[1, 1]] = f32::NAN;
    let group = Group::single(Target::new("w", nan.view()), dead);
    assert_eq!(
        svd_llm(Rank::default()).with_bits(Some(8.0)).rates(group).unwrap_err().kind(),
        ErrorKind::Numerical
    );
    assert!(asvd(Rank::Ratio(0.2), 0.5).shared_bits().is_none());
}
