//! Factors by what errors of the outputs cost (G beside the inputs' H), against formulas in f64 and other factors.

mod common;

use std::hash::Hasher;
use std::sync::Arc;

use common::{energy, inputs, random};
use tensorpress_lowrank::{
    DriftedGram, LowRank, Metric, Rank, dobi_svd, feature_mimicking, saes_svd, svd, svd_llm,
};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, Axis, s};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::{Calibration, CrossGram, Supplied, Supply};
use tensorpress_tensor::{
    Compress, Compressed, DynCompress, ErrorKind, Group, Result, RowFeedback, Target,
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

fn wide(m: &Array2<f32>) -> Array2<f64> {
    m.mapv(f64::from)
}

/// E[g gᵀ] of gradients with a spectrum, of any scale.
fn fisher(out: usize, seed: u64) -> Array2<f32> {
    let g = inputs(4 * out, out, seed);
    g.t().dot(&g) * 1e-4
}

/// As G is damped: in proportion, and by 1e-4 of the median.
fn damped(g: &Array2<f32>, damp: f64) -> Array2<f64> {
    let mut damped = wide(g);
    let mut sorted = damped.diag().to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[(sorted.len() - 1) / 2];
    damped.diag_mut().mapv_inplace(|v| v * (1.0 + damp) + 1e-4 * median);
    damped
}

/// A symmetric root, by eigenvalues.
fn root(m: &Array2<f64>) -> Array2<f64> {
    let eigen = linalg::symmetric_eigen(m.view()).unwrap();
    (&eigen.vectors * &eigen.values.mapv(|v| v.max(0.0).sqrt())).dot(&eigen.vectors.t())
}

/// The inverse, by Gauss and Jordan with pivots.
fn inverse(matrix: &Array2<f64>) -> Array2<f64> {
    let n = matrix.nrows();
    let (mut a, mut out) = (matrix.clone(), Array2::<f64>::eye(n));
    for j in 0..n {
        let pivot = (j..n).max_by(|x, y| a[[*x, j]].abs().total_cmp(&a[[*y, j]].abs())).unwrap();
        for c in 0..n {
            a.swap([j, c], [pivot, c]);
            out.swap([j, c], [pivot, c]);
        }
        let by = a[[j, j]];
        a.row_mut(j).mapv_inplace(|v| v / by);
        out.row_mut(j).mapv_inplace(|v| v / by);
        for r in (0..n).filter(|r| *r != j) {
            let by = a[[r, j]];
            for c in 0..n {
                a[[r, c]] -= by * a[[j, c]];
                out[[r, c]] -= by * out[[j, c]];
            }
        }
    }
    out
}

/// What a method makes of a matrix where errors of outputs are asked to count by G.
fn made(
    method: &dyn DynCompress,
    weight: &Array2<f32>,
    calibration: &Calibration,
    damp: f64,
) -> (Compressed, Option<String>) {
    let asked = RowFeedback::new(damp);
    let target = Target::new("w", weight.view()).with_rows(Some(&asked));
    let group = Group::single(target, calibration.clone());
    let layer = method.compress_group_dyn(group).unwrap().layers.remove(0);
    let news = asked.outcome().expect("it was taken").map(str::to_owned);
    (layer, news)
}

fn decoded<M: Metric + Clone + 'static>(
    method: &LowRank<M>,
    weight: &Array2<f32>,
    calibration: &Calibration,
    damp: f64,
) -> Array2<f64> {
    let (layer, news) = made(&method.clone().with_always(true), weight, calibration, damp);
    assert_eq!((layer.fallback, news), (None, None));
    wide(&decode(&*layer.node).unwrap())
}

fn one_sided<M: Metric + Clone>(
    method: &LowRank<M>,
    weight: &Array2<f32>,
    calibration: &Calibration,
) -> Array2<f64> {
    let made = method.clone().with_always(true).compress(weight.view(), calibration).unwrap();
    wide(&decode(&made.node).unwrap())
}

/// tr(G E H Eᵀ).
fn cost(g: &Array2<f64>, h: &Array2<f64>, error: &Array2<f64>) -> f64 {
    (&g.dot(error).dot(h) * error).sum()
}

fn seen(x: &Array2<f32>, g: &Array2<f32>) -> Calibration {
    Calibration::from_samples(x.clone(), Par::Seq).with_supplied(Arc::new(Costs(g.clone())))
}

/// Fails without T: `svd_llm` alone loses more.
#[test]
fn they_lose_what_eckart_and_young_say_is_the_least() {
    for (out, inp, rank, seed) in [(10, 14, 3, 1), (14, 10, 4, 2), (1, 6, 1, 3), (9, 1, 1, 4)] {
        let (x, g) = (inputs(200, inp, seed), fisher(out, seed + 10));
        let (weight, calibration) = (random(out, inp, seed + 20), seen(&x, &g));
        let h = wide(&x).t().dot(&wide(&x));
        for damp in [0.0, 1.0] {
            let g = damped(&g, damp);
            let values = linalg::svd(root(&g).dot(&wide(&weight)).dot(&root(&h)).view()).unwrap().s;
            let least: f64 = values.iter().skip(rank).map(|v| v * v).sum();
            let all = cost(&g, &h, &wide(&weight));
            let method = svd_llm(Rank::Number(rank));
            let ours = decoded(&method, &weight, &calibration, damp);
            let lost = cost(&g, &h, &(&wide(&weight) - &ours));
            assert!((lost - least).abs() < 1e-5 * all, "{out} x {inp}: {lost} for {least}");
            if rank < out.min(inp) {
                let other = one_sided(&method, &weight, &calibration);
                let other = cost(&g, &h, &(&wide(&weight) - &other));
                assert!(lost < 0.97 * other, "{out} x {inp}: {lost} against {other}");
            }
        }
    }
}

/// Alternating weighted least squares, each step by the normal equations in f64: nothing of ours.
#[test]
fn no_alternating_least_squares_find_less() {
    let (out, inp, rank) = (8, 11, 2);
    let (x, g) = (inputs(100, inp, 30), fisher(out, 31));
    let weight = random(out, inp, 32);
    let ours = decoded(&svd_llm(Rank::Number(rank)), &weight, &seen(&x, &g), 1.0);
    let (g, h, w) = (damped(&g, 1.0), wide(&x).t().dot(&wide(&x)), wide(&weight));
    let ours = cost(&g, &h, &(&w - &ours));
    for seed in 0..10 {
        let mut left = wide(&random(out, rank, 40 + seed));
        let mut right = wide(&random(rank, inp, 60 + seed));
        for _ in 0..200 {
            let of_inputs = right.dot(&h).dot(&right.t());
            left = w.dot(&h).dot(&right.t()).dot(&inverse(&of_inputs));
            let of_outputs = left.t().dot(&g).dot(&left);
            right = inverse(&of_outputs).dot(&left.t().dot(&g).dot(&w));
        }
        let other = cost(&g, &h, &(&w - &left.dot(&right)));
        assert!(ours <= other * (1.0 + 1e-5), "{ours} against {other}");
    }
}

/// Outputs that cost nothing give their directions to those that do, and are still as near as these directions allow:
/// fails where they are given up.
#[test]
fn outputs_that_cost_nothing_cost_nothing() {
    let (out, inp, rank) = (12, 10, 4);
    let (x, weight) = (inputs(150, inp, 70), random(out, inp, 71));
    let mut g = fisher(out, 72);
    for dead in 4..out {
        g.row_mut(dead).fill(0.0);
        g.column_mut(dead).fill(0.0);
    }
    let method = svd_llm(Rank::Number(rank));
    let calibration = seen(&x, &g);
    let outputs = |m: &Array2<f64>| wide(&x).dot(&m.t());
    let live = |m: &Array2<f64>| energy(&outputs(&m.slice(s![..4, ..]).to_owned()));
    let dead = |m: &Array2<f64>| energy(&outputs(&m.slice(s![4.., ..]).to_owned()));
    let w = wide(&weight);
    let (ours, other) =
        (decoded(&method, &weight, &calibration, 0.0), one_sided(&method, &weight, &calibration));
    // Four directions hold four outputs whole.
    assert!(live(&(&w - &ours)) < 1e-3 * live(&w), "{} of {}", live(&(&w - &ours)), live(&w));
    assert!(live(&(&w - &ours)) < 0.05 * live(&(&w - &other)));
    assert!(dead(&(&w - &ours)) < 0.9 * dead(&w), "{} of {}", dead(&(&w - &ours)), dead(&w));
    let all = Array2::zeros((out, out));
    let (layer, news) = made(&method.clone().with_always(true), &weight, &seen(&x, &all), 1.0);
    assert!(news.unwrap().contains("is 0: errors of all outputs count alike"));
    assert_eq!(wide(&decode(&*layer.node).unwrap()), other);
}

/// ‖Tᵀ (Ŵ - W) X̂‖² + α ‖Tᵀ (Ŵ X̂ - W X)‖²: fails without either side, and without the drift.
#[test]
fn drift_and_costs_of_outputs_go_together() {
    let (out, inp, rank, alpha) = (10, 12, 3, 1.5);
    let original = inputs(200, inp, 80);
    let x =
        &original * 0.9 + original.dot(&random(inp, inp, 81)) * 0.5 + random(200, inp, 82) * 0.2;
    let (weight, g) = (random(out, inp, 83), fisher(out, 84));
    let cross = wide(&x).t().dot(&wide(&original)).mapv(|v| v as f32);
    let calibration = seen(&x, &g).with::<CrossGram>(cross);
    let (wx, wo, w, g) = (wide(&x), wide(&original), wide(&weight), damped(&g, 1.0));
    let loss = |ours: &Array2<f64>| {
        let (local, whole) = (wx.dot(&(ours - &w).t()), wx.dot(&ours.t()) - wo.dot(&w.t()));
        let cost = |e: &Array2<f64>| (&e.dot(&g) * e).sum();
        cost(&local) + alpha * cost(&whole)
    };
    let at = |beta: f32| {
        let metric = DriftedGram::default().with_beta(Some(beta)).with_damp(0.0);
        LowRank::new(metric, Rank::Number(rank))
    };
    let method = at((alpha / (1.0 + alpha)) as f32);
    let ours = decoded(&method, &weight, &calibration, 1.0);
    let best = loss(&ours);
    assert!(best < 0.99 * loss(&one_sided(&method, &weight, &calibration)));
    assert!(best < 0.99 * loss(&decoded(&at(0.0), &weight, &calibration, 1.0)));
    let svd = linalg::svd_truncated(ours.view(), rank).unwrap();
    for seed in 0..60 {
        let step = if seed % 2 == 0 { 1e-2 } else { 1e-3 };
        let left = &svd.u * &svd.s + wide(&random(out, rank, 100 + seed)) * step;
        let right = &svd.vt + &(wide(&random(rank, inp, 200 + seed)) * step);
        let other = loss(&left.dot(&right));
        assert!(best <= other * (1.0 + 1e-6), "seed {seed}: {best} against {other}");
    }
}

/// A diagonal G multiplies rows: what is left after that is one-sided.
#[test]
fn a_diagonal_is_a_scale_of_rows() {
    let (out, inp) = (9, 13);
    let (x, weight) = (inputs(150, inp, 90), random(out, inp, 91));
    let diagonal = Array2::from_shape_fn((1, out), |(_, i)| 0.1 + (i * i) as f32);
    let method = svd_llm(Rank::Number(3));
    let full = Array2::from_diag(&diagonal.row(0).to_owned());
    let by = |g: &Array2<f32>| decoded(&method, &weight, &seen(&x, g), 0.0);
    let ours = by(&diagonal);
    assert!(energy(&(&ours - &by(&full))) < 1e-6 * energy(&ours));
    let mut scaled = weight.clone();
    for (mut row, d) in scaled.rows_mut().into_iter().zip(&diagonal) {
        row.mapv_inplace(|v| v * d.sqrt());
    }
    let mut back = one_sided(&method, &scaled, &seen(&x, &diagonal));
    for (mut row, d) in back.rows_mut().into_iter().zip(&diagonal) {
        row.mapv_inplace(|v| v / f64::from(*d).sqrt());
    }
    assert!(energy(&(&ours - &back)) < 1e-5 * energy(&back));
}

#[test]
fn without_gradients_all_outputs_count_alike_and_that_is_said() {
    let (out, inp) = (8, 10);
    let (x, weight) = (inputs(100, inp, 110), random(out, inp, 111));
    let method = svd_llm(Rank::Number(2)).with_always(true);
    let bare = Calibration::from_samples(x.clone(), Par::Seq);
    let plain = one_sided(&method, &weight, &bare);
    let broken = seen(&x, &Array2::from_elem((out, out), f32::NAN));
    for calibration in [&bare, &broken] {
        let (layer, news) = made(&method, &weight, calibration, 1.0);
        let news = news.expect("says so");
        assert!(news.contains("errors of all outputs count alike"), "{news}");
        assert_eq!(wide(&decode(&*layer.node).unwrap()), plain);
    }
    let asked = RowFeedback::new(1.0);
    let target = Target::new("w", weight.view()).with_rows(Some(&asked));
    let group = Group::single(target, seen(&x, &Array2::ones((3, 3))));
    assert_eq!(method.compress_group(group).unwrap_err().kind(), ErrorKind::ShapeMismatch);
}

/// Weights, inputs and costs at the ends of f32.
#[test]
fn whatever_is_finite_stays_finite_or_says_why() {
    let plain = random(18, 14, 120);
    let mut one = plain.clone();
    one[[3, 4]] = f32::MAX;
    let weights = [
        plain.clone(),
        one,
        plain.mapv(|v| v * 1e30),
        plain.mapv(|v| v * 1e-39),
        plain.select(Axis(1), &[2; 14]),
        Array2::zeros((18, 14)),
    ];
    let g = fisher(18, 121);
    let mut loud = g.clone();
    loud[[2, 2]] = 1e30;
    let costs = [
        g.clone(),
        g.mapv(|v| v * 1e30),
        g.mapv(|v| v * 1e-30),
        loud,
        Array2::from_elem((18, 18), 1.0),
        Array2::eye(18) * -1.0,
    ];
    let x = inputs(60, 14, 122);
    let rank = Rank::Number(3);
    let methods: [Box<dyn DynCompress>; 5] = [
        Box::new(svd(rank).with_always(true)),
        Box::new(svd_llm(rank).with_always(true)),
        Box::new(saes_svd(rank).with_always(true)),
        Box::new(dobi_svd(rank).with_always(true)),
        Box::new(feature_mimicking(rank).with_always(true)),
    ];
    for weight in &weights {
        for g in &costs {
            let calibration = seen(&x, g).with::<CrossGram>(x.t().dot(&x));
            for method in &methods {
                for damp in [0.0, 1.0] {
                    let (layer, _) = made(&**method, weight, &calibration, damp);
                    let ours = decode(&*layer.node).unwrap();
                    let finite = ours.iter().all(|v| v.is_finite());
                    assert!(finite, "{}: {:?}", method.id(), layer.fallback);
                }
            }
        }
    }
}
