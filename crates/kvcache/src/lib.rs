//! KV caches: what is kept of keys and values, and how it is held.
//!
//! A cache is a store ([`store`]: float, integer or sparse forms, attention straight over them) and, where tokens shall
//! go, a policy: token [`score`] x [`budget`] x action. Papers are compositions of these ([`policy`]). No engine type is
//! in any signature: arrays go in, arrays come out. A cache that an engine keeps itself moves between tiers of memory as
//! pages of declared size ([`page`]).

pub mod budget;
mod cache;
mod deferred;
mod halves;
pub mod heads;
pub mod kernel_hash;
mod ladder;
pub mod mla;
pub mod page;
pub mod policy;
pub mod recipe;
mod rope;
pub mod score;
mod sentinel;
mod stage;
mod statistics;
pub mod store;
pub mod stream;
mod wire;

pub use budget::{Budget, Heads, LayerAt, Layers, Rule};
pub use cache::Cache;
pub use halves::{Half, widen};
pub use ladder::Ladder;
pub use page::{PageCodec, PageConfig};
pub use policy::{Action, Policy};
pub use recipe::KvRecipe;
pub use rope::Rope;
pub use score::{Held, Score};
pub use sentinel::SentinelSpans;
pub use stage::{KvModel, KvPart, KvRole, MakePolicy, stages};
pub use statistics::{KvNeeds, QueryMoments, Statistics};
pub use store::{
    Axis, Bias, Bitmap, Causal, HeadSlots, Int, KvShape, KvStore, Layer, Reader, Scoring, StoreForm,
};
