//! How tokens that are not kept go into those that are.

use std::fmt::Debug;

use serde_json::json;
use tensorpress_tensor::Result;
use tensorpress_tensor::node::Json;

use crate::score::Held;
use crate::statistics::KvNeeds;
use crate::store::Merged;

/// A rule for merging slots.
pub trait Merge: Debug + Send + Sync {
    /// Short name.
    fn id(&self) -> &'static str;

    /// `id` and all parameters: what a reader of the cache makes this rule from.
    fn describe(&self) -> Json {
        json!({ "id": self.id() })
    }

    /// Whether the parameters can be.
    ///
    /// # Errors
    /// `InvalidArgument` names the parameter and what is allowed.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What it wants to know beside keys and values, and beside what the score wants.
    fn needs(&self) -> KvNeeds {
        KvNeeds::default()
    }

    /// What a head holds afterwards, where the policy would keep these slots, which ascend. Attention received goes where
    /// [`Merged::into`] says.
    ///
    /// # Errors
    /// `MissingCalibration` where statistics are missing.
    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged>;
}
