use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::attention::{keep_over, weights};
use super::describe::described;
use super::{Held, Score};
use crate::statistics::KvNeeds;

/// Attention of the newest queries, the question behind a context, each query's times the number of tokens before it, so
/// that those which share theirs among more tokens count alike (FINCH, Corallo and Papotti, 2024). Nothing is smoothed;
/// the queries' own tokens stay. [`crate::Rope::renumber`] closes the gaps as the paper does.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Question {
    /// How many queries.
    pub window: usize,
}

impl Question {
    /// This many queries.
    #[must_use]
    pub fn new(window: usize) -> Self {
        Self { window }
    }
}

impl Score for Question {
    fn id(&self) -> &'static str {
        "question"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { queries: self.window, ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        if self.window > 0 {
            return Ok(());
        }
        Err(Error::invalid("window = 0: at least 1"))
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
                let own = positions.partition_point(|p| *p < at[0]);
                let w = weights(held.store.scoring(), q, (&at, &queries), keys.view(), &positions);
                for (row, at) in w.rows().into_iter().zip(&at) {
                    let many = *at as f32 / (queries.nrows() * shape.group()) as f32;
                    sum[..own].iter_mut().zip(row).for_each(|(sum, w)| *sum += w * many);
                }
                sum[own..].fill(f32::INFINITY);
            }
            scores.push(sum);
        }
        keep_over(&mut scores);
        Ok(scores)
    }
}
