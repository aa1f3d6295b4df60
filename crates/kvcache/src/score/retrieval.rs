use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::attention::{keep_over, weights};
use super::describe::described;
use super::{Held, Score};
use crate::spread::HeadList;
use crate::statistics::KvNeeds;

/// What the heads that look things up look at (CompressKV, Lin et al., 2025): attention of the newest queries of a layer's
/// chosen query heads, smoothed along the text, their mean; the same tokens stay for all heads. Where none is chosen all
/// count. The queries' own tokens stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RetrievalWindow {
    /// Query heads that count, of [`crate::heads::semantic_retrieval`].
    pub heads: HeadList,
    /// How many queries.
    pub window: usize,
    /// How many neighbours are averaged, odd.
    pub pool: usize,
}

impl Default for RetrievalWindow {
    fn default() -> Self {
        Self { heads: HeadList::default(), window: 8, pool: 5 }
    }
}

impl RetrievalWindow {
    /// These heads; 8 queries, 5 neighbours.
    #[must_use]
    pub fn new(heads: HeadList) -> Self {
        Self { heads, ..Self::default() }
    }

    /// Sets how many queries, and how many neighbours.
    #[must_use]
    pub fn with_window(mut self, window: usize, pool: usize) -> Self {
        (self.window, self.pool) = (window, pool);
        self
    }
}

impl Score for RetrievalWindow {
    fn id(&self) -> &'static str {
        "retrieval_window"
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
        let of_layer = |q: &usize| self.heads.0.contains(&(held.at.index, *q));
        let mut chosen: Vec<usize> = (0..shape.heads).filter(of_layer).collect();
        if chosen.is_empty() {
            chosen = (0..shape.heads).collect();
        }
        // By position, for the heads may hold different tokens.
        let mut raw: BTreeMap<usize, f32> = BTreeMap::new();
        let mut own = held.store.len();
        for q in &chosen {
            let h = q / shape.group();
            let (keys, positions) = (held.keys(h), held.store.positions(h));
            let (at, queries) = held.statistics.queries(*q, self.window)?;
            own = at[0];
            let w = weights(held.store.scoring(), *q, (&at, &queries), keys.view(), &positions);
            let over = (queries.nrows() * chosen.len()) as f32;
            for (p, column) in positions.iter().zip(w.columns()) {
                *raw.entry(*p).or_insert(0.0) += column.sum() / over;
            }
        }
        let half = self.pool / 2;
        let pooled = |p: usize| {
            let near = raw.range(p.saturating_sub(half)..(p + half + 1).min(own));
            if p >= own {
                f32::INFINITY
            } else {
                near.map(|(_, w)| w).sum::<f32>() / self.pool as f32
            }
        };
        let of = |h| held.store.positions(h).into_iter().map(pooled).collect();
        let mut scores: Vec<Vec<f32>> = held.heads().map(of).collect();
        keep_over(&mut scores);
        Ok(scores)
    }
}
