use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::Random;
use crate::stage::KvPart;

/// Tokens by lot.
#[must_use]
pub fn random(seed: u64, budget: Budget) -> Policy {
    Policy::new(Random { seed }, budget)
}

impl Knobs for Random {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "of the draws")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps tokens by lot: what every policy is measured against";
    row("random", about, || Paper::new(random(0, UNSAID), Random { seed: 0 }))
}
