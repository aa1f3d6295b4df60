use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use crate::budget::Heads;
use crate::stage::{KvPart, KvRole};

/// AdaKV (Feng et al., 2024): any policy, its budget spread over the heads by score; the memory is freed.
#[must_use]
pub fn adakv(policy: Policy) -> Policy {
    policy.with_heads(Heads::Adaptive { floor: Spread::default().floor })
}

#[derive(Debug, Clone, Copy)]
struct Spread {
    floor: f64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { floor: 0.2 }
    }
}

impl Knobs for Spread {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("floor", &mut self.floor, 0.0..=1.0, "share of a head's budget that it keeps")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "spreads the budget of the policy before it over the heads by score";
    Row::new("adakv", KvRole::Change, about, Spread::default, |Spread { floor }, _| {
        let change = move |policy: Policy| (policy.with_heads(Heads::Adaptive { floor }), None);
        Ok(KvPart::Change(Box::new(change)))
    })
}
