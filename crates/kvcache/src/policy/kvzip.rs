use std::sync::Arc;

use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use super::Policy;
use super::paper::{Paper, UNSAID, row_made};
use crate::budget::{Budget, Heads, Rule};
use crate::score::Repetition;
use crate::stage::KvPart;

/// KVzip (Kim et al., 2025), or KVzip+ (Jegou and Jeblick, 2026): of the context, what saying it again looks at, the
/// layer's best whichever head they belong to, and the first 4 tokens. What comes after it stays whole.
#[must_use]
pub fn kvzip(repetition: Repetition, budget: Budget) -> Policy {
    let heads = Heads::Adaptive { floor: 0.0, rule: Rule::Kvpress };
    Policy::new(repetition, budget).with_protected(4, 0).with_heads(heads)
}

impl Knobs for Repetition {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "weighs attention by the norms of hidden states and of what values become";
        keys.flag("plus", &mut self.plus, about)?;
        let about = "tokens of the context that are said again at a time";
        keys.int("chunk", &mut self.chunk, 1..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps of the prompt, across heads, what saying it again looks at";
    let paper = || Paper::new(kvzip(Repetition::default(), UNSAID), Repetition::default());
    row_made("kvzip", about, paper, |paper, model| {
        let mut score = paper.score.clone();
        if score.plus {
            score.output = model.output.clone();
            if score.output.is_none() {
                let why = "the layer's output projection is needed: it was not told";
                return Err(Error::missing_calibration(why));
            }
        }
        Ok(paper.with_score(Arc::new(score)))
    })
}
