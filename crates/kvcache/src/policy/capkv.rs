use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, Turned, UNSAID, row_with};
use crate::budget::Budget;
use crate::rope::Rope;
use crate::score::{Capacity, Score};
use crate::stage::{KvModel, KvPart};

/// CapKV (2026): tokens that add most to what attention can say, and the first 4.
#[must_use]
pub fn capkv(rope: Rope, budget: Budget) -> Policy {
    let score = Capacity::new(rope);
    let sinks = score.sinks;
    Policy::new(score, budget).with_protected(sinks, 0)
}

impl Knobs for Turned<Capacity> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.theta(keys)?;
        let score = &mut self.score;
        keys.float("tau", &mut score.tau, 0.0..=1e3, "sharpness of the weights")?;
        let about = "future positions that queries are expected at";
        keys.int("future", &mut score.future, 1..=1 << 16, about)
    }
}

fn score(paper: &Paper<Turned<Capacity>>, model: &KvModel) -> Result<Arc<dyn Score>> {
    let rope = paper.score.rope(model)?;
    Ok(Arc::new(Capacity { rope, sinks: paper.sinks(), ..paper.score.score.clone() }))
}

fn paper() -> Paper<Turned<Capacity>> {
    let rope = Turned::<Capacity>::any();
    Paper::new(capkv(rope.clone(), UNSAID), Turned::new(Capacity::new(rope)))
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps tokens that add most to what attention can say";
    row_with("capkv", about, paper, score)
}
