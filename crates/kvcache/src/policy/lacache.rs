use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row_with};
use crate::budget::Budget;
use crate::score::Rungs;
use crate::stage::KvPart;

/// LaCache (Shi et al., 2025): sinks, the newest tokens, and of those between a ladder over the layers.
#[must_use]
pub fn lacache(rungs: Rungs, budget: Budget) -> Policy {
    Policy::new(rungs, budget).with_protected(rungs.sinks, 0)
}

impl Knobs for Rungs {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("span", &mut self.span, 1..=1 << 16, "layers that keep the tokens of a rung")?;
        let about = "of which so many begin the next rung";
        keys.int("overlap", &mut self.overlap, 0..=1 << 16, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps the first tokens, the newest, and a ladder over the layers between";
    let default = || Paper::new(lacache(Rungs::default(), UNSAID), Rungs::default());
    row_with("lacache", about, default, |paper, _| {
        Ok(Arc::new(Rungs { sinks: paper.sinks(), ..paper.score }))
    })
}
