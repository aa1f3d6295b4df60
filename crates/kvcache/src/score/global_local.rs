use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::attention::weights;
use super::describe::described;
use super::{Held, Score};
use crate::statistics::KvNeeds;

/// What a token has received in all and what the newest queries pay it (EMS, Li et al., 2024): attention by all queries
/// over their number that saw the token, and by the newest `window`, over their number; each over its sum in the head,
/// then their mean. The paper's own combination is not public: this is a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GlobalLocal {
    /// How many queries are the newest.
    pub window: usize,
}

impl Default for GlobalLocal {
    fn default() -> Self {
        Self { window: 32 }
    }
}

impl GlobalLocal {
    /// With a window of so many queries.
    #[must_use]
    pub fn new(window: usize) -> Self {
        Self { window }
    }

    /// The numbers of one head.
    pub(crate) fn of_head(&self, held: Held<'_>, h: usize) -> Result<Vec<f32>> {
        let (group, next) = (held.store.shape().group(), held.store.len());
        let (keys, positions) = (held.keys(h), held.store.positions(h));
        let mass = held.statistics.mass(h, positions.len());
        let global = mass.iter().zip(&positions).map(|(m, p)| m / (next - p) as f32).collect();
        let mut local = vec![0.0f32; positions.len()];
        for q in h * group..(h + 1) * group {
            let (at, queries) = held.statistics.queries(q, self.window)?;
            let w = weights(held.store.scoring(), q, (&at, &queries), keys.view(), &positions);
            for row in w.rows() {
                local.iter_mut().zip(row).for_each(|(sum, w)| *sum += w);
            }
        }
        let shares = |x: Vec<f32>| -> Vec<f32> {
            let sum: f32 = x.iter().sum();
            if sum > 0.0 { x.into_iter().map(|x| x / sum).collect() } else { x }
        };
        let (global, local) = (shares(global), shares(local));
        Ok(global.into_iter().zip(local).map(|(g, l)| (g + l) / 2.0).collect())
    }
}

impl Score for GlobalLocal {
    fn id(&self) -> &'static str {
        "global_local"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { mass: true, queries: self.window, ..KvNeeds::default() }
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
        held.heads().map(|h| self.of_head(held, h)).collect()
    }
}
