use std::sync::Arc;

use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::Policy;
use crate::score::Chunked;
use crate::stage::{KvPart, KvRole};

/// ChunkKV (Liu et al., 2025): any policy, whole chunks of so many tokens staying or going.
#[must_use]
pub fn chunkkv(policy: Policy, length: usize) -> Policy {
    let score = Arc::new(Chunked::new(policy.score.clone(), length));
    Policy { score, ..policy }
}

#[derive(Debug, Clone, Copy)]
struct Length(usize);

impl Knobs for Length {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("length", &mut self.0, 1..=1 << 20, "tokens of a chunk")
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "lets whole chunks of the text stay or go";
    Row::new(
        "chunkkv",
        KvRole::Change,
        about,
        || Length(20),
        |Length(length), _| {
            let change = move |policy: Policy| (chunkkv(policy, length), None);
            Ok(KvPart::Change(Box::new(change)))
        },
    )
}
