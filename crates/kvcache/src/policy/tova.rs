use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::LastQuery;
use crate::stage::KvPart;

/// TOVA (Oren et al., 2024): what the newest query looks at.
#[must_use]
pub fn tova(budget: Budget) -> Policy {
    Policy::new(LastQuery, budget)
}

pub(super) fn stage() -> Row<KvPart> {
    row("tova", "keeps what the newest query looks at", || Paper::new(tova(UNSAID), LastQuery))
}
