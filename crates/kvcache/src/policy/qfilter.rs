use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::QueryFilter;
use crate::stage::KvPart;

/// Q-Filters (Godey et al., 2025): keys that lie against the direction which queries share. Give the directions of a model
/// ([`QueryFilter::given`]), or take that of the newest queries.
#[must_use]
pub fn qfilter(filter: QueryFilter, budget: Budget) -> Policy {
    Policy::new(filter, budget)
}

impl Knobs for QueryFilter {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "newest queries whose direction is taken";
        keys.int("queries", &mut self.queries, 1..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps keys that lie against the direction which queries share";
    let filter = || QueryFilter::of_newest(256);
    row("qfilter", about, move || Paper::new(qfilter(filter(), UNSAID), filter()))
}
