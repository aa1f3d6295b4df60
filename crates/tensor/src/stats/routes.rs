//! How often a router chose each expert.

use std::sync::Arc;

use super::statistic::{Ask, Batch, Statistic, Stream, Via};
use crate::linalg::Par;
use crate::usable::Usable;
use crate::{Error, Result};

/// For each expert, how many tokens a router sent to it ([`Stream::Routes`]).
#[derive(Debug, Clone, Default)]
pub struct RouteCounts {
    counts: Vec<u64>,
    missing: bool,
}

/// Experts, at most: a larger number is no expert's.
const MOST: usize = 1 << 20;

impl Statistic for RouteCounts {
    type Value = Vec<u64>;
    const WHAT: &'static str = "counts of the router's choices";
    const STREAMS: &'static [Stream] = &[Stream::Routes];

    fn bytes(_: Ask) -> u64 {
        0
    }

    fn begin(_: Ask) -> Self {
        Self::default()
    }

    fn update(&mut self, batch: &Batch<'_>, _: Par) {
        let Some(routes) = batch.routes else {
            self.missing |= batch.input.nrows() > 0;
            return;
        };
        for expert in routes.iter().map(|expert| *expert as usize) {
            assert!(expert < MOST, "expert {expert} of at most {MOST}");
            if expert >= self.counts.len() {
                self.counts.resize(expert + 1, 0);
            }
            self.counts[expert] += 1;
        }
    }

    fn merge(&mut self, other: Self) {
        self.missing |= other.missing;
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// As long as the largest expert chosen needs: those after it were never chosen.
    fn finish(self) -> Result<Vec<u64>> {
        match self.missing {
            true => Err(Error::missing_calibration(format!("{} lack routes", Self::WHAT))),
            false => Ok(self.counts),
        }
    }

    fn through(value: &Arc<Vec<u64>>, _: &Via<'_>) -> Usable<Arc<Vec<u64>>> {
        Usable::Yes(value.clone())
    }
}
