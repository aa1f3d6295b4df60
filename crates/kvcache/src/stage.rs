//! What the stages of a recipe for caches build, and where they stand.

use std::fmt;
use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::stage::{Part, Role, Row, Stages};
use tensorpress_tensor::{Result, ndarray};

use crate::budget::LayerAt;
use crate::policy::{self, Policy};
use crate::rope::Rope;
use crate::store::{self, JointForm, StoreForm};

/// What a policy may want to know of the model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KvModel {
    /// Channels of a head.
    pub head_dim: usize,
    /// Its rotary embedding, if it is known.
    pub rope: Option<Rope>,
    /// The layer that the policy is for.
    pub at: LayerAt,
    /// That layer's output projection `[hidden, heads * value_dim]`, if it is known.
    pub output: Option<Arc<Array2<f32>>>,
}

/// Makes the policy for a layer of a model.
pub type MakePolicy = Box<dyn Fn(&KvModel) -> Result<Policy> + Send + Sync>;

/// What a stage of a recipe for caches builds.
#[non_exhaustive]
pub enum KvPart {
    /// How keys and values are held.
    Store(StoreForm),
    /// How neighbouring layers hold theirs together.
    Joint(Arc<dyn JointForm>),
    /// What stays.
    Policy(MakePolicy),
    /// Changes the policy before it; may say how tokens are held that do not stay.
    Change(Box<dyn Fn(Policy) -> (Policy, Option<StoreForm>) + Send + Sync>),
}

impl fmt::Debug for KvPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(form) => f.debug_tuple("Store").field(form).finish(),
            Self::Joint(form) => f.debug_tuple("Joint").field(form).finish(),
            Self::Policy(_) => f.write_str("Policy(..)"),
            Self::Change(_) => f.write_str("Change(..)"),
        }
    }
}

impl Part for KvPart {
    type Role = KvRole;
}

/// Where a stage may stand in a recipe for caches; the order is that of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum KvRole {
    /// How keys and values are held.
    Store,
    /// What stays.
    Policy,
    /// How that differs between heads, or what happens to the rest.
    Change,
}

impl Role for KvRole {
    const ORDER: &'static str = "at most one store, then one policy, then what changes the policy";

    fn is_single(self) -> bool {
        self != Self::Change
    }

    fn is_inner(self) -> bool {
        false
    }
}

impl fmt::Display for KvRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "store",
            Self::Policy => "policy",
            Self::Change => "change of a policy",
        })
    }
}

/// All stages of this crate.
#[must_use]
pub fn stages() -> Stages<KvPart> {
    let rows: [Vec<Row<KvPart>>; 2] = [store::stages(), policy::stages()];
    let mut stages = Stages::default();
    stages.extend(rows.into_iter().flatten()).expect("the names differ");
    stages
}
