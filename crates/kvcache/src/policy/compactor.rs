use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, Turned, UNSAID, row_with};
use crate::budget::Budget;
use crate::rope::Rope;
use crate::score::{Compactor, Score, Sketch};
use crate::stage::{KvModel, KvPart};

/// Compactor (Chari and Van Durme, 2025): keys of rare directions, and what tokens of the same chunk look at; 8 first and 4
/// newest tokens.
#[must_use]
pub fn compactor(rope: Rope, budget: Budget) -> Policy {
    let score = Compactor::new(rope);
    let (sinks, recent) = (score.sinks, score.recent);
    Policy::new(score, budget).with_protected(sinks, recent)
}

impl Knobs for Turned<Compactor> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.theta(keys)?;
        let score = &mut self.score;
        keys.float("blend", &mut score.blend, 0.0..=1e3, "how much rare directions count")?;
        keys.int("chunk", &mut score.chunk, 1..=1 << 20, "tokens that look at each other")?;
        let about = "newest queries that are held for it";
        keys.int("queries", &mut score.queries, 1..=1 << 20, about)?;
        if let Sketch::Gaussian { width, seed } = &mut score.sketch {
            keys.int("sketch", width, 1..=1 << 12, "columns that keys are projected to")?;
            keys.int("seed", seed, 0..=i64::MAX, "of the projection")?;
        }
        Ok(())
    }
}

fn score(paper: &Paper<Turned<Compactor>>, model: &KvModel) -> Result<Arc<dyn Score>> {
    let (rope, score) = (Some(paper.score.rope(model)?), paper.score.score.clone());
    let (sinks, recent) = (paper.sinks(), paper.recent());
    Ok(Arc::new(Compactor { rope, sinks, recent, ..score }))
}

fn paper() -> Paper<Turned<Compactor>> {
    let rope = Turned::<Compactor>::any();
    Paper::new(compactor(rope.clone(), UNSAID), Turned::new(Compactor::new(rope)))
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps keys of rare directions, and what tokens of the same chunk look at";
    row_with("compactor", about, paper, score)
}
