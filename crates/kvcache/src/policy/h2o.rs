use tensorpress_tensor::stage::Row;

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::Accumulated;
use crate::stage::KvPart;

/// H2O (Zhang et al., 2023): the newest tokens, this share of what stays, and those that have received most attention.
/// The paper's are half and half.
#[must_use]
pub fn h2o(recent: f64, budget: Budget) -> Policy {
    Policy::new(Accumulated::default(), budget).with_recent_share(recent)
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps the tokens that have received most attention, and the newest";
    row("h2o", about, || Paper::new(h2o(0.5, UNSAID), Accumulated::default()))
}
