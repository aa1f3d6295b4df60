use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row_with};
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

/// The score before the model's rotary embedding is known.
#[derive(Debug, Clone)]
struct Unrotated {
    theta: Option<f64>,
    score: ExpectedAttention,
}

/// Of a model that is not known.
const THETA: f64 = 1e4;

impl Knobs for Unrotated {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about =
            "of the rotary embedding, in the place of the model's (of a model not known: 10000)";
        keys.optional_float("theta", &mut self.theta, 0.0..=1e12, about)?;
        let (score, about) = (&mut self.score, "future positions that queries are expected at");
        keys.int("future", &mut score.future, 1..=1 << 16, about)?;
        keys.float("epsilon", &mut score.epsilon, 0.0..=1e6, "added before weighing by values")
    }
}

fn score(paper: &Paper<Unrotated>, model: &KvModel) -> Result<Arc<dyn Score>> {
    let Unrotated { theta, score } = paper.score.clone();
    let rope = match (&model.rope, theta) {
        (Some(rope), None) => rope.clone(),
        (_, theta) => Rope::new(model.head_dim, theta.unwrap_or(THETA))?,
    };
    Ok(Arc::new(ExpectedAttention { rope, sinks: paper.sinks(), ..score }))
}

fn paper() -> Paper<Unrotated> {
    let rope = Rope::new(2, THETA).expect("an even number of channels");
    let policy = expected_attention(rope.clone(), UNSAID);
    Paper::new(policy, Unrotated { theta: None, score: ExpectedAttention::new(rope) })
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what queries to come are expected to look at";
    row_with("expected_attention", about, paper, score)
}
