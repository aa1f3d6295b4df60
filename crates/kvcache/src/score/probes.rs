use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::attention::weights;
use super::describe::described;
use super::{Held, Score};
use crate::statistics::KvNeeds;

/// Normalised attention of a few probe queries (ZipCache, He et al., 2024): of each token the attention it receives from the
/// probes that see it, over how many they are, the mean over the query heads of a group. Probes are the newest queries and some
/// drawn at random among the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Probes {
    /// Newest queries that probes are taken from: as many are remembered.
    pub window: usize,
    /// Share of them that are probes for being the newest, at least one.
    pub recent: f64,
    /// Share of the others that are drawn.
    pub random: f64,
    /// What draws them: a query is a probe by its position, whenever one asks.
    pub seed: u64,
}

impl Default for Probes {
    /// 5% newest and 5% drawn of the newest 1024 queries.
    fn default() -> Self {
        Self { window: 1024, recent: 0.05, random: 0.05, seed: 0 }
    }
}

impl Probes {
    /// Sets the share of probes for being the newest, and of those drawn.
    #[must_use]
    pub fn with_shares(mut self, recent: f64, random: f64) -> Self {
        (self.recent, self.random) = (recent, random);
        self
    }

    /// Sets how many of the newest queries probes are taken from.
    #[must_use]
    pub fn with_window(mut self, queries: usize) -> Self {
        self.window = queries;
        self
    }

    /// Which of these queries, by position, are probes.
    fn probes(&self, at: &[usize]) -> Vec<usize> {
        let newest = ((at.len() as f64 * self.recent).ceil() as usize).clamp(1, at.len());
        let random = SplitMix::new(self.seed);
        let drawn = |position: usize| {
            (random.at(position as u64) >> 11) as f64 / ((1u64 << 53) as f64) < self.random
        };
        (0..at.len()).filter(|i| *i + newest >= at.len() || drawn(at[*i])).collect()
    }
}

impl Score for Probes {
    fn id(&self) -> &'static str {
        "probed_attention"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { queries: self.window, ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        if self.window == 0 {
            return Err(Error::invalid("window = 0: at least 1"));
        }
        for (key, share) in [("recent", self.recent), ("random", self.random)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::invalid(format!("{key} = {share}: allowed are 0 to 1")));
            }
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let group = held.store.shape().group();
        let mut scores = Vec::new();
        for h in held.heads() {
            let (keys, positions) = (held.keys(h), held.store.positions(h));
            let mut sum = vec![0.0; positions.len()];
            for q in h * group..(h + 1) * group {
                let (at, queries) = held.statistics.queries(q, self.window)?;
                let probes = self.probes(&at);
                let at: Vec<usize> = probes.iter().map(|i| at[*i]).collect();
                let queries: Array2<f32> = queries.select(Axis(0), &probes);
                let asked = (&*at, &queries);
                let w = weights(held.store.scoring(), q, asked, keys.view(), &positions);
                for ((sum, w), p) in sum.iter_mut().zip(w.columns()).zip(&positions) {
                    let saw = at.len() - at.partition_point(|at| at < p);
                    *sum += w.sum() / (saw.max(1) * group) as f32;
                }
            }
            scores.push(sum);
        }
        Ok(scores)
    }
}
