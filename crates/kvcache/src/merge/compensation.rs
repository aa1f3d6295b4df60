use serde::{Deserialize, Serialize};
use tensorpress_tensor::Result;
use tensorpress_tensor::node::Json;

use super::Merge;
use super::describe::described;
use crate::score::Held;
use crate::store::Merged;

/// What goes becomes one token: mean of keys, mean of values, and it weighs as many as it stands for (RazorAttention, Tang
/// et al., 2024). It takes the slot of the oldest token that stays behind the sinks, which it holds too; with scores that
/// let the oldest go it moves on from there, so that all that ever went is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Compensation {
    /// First tokens, which take nothing in.
    pub sinks: usize,
}

impl Compensation {
    /// Behind so many sinks.
    #[must_use]
    pub fn new(sinks: usize) -> Self {
        Self { sinks }
    }
}

impl Merge for Compensation {
    fn id(&self) -> &'static str {
        "compensation"
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged> {
        let (keys, values) = held.store.decode(head);
        let weights = held.store.weights(head);
        let mut merged = Merged::keep(keep, &keys, &values, &weights);
        let positions = held.store.positions(head);
        let Some(target) = keep.iter().position(|slot| positions[*slot] >= self.sinks) else {
            return Ok(merged);
        };
        let gone: Vec<usize> = (0..weights.len()).filter(|s| merged.into[*s].is_none()).collect();
        for slot in gone {
            super::add(&mut merged, target, slot, (&keys, &values), weights[slot]);
        }
        Ok(merged)
    }
}
