//! Attention in plain loops, from its equation.

use std::ops::Range;

use ndarray::{Array2, Array3, s};
use tensorpress_kvcache::{Bias, Causal, KvStore, Scoring};
use tensorpress_tensor::ndarray;

/// A bias that is kept.
#[derive(Debug, Clone)]
pub struct OwnBias {
    pub values: Array3<f32>,
    pub from: usize,
}

impl OwnBias {
    pub fn view(&self) -> Bias<'_> {
        Bias { values: self.values.view(), from: self.from }
    }

    pub fn rows(&self, rows: Range<usize>) -> Self {
        Self { values: self.values.slice(s![.., rows, ..]).to_owned(), from: self.from }
    }

    /// What is added for a head, a query and the key at a position.
    fn at(&self, head: usize, row: usize, position: usize) -> f64 {
        let (heads, _, columns) = self.values.dim();
        if position < self.from || position >= self.from + columns {
            return 0.0;
        }
        f64::from(self.values[[if heads == 1 { 0 } else { head }, row, position - self.from]])
    }
}

/// How scores come about: heads of queries, their scoring, what is seen and added.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub heads: usize,
    pub scoring: &'a Scoring,
    pub causal: Causal,
    pub bias: Option<&'a OwnBias>,
}

impl Asked<'_> {
    /// The weights of the slots of a head, whose keys `[slots, dim]` are at `positions`, for a row of the queries.
    pub fn weights(
        &self,
        (h, r): (usize, usize),
        q: &Array3<f32>,
        k: &Array2<f32>,
        positions: &[usize],
    ) -> Vec<f64> {
        let (dim, at, scoring) = (q.dim().2, self.causal.first + r, self.scoring);
        let exponential = |slot: usize| {
            let j = positions[slot];
            let in_window = self.causal.window.is_none_or(|w| j + w > at);
            let in_chunk = scoring.chunk.is_none_or(|c| j / c == at / c);
            if j > at || !in_window || !in_chunk {
                return 0.0;
            }
            let dot: f64 =
                (0..dim).map(|c| f64::from(q[[r, h, c]]) * f64::from(k[[slot, c]])).sum();
            let mut score = scoring.scale.map_or(dot / (dim as f64).sqrt(), |s| dot * f64::from(s));
            if let Some(cap) = scoring.softcap {
                score = f64::from(cap) * (score / f64::from(cap)).tanh();
            }
            if let Some(slope) = scoring.slopes.get(h) {
                score -= f64::from(*slope) * (at - j) as f64;
            }
            (score + self.bias.map_or(0.0, |bias| bias.at(h, r, j))).exp()
        };
        let all: Vec<f64> = (0..positions.len()).map(exponential).collect();
        let sink = scoring.sinks.get(h).map_or(0.0, |sink| f64::from(*sink).exp());
        let sum = sink + all.iter().sum::<f64>();
        all.iter().map(|e| if sum > 0.0 { e / sum } else { 0.0 }).collect()
    }
}

/// Outputs `[tokens, heads, value_dim]` and the sum of the weights of every query `[tokens, heads]`, over what the store
/// decodes to.
pub fn reference(
    store: &dyn KvStore,
    q: &Array3<f32>,
    asked: Asked<'_>,
) -> (Array3<f64>, Array2<f64>) {
    let (rows, heads, shape) = (q.dim().0, asked.heads, store.shape());
    let group = heads / shape.kv_heads;
    let mut out = Array3::zeros((rows, heads, shape.value_dim));
    let mut shares = Array2::zeros((rows, heads));
    for h in 0..heads {
        let (k, v) = store.decode(h / group);
        let positions = store.positions(h / group);
        for r in 0..rows {
            let weights = asked.weights((h, r), q, &k, &positions);
            shares[[r, h]] = weights.iter().sum();
            for (slot, w) in weights.iter().enumerate() {
                (0..shape.value_dim).for_each(|c| out[[r, h, c]] += w * f64::from(v[[slot, c]]));
            }
        }
    }
    (out, shares)
}

pub fn near(a: &Array3<f32>, b: &Array3<f64>, tolerance: f64, what: &str) {
    assert_eq!(a.dim(), b.dim(), "{what}");
    let largest = b.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    for ((at, a), b) in a.indexed_iter().zip(b) {
        let error = (f64::from(*a) - b).abs();
        assert!(error <= tolerance * largest, "{what} at {at:?}: {a} against {b}");
    }
}
