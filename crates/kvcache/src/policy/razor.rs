use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::paper::{Paper, UNSAID, row_made};
use super::{Action, Policy};
use crate::budget::{Budget, Heads};
use crate::merge::Compensation;
use crate::score::Recency;
use crate::spread::{HeadList, RetrievalHeads};
use crate::stage::KvPart;

/// RazorAttention (Tang et al., 2024): heads of keys that look things up keep everything; the others sinks, the newest
/// tokens, and one token that stands for all between. Which heads those are, [`crate::heads::retrieval_heads`] tells.
#[must_use]
pub fn razor_attention(heads: HeadList, least: usize, sinks: usize, budget: Budget) -> Policy {
    Policy::new(Recency, budget)
        .with_protected(sinks, 0)
        .with_heads(Heads::Own(Arc::new(RetrievalHeads::new(heads, least))))
        .with_action(Action::Merge(Arc::new(Compensation::new(sinks))))
}

#[derive(Debug, Clone)]
struct Chosen(RetrievalHeads);

impl Knobs for Chosen {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let allowed = "none, or layer.head-layer.head";
        let about = "heads of keys that keep everything";
        keys.text("heads", &mut self.0.heads, allowed, about)?;
        keys.int("least", &mut self.0.least, 1..=1 << 20, "tokens that the others keep at least")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps all of heads that look things up; of others sinks, newest and a mean";
    let default = || {
        let policy = razor_attention(HeadList::default(), 64, 4, UNSAID);
        Paper::new(policy, Chosen(RetrievalHeads::new(HeadList::default(), 64)))
    };
    row_made("razor_attention", about, default, |paper, _| {
        Ok(paper
            .with_score(Arc::new(Recency))
            .with_heads(Heads::Own(Arc::new(paper.score.0.clone())))
            .with_action(Action::Merge(Arc::new(Compensation::new(paper.sinks())))))
    })
}
