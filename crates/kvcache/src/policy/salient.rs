use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::Probes;
use crate::stage::KvPart;

/// ZipCache's salient tokens (He et al., 2024): those that probe queries attend to most, each by how many of them see it. The
/// paper holds the others in fewer bits: `zipcache(bits=4) | salient(keep=0.4) | demote(bits=2)`.
#[must_use]
pub fn salient(probes: Probes, budget: Budget) -> Policy {
    Policy::new(probes, budget)
}

impl Knobs for Probes {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "newest queries that probes are taken from";
        keys.int("window", &mut self.window, 1..=1 << 20, about)?;
        let about = "share of them that are probes for being the newest";
        keys.float("newest", &mut self.recent, 0.0..=1.0, about)?;
        keys.float("random", &mut self.random, 0.0..=1.0, "share of the others that are drawn")?;
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "what draws them")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps the tokens that probe queries attend to, each by how many of them see it";
    row("salient", about, || Paper::new(salient(Probes::default(), UNSAID), Probes::default()))
}
