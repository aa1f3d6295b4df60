//! How tokens that are not kept go into those that are.

mod compensation;
mod describe;
mod ems;
mod kvmerger;
mod nearest;
mod zeromerge;

use std::fmt::Debug;

use ndarray::Array2;

use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Result, ndarray};

use crate::score::Held;
use crate::statistics::KvNeeds;
use crate::store::Merged;

pub use compensation::Compensation;
pub(crate) use describe::{IDS, read};
pub use ems::EvictThenMerge;
pub use kvmerger::{GaussianMerge, adjacent_sets, gaussian_weights};
pub use nearest::NearestValues;
pub use zeromerge::{Distance, ResidualMerge};

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

    /// What a merged slot has received of attention is the most that one of its tokens has, not the sum.
    fn takes_largest(&self) -> bool {
        false
    }

    /// What a head holds afterwards, where the policy would keep these slots, which ascend. Attention received goes where
    /// [`Merged::into`] says.
    ///
    /// # Errors
    /// `MissingCalibration` where statistics are missing.
    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged>;
}

/// Takes a slot into a kept one: their mean by tokens, and all of their tokens.
fn add(
    merged: &mut Merged,
    target: usize,
    slot: usize,
    (keys, values): (&Array2<f32>, &Array2<f32>),
    weight: f32,
) {
    let share = weight / (merged.weights[target] + weight);
    for (all, from) in [(&mut merged.keys, keys), (&mut merged.values, values)] {
        all.row_mut(target).zip_mut_with(&from.row(slot), |to, x| *to += share * (x - *to));
    }
    merged.weights[target] += weight;
    merged.into[slot] = Some(target);
}
