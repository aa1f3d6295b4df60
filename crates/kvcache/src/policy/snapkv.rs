use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::{Pooling, QueryWindow};
use crate::stage::KvPart;

/// SnapKV (Li et al., 2024): what the newest queries look at, and their own tokens.
#[must_use]
pub fn snapkv(window: usize, pool: usize, budget: Budget) -> Policy {
    Policy::new(QueryWindow::new(window, pool), budget).with_protected(0, window)
}

impl Knobs for QueryWindow {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "newest queries that are asked; their own tokens stay";
        keys.int("window", &mut self.window, 1..=1 << 20, about)?;
        keys.int("pool", &mut self.pool, 1..=1 << 20, "neighbours that are pooled, odd")?;
        let pooling = [("average", Pooling::Average), ("max", Pooling::Max)];
        keys.choice("pooling", &mut self.pooling, &pooling, "how neighbours are pooled")
    }
}

/// The score of the paper, whose window of queries says how many tokens stay.
pub(super) fn paper(policy: fn(usize, usize, Budget) -> Policy) -> Paper<QueryWindow> {
    let (window, pool) = (32, 5);
    let score = QueryWindow::new(window, pool);
    Paper::new(policy(window, pool, UNSAID), score).with_own_recent(|score| score.window)
}

pub(super) fn stage() -> Row<KvPart> {
    row("snapkv", "keeps what the newest queries look at", || paper(snapkv))
}
