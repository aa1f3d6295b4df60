use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::{Action, Policy};
use crate::merge::NearestValues;
use crate::stage::{KvPart, KvRole};

impl Knobs for NearestValues {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "cosine of keys below which a token is forgotten";
        keys.float("cosine", &mut self.cosine, 0.0..=1.0, about)?;
        keys.float("share", &mut self.share, 0.0..=1.0, "share of what goes that is mixed in")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "mixes values that go into those of the keys most alike";
    Row::new("merging", KvRole::Change, about, NearestValues::default, |rule, _| {
        let change =
            move |policy: Policy| (policy.with_action(Action::Merge(Arc::new(rule))), None);
        Ok(KvPart::Change(Box::new(change)))
    })
}
