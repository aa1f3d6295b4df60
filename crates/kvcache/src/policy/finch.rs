use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::Question;
use crate::stage::KvPart;

/// FINCH (Corallo and Papotti, 2024): what the question behind a context looks at, and its own tokens.
#[must_use]
pub fn finch(question: usize, budget: Budget) -> Policy {
    Policy::new(Question::new(question), budget).with_protected(0, question)
}

impl Knobs for Question {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "tokens of the question, the newest; they stay";
        keys.int("window", &mut self.window, 1..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what the question behind a context looks at";
    let paper = || Paper::new(finch(32, UNSAID), Question::new(32));
    row("finch", about, move || paper().with_own_recent(|score| score.window))
}
