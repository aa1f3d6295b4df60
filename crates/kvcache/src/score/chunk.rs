use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::{Held, Score};
use crate::statistics::KvNeeds;

/// Whole runs of the text stay or go (ChunkKV, Liu et al., 2025): a chunk of `length` tokens counts as its tokens do on
/// average, summed over the heads; as many of the best chunks stay as the budget holds whole, but one at least.
#[derive(Debug, Clone)]
pub struct Chunked {
    inner: Arc<dyn Score>,
    length: usize,
}

impl Chunked {
    /// Chunks of so many tokens by this score.
    #[must_use]
    pub fn new(inner: Arc<dyn Score>, length: usize) -> Self {
        Self { inner, length }
    }

    /// What each chunk counts, and how many of its tokens each head holds at most.
    fn chunks(&self, held: Held<'_>) -> Result<BTreeMap<usize, (f64, usize)>> {
        let scores = self.inner.score(held)?;
        let mut chunks = BTreeMap::new();
        for (h, scores) in scores.iter().enumerate() {
            let mut of_head: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
            for (score, p) in scores.iter().zip(held.store.positions(h)) {
                let (sum, count) = of_head.entry(p / self.length).or_default();
                (*sum, *count) = (*sum + f64::from(*score), *count + 1);
            }
            for (chunk, (sum, count)) in of_head {
                let (all, most) = chunks.entry(chunk).or_insert((0.0, 0));
                (*all, *most) = (*all + sum / count as f64, count.max(*most));
            }
        }
        Ok(chunks)
    }

    fn of_chunks(&self, held: Held<'_>, count: impl Fn(usize) -> f32) -> Vec<Vec<f32>> {
        let of = |h| held.store.positions(h).into_iter().map(|p| count(p / self.length)).collect();
        held.heads().map(of).collect()
    }
}

impl Score for Chunked {
    fn id(&self) -> &'static str {
        "chunked"
    }

    fn needs(&self) -> KvNeeds {
        self.inner.needs()
    }

    fn check(&self) -> Result<()> {
        if self.length == 0 {
            return Err(Error::invalid("length = 0: at least 1"));
        }
        self.inner.check()
    }

    fn describe(&self) -> Json {
        json!({ "id": self.id(), "length": self.length, "of": self.inner.describe() })
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let chunks = self.chunks(held)?;
        Ok(self.of_chunks(held, |chunk| chunks[&chunk].0 as f32))
    }

    fn score_within(&self, held: Held<'_>, tokens: usize) -> Result<Vec<Vec<f32>>> {
        let chunks = self.chunks(held)?;
        let mut best: Vec<(usize, (f64, usize))> = chunks.iter().map(|(c, n)| (*c, *n)).collect();
        best.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        let (mut left, mut stay) = (tokens, BTreeMap::new());
        for (chunk, (score, count)) in best {
            if count > left && !stay.is_empty() {
                break;
            }
            left = left.saturating_sub(count);
            stay.insert(chunk, score as f32);
        }
        Ok(self.of_chunks(held, |chunk| stay.get(&chunk).copied().unwrap_or(f32::NEG_INFINITY)))
    }
}
