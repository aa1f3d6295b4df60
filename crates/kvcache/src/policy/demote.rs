use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::{Action, Policy};
use crate::stage::{KvPart, KvRole};
use crate::store::{Axis, Int, StoreForm};

/// How tokens are held that do not stay. They come in any order and never go back: groups of channels, no window.
#[derive(Debug, Clone, Copy)]
struct Low(Int);

impl Default for Low {
    fn default() -> Self {
        Self(Int::new(2).with_keys(Axis::Token).with_window(0).with_margin(0))
    }
}

impl Knobs for Low {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.one_of("bits", &mut self.0.bits, &[2, 4, 8], "bits of a code")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about =
        "holds what the policy before it would evict in few bits; not with a budget in bytes";
    Row::new("demote", KvRole::Change, about, Low::default, |Low(int), _| {
        let low = StoreForm::Int(int);
        let change = move |policy: Policy| (policy.with_action(Action::Demote), Some(low.clone()));
        Ok(KvPart::Change(Box::new(change)))
    })
}
