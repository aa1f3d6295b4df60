use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::KeyDifference;
use crate::stage::KvPart;

/// KeyDiff (Park et al., 2025): the most unusual keys.
#[must_use]
pub fn keydiff(budget: Budget) -> Policy {
    Policy::new(KeyDifference, budget)
}

pub(super) fn stage() -> Row<KvPart> {
    row("keydiff", "keeps the most unusual keys", || Paper::new(keydiff(UNSAID), KeyDifference))
}
