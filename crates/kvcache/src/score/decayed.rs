use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::describe::described;
use super::{Held, Score};
use crate::statistics::KvNeeds;

/// Attention received, of which each further query leaves a share (ZeroMerge, Liu et al., 2025): what was looked at long ago
/// counts less. The mean over the query heads of a group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Decayed {
    /// Share that is left after each query, above 0 to 1.
    pub left: f32,
}

impl Default for Decayed {
    fn default() -> Self {
        Self { left: 0.98 }
    }
}

impl Decayed {
    /// This share is left after each query.
    #[must_use]
    pub fn new(left: f32) -> Self {
        Self { left }
    }
}

impl Score for Decayed {
    fn id(&self) -> &'static str {
        "decayed_attention"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { mass: true, fades: Some(self.left), ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        if self.left > 0.0 && self.left <= 1.0 {
            return Ok(());
        }
        Err(Error::invalid(format!("left = {}: allowed are shares above 0 to 1", self.left)))
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let group = held.store.shape().group() as f32;
        let of = |h| {
            let slots = held.store.positions(h).len();
            held.statistics.mass(h, slots).into_iter().map(|m| m / group).collect()
        };
        Ok(held.heads().map(of).collect())
    }
}
