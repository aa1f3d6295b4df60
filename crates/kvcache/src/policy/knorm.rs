use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::KeyNorm;
use crate::stage::KvPart;

/// Knorm (Devoto et al., 2024): the smallest keys.
#[must_use]
pub fn knorm(budget: Budget) -> Policy {
    Policy::new(KeyNorm, budget)
}

pub(super) fn stage() -> Row<KvPart> {
    row("knorm", "keeps the smallest keys", || Paper::new(knorm(UNSAID), KeyNorm))
}
