use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::Accumulated;
use crate::stage::KvPart;

/// H2O (Zhang et al., 2023): the tokens that have received most attention, and the newest.
#[must_use]
pub fn h2o(recent: usize, budget: Budget) -> Policy {
    Policy::new(Accumulated::default(), budget).with_protected(0, recent)
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps the tokens that have received most attention, and the newest";
    row("h2o", about, || Paper::new(h2o(32, UNSAID), Accumulated::default()))
}
