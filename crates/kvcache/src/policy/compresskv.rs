use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::RetrievalWindow;
use crate::spread::HeadList;
use crate::stage::KvPart;

/// CompressKV (Lin et al., 2025): what the layer's semantic retrieval heads look at, for all heads alike; which they are
/// [`crate::heads::semantic_retrieval`] tells, and budgets of layers are [`crate::LayerShares`] of
/// [`crate::heads::eviction_error`]s.
#[must_use]
pub fn compresskv(heads: HeadList, budget: Budget) -> Policy {
    let score = RetrievalWindow::new(heads);
    let window = score.window;
    Policy::new(score, budget).with_protected(0, window)
}

impl Knobs for RetrievalWindow {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let (allowed, about) = ("none, or layer.head-layer.head", "query heads that are asked");
        keys.text("heads", &mut self.heads, allowed, about)?;
        let about = "newest queries that are asked; their own tokens stay";
        keys.int("window", &mut self.window, 1..=1 << 20, about)?;
        keys.int("pool", &mut self.pool, 1..=1 << 20, "neighbours that are averaged, odd")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what the layer's retrieval heads look at, alike in all heads";
    let none = HeadList::default;
    let paper = move || Paper::new(compresskv(none(), UNSAID), RetrievalWindow::new(none()));
    row("compresskv", about, move || paper().with_own_recent(|score| score.window))
}
