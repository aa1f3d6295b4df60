//! How much a token matters: one number per head of keys and slot, larger for what shall stay.

mod attention;
mod cap;
mod chunk;
mod compactor;
mod critical;
mod cur;
mod decayed;
mod describe;
mod expected;
mod finch;
mod geometry;
mod global_local;
mod ladder;
mod lagkv;
mod lazy;
mod probes;
mod qfilter;
mod reconstruction;
mod repetition;
mod retrieval;

use std::fmt::Debug;

use ndarray::Array2;
use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Result, ndarray};

pub use attention::{Accumulated, LastQuery, Pooling, QueryWindow};
pub use cap::Capacity;
pub use chunk::Chunked;
pub use compactor::{Compactor, Sketch, leverages};
pub use critical::{Critical, output_norms};
pub use cur::{LeverageOf, Leverages};
pub use decayed::Decayed;
pub(crate) use describe::IDS;
pub use describe::read;
pub use expected::ExpectedAttention;
pub use finch::Question;
pub use geometry::{KeyDifference, KeyNorm, Random, Recency};
pub use global_local::GlobalLocal;
pub use ladder::Rungs;
pub use lagkv::LagRelative;
pub use lazy::lazy_share;
pub use probes::Probes;
pub use qfilter::{QueryFilter, query_filter};
pub use reconstruction::Reconstruction;
pub use repetition::Repetition;
pub use retrieval::RetrievalWindow;

use crate::budget::LayerAt;
use crate::statistics::{KvNeeds, Statistics};
use crate::store::KvStore;

/// What is held, and what the queries told about it.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Keys and values.
    pub store: &'a dyn KvStore,
    /// Queries and attention.
    pub statistics: &'a Statistics,
    /// Where the layer stands in its model.
    pub at: LayerAt,
}

impl Held<'_> {
    /// Keys `[slots, head_dim]` of a head, as attention uses them.
    #[must_use]
    pub fn keys(&self, head: usize) -> Array2<f32> {
        self.store.keys(head)
    }

    fn heads(&self) -> std::ops::Range<usize> {
        0..self.store.shape().kv_heads
    }
}

/// How much every token matters.
pub trait Score: Debug + Send + Sync {
    /// Short name.
    fn id(&self) -> &'static str;

    /// What it wants to know beside keys and values.
    fn needs(&self) -> KvNeeds {
        KvNeeds::default()
    }

    /// Whether the parameters can be.
    ///
    /// # Errors
    /// `InvalidArgument` names the parameter and what is allowed.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// `id` and all parameters: what a reader of the cache makes this score from.
    fn describe(&self) -> Json {
        json!({ "id": self.id() })
    }

    /// A number for every slot of every head of keys.
    ///
    /// # Errors
    /// `MissingCalibration` where statistics are missing.
    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>>;

    /// As [`Score::score`], where `tokens` per head may stay; minus infinity for what shall not, even within the budget.
    ///
    /// # Errors
    /// As there.
    fn score_within(&self, held: Held<'_>, tokens: usize) -> Result<Vec<Vec<f32>>> {
        let _ = tokens;
        self.score(held)
    }
}
