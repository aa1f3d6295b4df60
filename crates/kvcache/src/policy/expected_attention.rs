use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, Turned, UNSAID, row_with};
use crate::budget::Budget;
use crate::rope::Rope;
use crate::score::{ExpectedAttention, Score};
use crate::stage::{KvModel, KvPart};

/// Expected Attention (Devoto et al., 2025): what queries to come are expected to look at. The first tokens that its
/// statistics leave out always stay.
#[must_use]
pub fn expected_attention(rope: Rope, budget: Budget) -> Policy {
    let score = ExpectedAttention::new(rope);
    let sinks = score.sinks;
    Policy::new(score, budget).with_protected(sinks, 0)
}

impl Knobs for Turned<ExpectedAttention> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.theta(keys)?;
        let (score, about) = (&mut self.score, "future positions that queries are expected at");
        keys.int("future", &mut score.future, 1..=1 << 16, about)?;
        keys.float("epsilon", &mut score.epsilon, 0.0..=1e6, "added before weighing by values")
    }
}

fn score(paper: &Paper<Turned<ExpectedAttention>>, model: &KvModel) -> Result<Arc<dyn Score>> {
    let rope = paper.score.rope(model)?;
    Ok(Arc::new(ExpectedAttention { rope, sinks: paper.sinks(), ..paper.score.score.clone() }))
}

fn paper() -> Paper<Turned<ExpectedAttention>> {
    let rope = Turned::<ExpectedAttention>::any();
    let policy = expected_attention(rope.clone(), UNSAID);
    Paper::new(policy, Turned::new(ExpectedAttention::new(rope)))
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what queries to come are expected to look at";
    row_with("expected_attention", about, paper, score)
}
