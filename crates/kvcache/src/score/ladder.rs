use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::describe::described;
use super::{Held, Score};
use crate::ladder::Ladder;

/// The rungs of a [`Ladder`], as far as the gaps between positions tell where the last one ended; what the budget leaves
/// beyond them goes to the newest tokens (LaCache, Shi et al., 2025). In models of no more layers than a span there is no
/// ladder, and the newest stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rungs {
    /// Layers that keep the tokens of one rung.
    pub span: usize,
    /// How many of them begin the next.
    pub overlap: usize,
    /// First tokens, which are on no rung.
    pub sinks: usize,
}

impl Default for Rungs {
    fn default() -> Self {
        Self { span: 4, overlap: 2, sinks: 4 }
    }
}

impl Rungs {
    /// Kept by so many layers, so many of which begin the next; behind so many sinks.
    #[must_use]
    pub fn new(span: usize, overlap: usize, sinks: usize) -> Self {
        Self { span, overlap, sinks }
    }

    /// The slots that stay, where there is a ladder.
    fn slots(&self, held: Held<'_>, positions: &[usize], tokens: usize) -> Vec<usize> {
        let sinks = positions.partition_point(|p| *p < self.sinks);
        let gap = positions.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
        let cursor = gap.map_or(sinks, |slot| slot + 1).max(sinks);
        let shape = (self.span, self.overlap);
        let Ok(ladder) = Ladder::new(held.at.of, tokens, sinks, shape) else { return Vec::new() };
        let many = positions.len();
        let named = ladder.at(cursor).step(many).map(|mut slots| slots.swap_remove(held.at.index));
        named.map_or(Vec::new(), |slots| Ladder::distinct(&slots, many))
    }
}

impl Score for Rungs {
    fn id(&self) -> &'static str {
        "rungs"
    }

    fn check(&self) -> Result<()> {
        let Self { span, overlap, .. } = *self;
        if overlap < span {
            return Ok(());
        }
        Err(Error::invalid(format!("overlap = {overlap}: allowed are 0 to {span}, less than span")))
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        super::Recency.score(held)
    }

    fn score_within(&self, held: Held<'_>, tokens: usize) -> Result<Vec<Vec<f32>>> {
        let mut scores = self.score(held)?;
        for (h, scores) in scores.iter_mut().enumerate() {
            let positions = held.store.positions(h);
            for slot in self.slots(held, &positions, tokens) {
                scores[slot] += held.store.len() as f32;
            }
        }
        Ok(scores)
    }
}
