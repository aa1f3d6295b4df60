use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use super::paper::RULES;
use crate::budget::{Heads, Rule};
use crate::stage::{KvPart, KvRole};

/// AdaKV (Feng et al., 2024): any policy, its budget spread over the heads by score and the rule of its authors; the
/// memory is freed.
#[must_use]
pub fn adakv(policy: Policy) -> Policy {
    let Spread { floor, rule } = Spread::default();
    policy.with_heads(Heads::Adaptive { floor, rule })
}

#[derive(Debug, Clone, Copy)]
struct Spread {
    floor: f64,
    rule: Rule,
}

impl Default for Spread {
    fn default() -> Self {
        Self { floor: 0.2, rule: Rule::Authors }
    }
}

impl Knobs for Spread {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("floor", &mut self.floor, 0.0..=1.0, "share of a head's budget that it keeps")?;
        keys.choice("rule", &mut self.rule, &RULES, "whose arithmetic spreads the budget")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "spreads the budget of the policy before it over the heads by score";
    Row::new("adakv", KvRole::Change, about, Spread::default, |Spread { floor, rule }, _| {
        let heads = Heads::Adaptive { floor, rule };
        let change = move |policy: Policy| (policy.with_heads(heads.clone()), None);
        Ok(KvPart::Change(Box::new(change)))
    })
}
