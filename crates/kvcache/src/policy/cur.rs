use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::{LeverageOf, Leverages};
use crate::stage::KvPart;

/// CurDKV (Sengupta et al., 2025): tokens whose keys and values are long beside their neighbours', and the first 4.
#[must_use]
pub fn cur(of: LeverageOf, window: usize, budget: Budget) -> Policy {
    Policy::new(Leverages::new(of, window), budget)
}

impl Knobs for Leverages {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let of = [
            ("key", LeverageOf::Key),
            ("value", LeverageOf::Value),
            ("mean", LeverageOf::Mean),
            ("product", LeverageOf::Product),
        ];
        keys.choice("of", &mut self.of, &of, "whose squared norms count")?;
        let about = "slots whose norms are compared, 0 for all";
        keys.int("window", &mut self.window, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps tokens whose keys and values are long beside their neighbours'";
    let default = || Paper::new(cur(LeverageOf::Product, 16, UNSAID), Leverages::default());
    row("cur", about, default)
}
