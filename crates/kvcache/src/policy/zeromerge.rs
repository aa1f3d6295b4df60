use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::paper::{Paper, UNSAID, row_made};
use super::{Action, Policy};
use crate::budget::Budget;
use crate::merge::{Distance, ResidualMerge};
use crate::score::Decayed;
use crate::stage::KvPart;

/// ZeroMerge (Liu et al., 2025): a few slots take in all that goes, the newest tokens stay, and of the others those that
/// have received most attention lately.
#[must_use]
pub fn zeromerge(rule: ResidualMerge, left: f32, budget: Budget) -> Policy {
    Policy::new(Decayed::new(left), budget)
        .with_protected(0, rule.recent)
        .with_action(Action::Merge(Arc::new(rule)))
        .with_stride(1)
}

#[derive(Debug, Clone, Copy)]
struct Both {
    rule: ResidualMerge,
    score: Decayed,
}

impl Knobs for Both {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let rule = &mut self.rule;
        keys.int("residual", &mut rule.residual, 0..=1 << 20, "slots that take others in")?;
        let near = [("product", Distance::Product), ("square", Distance::Square)];
        keys.choice("distance", &mut rule.distance, &near, "what keys are near to each other")?;
        keys.flag("sum", &mut rule.sum, "adds up what merged tokens received")?;
        let about = "share of attention received that each further query leaves";
        keys.float("left", &mut self.score.left, 0.0..=1.0, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "merges what goes into a few slots that weigh as many tokens as they hold";
    let default = || {
        let (rule, score) = (ResidualMerge::new(8, 32), Decayed::default());
        Paper::new(zeromerge(rule, score.left, UNSAID), Both { rule, score })
    };
    row_made("zeromerge", about, default, |paper, _| {
        let Both { rule, score } = paper.score;
        let rule = ResidualMerge { recent: paper.recent(), ..rule };
        Ok(paper.with_score(Arc::new(score)).with_action(Action::Merge(Arc::new(rule))))
    })
}
