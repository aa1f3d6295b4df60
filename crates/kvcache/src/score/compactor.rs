use std::ops::Range;

use crate::factor::{self, Triangle, cholesky_damped, solve_triangular};
use ndarray::{Array2, ArrayView2, Axis, s};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::kernels::{Isa, attention};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::describe::described;
use super::{Held, Score};
use crate::rope::Rope;
use crate::statistics::KvNeeds;

/// Geometry and attention without looking ahead (Compactor, Chari and Van Durme, 2025): `blend` times the leverages of
/// the keys ([`leverages`], before rotary embedding) plus attention within chunks, whichever way tokens lie, times the
/// norm of the value. Both have mean 0 and deviation 1 over the layer before they are added up. First and newest tokens
/// are left out and stay.
///
/// Attention within a chunk wants the queries of its tokens: as many are held, in f32, as `queries` says; a token farther
/// back counts as if it were looked at no more.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Compactor {
    /// The model's rotary embedding, where leverages count.
    pub rope: Option<Rope>,
    /// How much the leverages count; kvpress takes the share of tokens that goes.
    pub blend: f32,
    /// Whether attention counts.
    pub attention: bool,
    /// Tokens of a chunk.
    pub chunk: usize,
    /// How many of the newest queries are held.
    pub queries: usize,
    /// First tokens that are left out.
    pub sinks: usize,
    /// Newest tokens that are left out.
    pub recent: usize,
    /// What keys are projected by.
    pub sketch: Sketch,
}

/// A projection of keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Sketch {
    /// Normal numbers over the root of the width, of a seed for each head.
    Gaussian {
        /// Columns.
        width: usize,
        /// Of the numbers.
        seed: u64,
    },
    /// These for each head of keys, row after row: `[head_dim, width]`.
    Given {
        /// Columns.
        width: usize,
        /// By head.
        heads: Vec<Vec<f32>>,
    },
}

impl Sketch {
    fn of(&self, head: usize, dim: usize) -> Result<Array2<f32>> {
        match self {
            Self::Gaussian { width, seed } => {
                let number = |(c, j): (usize, usize)| {
                    let i = ((head * dim + c) * width + j) as u64;
                    (gaussian(*seed, i) / (*width as f64).sqrt()) as f32
                };
                Ok(Array2::from_shape_fn((dim, *width), number))
            }
            Self::Given { width, heads } => {
                let given = heads.get(head).cloned().unwrap_or_default();
                Array2::from_shape_vec((dim, *width), given).map_err(|_| {
                    Error::shape(format!("sketch of head {head}: [{dim}, {width}] expected"))
                })
            }
        }
    }
}

impl Compactor {
    /// Chunks of 256, the newest 4096 queries, 8 first and 4 newest tokens, a sketch of 48 columns, blend 0.35.
    #[must_use]
    pub fn new(rope: Rope) -> Self {
        Self {
            rope: Some(rope),
            blend: 0.35,
            attention: true,
            chunk: 256,
            queries: 4096,
            sinks: 8,
            recent: 4,
            sketch: Sketch::Gaussian { width: 48, seed: 0 },
        }
    }

    /// Attention alone, within chunks of this many tokens; nothing is left out.
    #[must_use]
    pub fn attention(chunk: usize) -> Self {
        let sketch = Sketch::Gaussian { width: 48, seed: 0 };
        Self {
            rope: None,
            blend: 0.0,
            attention: true,
            chunk,
            queries: 4096,
            sinks: 0,
            recent: 0,
            sketch,
        }
    }

    /// Leverages alone; nothing is left out.
    #[must_use]
    pub fn leverages(rope: Rope, sketch: Sketch) -> Self {
        let attention = false;
        Self { blend: 1.0, attention, sinks: 0, recent: 0, sketch, ..Self::new(rope) }
    }

    /// Sets how much leverages count.
    #[must_use]
    pub fn with_blend(mut self, blend: f32) -> Self {
        self.blend = blend;
        self
    }

    /// Sets what keys are projected by.
    #[must_use]
    pub fn with_sketch(mut self, sketch: Sketch) -> Self {
        self.sketch = sketch;
        self
    }

    /// Sets the tokens of a chunk.
    #[must_use]
    pub fn with_chunk(mut self, chunk: usize) -> Self {
        self.chunk = chunk;
        self
    }

    /// Attention that the tokens of `slots` pay each other chunk by chunk, times the norms of their values, the mean of
    /// each and its neighbours in the text.
    fn received(&self, held: Held<'_>, h: usize, slots: Range<usize>) -> Result<Vec<f32>> {
        let group = held.store.shape().group();
        let (keys, values) = held.store.decode(h);
        let keys = keys.slice(s![slots.clone(), ..]).to_owned();
        let positions = &held.store.positions(h)[slots.clone()];
        let chunk_of = |p: usize| p.saturating_sub(self.sinks) / self.chunk;
        let mut sum = vec![0.0f32; positions.len()];
        for q in h * group..(h + 1) * group {
            let (at, queries) = held.statistics.queries(q, self.queries)?;
            let products = queries.dot(&keys.t());
            for (at, row) in at.iter().zip(products.rows()) {
                let (chunk, inside) = (chunk_of(*at), *at >= self.sinks);
                let first = positions.partition_point(|p| chunk_of(*p) < chunk);
                let end = positions.partition_point(|p| chunk_of(*p) <= chunk);
                let within = positions.last().is_some_and(|last| at <= last);
                if !inside || !within {
                    continue;
                }
                let mut row: Vec<f32> = row.iter().skip(first).take(end - first).copied().collect();
                attention::softmax(Isa::detect(), &mut row, 1.0);
                sum[first..end].iter_mut().zip(row).for_each(|(sum, w)| *sum += w / group as f32);
            }
        }
        for (sum, v) in sum.iter_mut().zip(values.slice(s![slots, ..]).rows()) {
            *sum *= v.dot(&v).sqrt();
        }
        let near = |i: usize, j: usize| {
            let next = j < sum.len() && positions[i].abs_diff(positions[j]) == 1;
            if next { sum[j] } else { 0.0 }
        };
        let pooled = |i: usize| (near(i, i.wrapping_sub(1)) + sum[i] + near(i, i + 1)) / 3.0;
        Ok((0..sum.len()).map(pooled).collect())
    }
}

/// Leverages of the rows of keys `[n, dim]`, less their mean and projected by `sketch` `[dim, width]`: the diagonal of
/// X (XᵀX + 0.01 I)⁻¹ Xᵀ, 0 to 1. A row of a direction that others lack has a large one.
///
/// # Errors
/// `ShapeMismatch`; `Numerical` for keys that are not finite.
pub fn leverages(keys: ArrayView2<'_, f32>, sketch: ArrayView2<'_, f32>) -> Result<Vec<f32>> {
    if keys.ncols() != sketch.nrows() {
        return Err(Error::shape(format!("keys {:?}, sketch {:?}", keys.dim(), sketch.dim())));
    }
    let keys = keys.mapv(f64::from);
    let Some(mean) = keys.mean_axis(Axis(0)) else { return Ok(Vec::new()) };
    let x = (keys - mean).dot(&sketch.mapv(f64::from));
    let factor = cholesky_damped(x.t().dot(&x), RIDGE, Par::Seq)?;
    let mut solved = x.t().as_standard_layout().into_owned();
    solve_triangular(factor.view(), Triangle::Lower, solved.view_mut(), Par::Seq)?;
    Ok(solved.columns().into_iter().map(|c| c.dot(&c) as f32).collect())
}

/// Of a sketch: its square is factored, at every plan.
const MOST_COLUMNS: usize = 1 << 12;

/// A sketch wider than the keys has no inverse without.
const RIDGE: f64 = 1e-2;

/// Brings all numbers to mean 0 and deviation 1.
fn standardise(scores: &mut [Vec<f32>]) {
    let count = scores.iter().flatten().count() as f64;
    let mean = scores.iter().flatten().map(|s| f64::from(*s)).sum::<f64>() / count.max(1.0);
    let squares: f64 = scores.iter().flatten().map(|s| (f64::from(*s) - mean).powi(2)).sum();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt().max(1e-6);
    for s in scores.iter_mut().flatten() {
        *s = ((f64::from(*s) - mean) / deviation) as f32;
    }
}

impl Score for Compactor {
    fn id(&self) -> &'static str {
        "leverage_blend"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { queries: if self.attention { self.queries } else { 0 }, ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        factor::check(self.id())?;
        for (key, value) in [("chunk", self.chunk), ("queries", self.queries)] {
            if value == 0 {
                return Err(Error::invalid(format!("{key} = 0: at least 1")));
            }
        }
        let (Sketch::Gaussian { width, .. } | Sketch::Given { width, .. }) = self.sketch;
        if !(1..=MOST_COLUMNS).contains(&width) {
            return Err(Error::invalid(format!(
                "sketch = {width}: allowed are 1 to {MOST_COLUMNS} columns"
            )));
        }
        if !(self.blend.is_finite() && self.blend >= 0.0) {
            let blend = self.blend;
            return Err(Error::invalid(format!("blend = {blend}: allowed are numbers from 0 on")));
        }
        self.rope.as_ref().map_or(Ok(()), Rope::check)
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let newest = held.store.len().saturating_sub(self.recent);
        let slots = |h: usize| {
            let positions = held.store.positions(h);
            let first = positions.partition_point(|p| *p < self.sinks);
            first..positions.partition_point(|p| *p < newest).max(first)
        };
        let dim = held.store.shape().head_dim;
        let mut attention = Vec::new();
        let mut lever = Vec::new();
        for h in held.heads() {
            attention.push(match self.attention {
                true => self.received(held, h, slots(h))?,
                false => vec![0.0; slots(h).len()],
            });
            lever.push(match &self.rope {
                Some(rope) if self.blend > 0.0 => {
                    let mut keys = held.keys(h).slice(s![slots(h), ..]).to_owned();
                    let positions = held.store.positions(h);
                    for (mut key, p) in keys.rows_mut().into_iter().zip(&positions[slots(h)]) {
                        rope.rotate_back(key.as_slice_mut().expect("contiguous"), *p);
                    }
                    leverages(keys.view(), self.sketch.of(h, dim)?.view())?
                }
                _ => vec![0.0; slots(h).len()],
            });
        }
        standardise(&mut attention);
        standardise(&mut lever);
        let mut scores = Vec::new();
        for (h, (attention, lever)) in attention.into_iter().zip(lever).enumerate() {
            let mut all = vec![f32::INFINITY; held.store.positions(h).len()];
            for (to, (a, l)) in all[slots(h)].iter_mut().zip(attention.into_iter().zip(lever)) {
                *to = self.blend * l + a;
            }
            scores.push(all);
        }
        super::attention::keep_over(&mut scores);
        Ok(scores)
    }
}
