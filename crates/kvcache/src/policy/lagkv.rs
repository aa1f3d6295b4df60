use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::{Paper, UNSAID, row};
use crate::budget::Budget;
use crate::score::LagRelative;
use crate::stage::KvPart;

/// LagKV (Liang et al., 2025): tokens that differ from those a lag later; the sinks, the newest full lag and what is behind
/// it stay.
#[must_use]
pub fn lagkv(lag: usize, sinks: usize, budget: Budget) -> Policy {
    Policy::new(LagRelative::new(lag, sinks), budget)
}

impl Knobs for LagRelative {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("lag", &mut self.lag, 1..=1 << 20, "tokens of a part")?;
        let about = "compares tokens of different parts by number, not by rank";
        keys.flag("across", &mut self.across, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "keeps tokens that differ from those a lag later";
    row("lagkv", about, || Paper::new(lagkv(128, 4, UNSAID), LagRelative::default()))
}
