use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::kernels::{Isa, attention};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, linalg, ndarray};

use super::describe::described;
use super::{Held, Score};
use crate::statistics::KvNeeds;
use crate::store::{Causal, Scoring, Sight};

/// Attention received since the token came (H2O, Zhang et al., 2023), the mean over the query heads of a group.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Accumulated {
    /// Divide by the number of queries that saw the token: without it, old tokens have had more time to collect.
    pub per_query: bool,
}

impl Score for Accumulated {
    fn id(&self) -> &'static str {
        "accumulated_attention"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { mass: true, ..KvNeeds::default() }
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let (group, next) = (held.store.shape().group() as f32, held.store.len());
        let of = |h| {
            let positions = held.store.positions(h);
            let mass = held.statistics.mass(h, positions.len());
            let saw = |p: usize| if self.per_query { (next - p) as f32 } else { 1.0 };
            mass.iter().zip(positions).map(|(m, p)| m / (group * saw(p))).collect()
        };
        Ok(held.heads().map(of).collect())
    }
}

/// Weights, as the layer has them, of a head's queries `[n, dim]` over keys `[slots, dim]` at `positions`, causal. Windows
/// are those of single calls and not known here.
pub(super) fn weights(
    scoring: &Scoring,
    head: usize,
    (at, q): (&[usize], &Array2<f32>),
    keys: ArrayView2<'_, f32>,
    positions: &[usize],
) -> Array2<f32> {
    let mut w = Array2::zeros((q.nrows(), keys.nrows()));
    linalg::matmul_nt(q.view(), keys, w.view_mut(), false, linalg::Par::Seq);
    let scale = scoring.scale_of(q.ncols());
    for (mut row, at) in w.rows_mut().into_iter().zip(at) {
        let row = row.as_slice_mut().expect("contiguous");
        let sight = Sight { causal: Causal::from(*at), chunk: scoring.chunk };
        let first = positions.partition_point(|p| *p < sight.oldest(*at));
        let end = positions.partition_point(|p| p <= at);
        let seen = &mut row[first..end];
        if scoring.is_plain() {
            attention::softmax(Isa::detect(), seen, scale);
        } else {
            scoring.score(scale, head, *at, positions[first..end].iter().copied(), seen);
            let mut scores = seen.to_vec();
            scoring.soften(head, &mut scores);
            seen.copy_from_slice(&scores);
        }
        row[..first].fill(0.0);
        row[end..].fill(0.0);
    }
    w
}

/// Attention of the newest queries, smoothed along the text (SnapKV, Li et al., 2024); those queries' own tokens stay.
/// Neighbours are those in the text: tokens that are gone leave a gap, and count as if they were looked at no more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueryWindow {
    /// How many queries.
    pub window: usize,
    /// How many neighbours are pooled, odd; 1 smooths nothing.
    pub pool: usize,
    /// How.
    pub pooling: Pooling,
}

/// How neighbours are pooled; the official code of SnapKV has both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean; at the ends the divisor is still the width.
    #[default]
    Average,
    /// The largest.
    Max,
}

impl QueryWindow {
    /// This many queries, the average of this many neighbours.
    #[must_use]
    pub fn new(window: usize, pool: usize) -> Self {
        Self { window, pool, pooling: Pooling::Average }
    }

    /// Sets how neighbours are pooled.
    #[must_use]
    pub fn with_pooling(mut self, pooling: Pooling) -> Self {
        self.pooling = pooling;
        self
    }
}

impl Score for QueryWindow {
    fn id(&self) -> &'static str {
        "window_attention"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { queries: self.window, ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        let Self { window, pool, .. } = *self;
        if window > 0 && !pool.is_multiple_of(2) {
            return Ok(());
        }
        Err(Error::invalid(format!("window = {window}, pool = {pool}: at least 1, and odd")))
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let shape = held.store.shape();
        let mut scores = Vec::with_capacity(shape.kv_heads);
        for h in held.heads() {
            let (keys, positions) = (held.keys(h), held.store.positions(h));
            let mut sum = vec![0.0; positions.len()];
            for q in h * shape.group()..(h + 1) * shape.group() {
                let (at, queries) = held.statistics.queries(q, self.window)?;
                // Columns of the window's own tokens are not smoothed into the others.
                let own = positions.partition_point(|p| *p < at[0]);
                let scoring = held.store.scoring();
                let mean = weights(scoring, q, (&at, &queries), keys.view(), &positions)
                    .mean_axis(ndarray::Axis(0))
                    .unwrap_or_default();
                let half = self.pool / 2;
                let (mut first, mut end) = (0, 0);
                for (sum, p) in sum[..own].iter_mut().zip(&positions) {
                    first += positions[first..].partition_point(|near| near + half < *p);
                    end += positions[end..own].partition_point(|near| *near <= p + half);
                    let near = mean.slice(ndarray::s![first..end]);
                    let pooled = match self.pooling {
                        Pooling::Average => near.sum() / self.pool as f32,
                        Pooling::Max => near.fold(0.0, |a: f32, b| a.max(*b)),
                    };
                    *sum += pooled / shape.group() as f32;
                }
                sum[own..].fill(f32::INFINITY);
            }
            scores.push(sum);
        }
        keep_over(&mut scores);
        Ok(scores)
    }
}

/// Infinity becomes the largest other score plus one.
pub(super) fn keep_over(scores: &mut [Vec<f32>]) {
    let finite = scores.iter().flatten().filter(|s| s.is_finite());
    let over = finite.fold(0.0f32, |a, b| a.max(*b)) + 1.0;
    scores.iter_mut().flatten().filter(|s| **s == f32::INFINITY).for_each(|s| *s = over);
}

/// Attention of the newest query, the mean over all heads (TOVA, Oren et al., 2024); the newest token stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastQuery;

impl Score for LastQuery {
    fn id(&self) -> &'static str {
        "last_query_attention"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { queries: 1, ..KvNeeds::default() }
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let shape = held.store.shape();
        // By position, for the heads may hold different tokens.
        let mut mean = BTreeMap::new();
        for h in held.heads() {
            let (keys, positions) = (held.keys(h), held.store.positions(h));
            for q in h * shape.group()..(h + 1) * shape.group() {
                let (at, query) = held.statistics.queries(q, 1)?;
                let scoring = held.store.scoring();
                let w = weights(scoring, q, (&at, &query), keys.view(), &positions);
                for (w, p) in w.iter().zip(&positions) {
                    *mean.entry(*p).or_insert(0.0f32) += w / shape.heads as f32;
                }
            }
        }
        // The newest token stays.
        mean.extend(held.store.len().checked_sub(1).map(|newest| (newest, f32::INFINITY)));
        let of = |h| held.store.positions(h).into_iter().map(|p| mean[&p]).collect();
        let mut scores: Vec<Vec<f32>> = held.heads().map(of).collect();
        keep_over(&mut scores);
        Ok(scores)
    }
}
