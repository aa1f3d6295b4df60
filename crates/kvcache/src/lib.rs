//! KV caches: what is kept of keys and values, and how it is held.
//!
//! A cache is a store ([`store`]: float, integer or sparse forms, attention straight over them) and, where tokens shall
//! go, a policy: token [`score`] x [`budget`] x action (forget, demote, [`merge`]). [`Caches`] are those of all layers.
//! Papers are compositions of these ([`policy`]); what must be known of a model's heads before, [`heads`] tells. No
//! engine type is in any signature: arrays go in, arrays come out. A cache that an engine keeps itself moves between
//! tiers of memory as pages of declared size ([`page`]), or over a network as streams ([`stream`]). Two ways to another
//! attention stand beside: over a latent ([`mla`]) and over signs ([`kernel_hash`]).

pub mod budget;
mod cache;
mod caches;
mod deferred;
mod factor;
mod halves;
pub mod heads;
mod kept;
pub mod kernel_hash;
mod ladder;
pub mod merge;
pub mod mla;
pub mod page;
pub mod policy;
pub mod recipe;
mod registry;
mod repeating;
mod rope;
pub mod score;
mod sentinel;
mod spread;
mod stage;
mod statistics;
pub mod store;
pub mod stream;
mod wire;

pub use budget::{Budget, HeadBudget, Heads, LayerAt, LayerBudget, Layers, Rule};
pub use cache::Cache;
pub use caches::Caches;
pub use halves::{Half, widen};
pub use ladder::Ladder;
pub use merge::Merge;
pub use page::{PageCodec, PageConfig};
pub use policy::{Action, Policy};
pub use recipe::KvRecipe;
pub use registry::{Describes, KvRegistry};
pub use rope::Rope;
pub use score::{Held, Repetition, Score};
pub use sentinel::SentinelSpans;
pub use spread::{EntropyHeads, HeadList, LayerShares, RetrievalHeads};
pub use stage::{KvModel, KvPart, KvRole, MakePolicy, stages};
pub use statistics::{KvNeeds, QueryMoments, Statistics};
pub use store::{
    Axis, Bias, Bitmap, Causal, Form, HeadSlots, Int, JointForm, JointPage, KvShape, KvStore,
    Layer, Merged, PackedRows, Paging, Reader, Role, Rows, Scoring, StoreForm, Windowed,
};
