use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::paper::{Paper, UNSAID, row_made};
use super::{Action, Policy};
use crate::budget::Budget;
use crate::merge::GaussianMerge;
use crate::score::Accumulated;
use crate::stage::KvPart;

/// KVMerger (Wang et al., 2024): keys that are like their neighbours become one, beside H2O's heavy hitters and the newest
/// half of the budget.
#[must_use]
pub fn kvmerger(rule: GaussianMerge, budget: Budget) -> Policy {
    let policy = Policy::new(Accumulated::default(), budget).with_recent_share(0.5);
    policy.with_protected(rule.sinks, 0).with_action(Action::Merge(Arc::new(rule)))
}

impl Knobs for GaussianMerge {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "cosine from one key to the next above which they become one";
        keys.float("cosine", &mut self.cosine, -1.0..=1.0, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "makes keys that are like their neighbours one";
    let rule = || GaussianMerge::new(0.75).with_apart(4, 32);
    let default = move || Paper::new(kvmerger(rule(), UNSAID), rule());
    row_made("kvmerger", about, default, |paper, _| {
        let rule = paper.score.with_apart(paper.sinks(), paper.recent().max(paper.score.recent));
        let policy = paper.with_score(Arc::new(Accumulated::default()));
        Ok(policy.with_action(Action::Merge(Arc::new(rule))))
    })
}
