use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row_made};
use crate::budget::{Budget, Heads};
use crate::score::QueryWindow;
use crate::spread::EntropyHeads;
use crate::stage::KvPart;

/// UNComp (Xiong et al., 2025): what the newest queries look at, more of it in heads whose keys have more entropy. Budgets
/// of layers are [`crate::LayerShares`].
#[must_use]
pub fn uncomp(window: usize, heads: EntropyHeads, budget: Budget) -> Policy {
    let policy = Policy::new(QueryWindow::new(window, 1), budget).with_protected(0, window);
    policy.with_heads(Heads::Own(Arc::new(heads)))
}

#[derive(Debug, Clone, Copy)]
struct Both {
    window: usize,
    heads: EntropyHeads,
}

impl Knobs for Both {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "newest queries that are asked; their own tokens stay";
        keys.int("window", &mut self.window, 1..=1 << 20, about)?;
        let heads = &mut self.heads;
        keys.int("classes", &mut heads.classes, 1..=1 << 10, "classes of heads")?;
        keys.int("top", &mut heads.top, 0..=1 << 12, "eigenvalues that count, 0 for all")?;
        let about = "how far budgets of classes lie from the mean";
        keys.float("spread", &mut heads.spread, 0.0..=1.0, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps what the newest queries look at, more of it in heads of more entropy";
    let heads = EntropyHeads::default();
    let paper = move || Paper::new(uncomp(32, heads, UNSAID), Both { window: 32, heads });
    row_made(
        "uncomp",
        about,
        move || paper().with_own_recent(|both| both.window),
        |paper, _| {
            let Both { window, heads } = paper.score;
            let policy = paper.with_score(Arc::new(QueryWindow::new(window, 1)));
            Ok(policy.with_heads(Heads::Own(Arc::new(heads))))
        },
    )
}
