use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::paper::{Paper, UNSAID, row_made};
use super::{Action, Policy};
use crate::budget::Budget;
use crate::merge::EvictThenMerge;
use crate::score::GlobalLocal;
use crate::stage::KvPart;

/// EMS (Li et al., 2024): tokens of the best global and local scores are centres, the worst are forgotten, and those between
/// go to the centre most alike.
#[must_use]
pub fn ems(rule: EvictThenMerge, budget: Budget) -> Policy {
    let window = rule.score.window;
    let policy = Policy::new(rule.score, budget).with_protected(0, window);
    policy.with_action(Action::Merge(Arc::new(rule)))
}

impl Knobs for EvictThenMerge {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "newest queries of the local score; their tokens stay";
        keys.int("window", &mut self.score.window, 1..=1 << 20, about)?;
        keys.float("evict", &mut self.evict, 0.0..=1.0, "share of what goes that is forgotten")?;
        let about = "cosine of keys below which a token goes to no centre";
        keys.float("cosine", &mut self.cosine, -1.0..=1.0, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "forgets the worst tokens and merges the others into the best";
    let rule = || EvictThenMerge::new(GlobalLocal::default());
    let paper = move || Paper::new(ems(rule(), UNSAID), rule());
    let default = move || paper().with_own_recent(|rule| rule.score.window);
    row_made("ems", about, default, |paper, _| {
        let rule = paper.score;
        let policy = paper.with_score(Arc::new(rule.score));
        Ok(policy.with_action(Action::Merge(Arc::new(rule))))
    })
}
