use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::Recency;
use crate::stage::KvPart;

/// StreamingLLM (Xiao et al., 2024): the first tokens and the newest.
#[must_use]
pub fn streaming(sinks: usize, budget: Budget) -> Policy {
    Policy::new(Recency, budget).with_protected(sinks, 0)
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps the first tokens and the newest";
    row("streaming", about, || Paper::new(streaming(4, UNSAID), Recency))
}
