//! What layers of a model do to have fewer tokens: pooled queries, regrouped grids, fitted maps, tokens that pass by, signs
//! for merged tokens, and layers that are merged themselves.

mod align;
mod merge_layers;
mod pooled_queries;
mod signs;
mod space_to_channel;
mod sparsity;

pub use align::{Align, LinearMap};
pub use merge_layers::{MergedLayers, merge_layers};
pub use pooled_queries::pooled_attention;
pub use signs::SignCodes;
pub use space_to_channel::SpaceToChannel;
pub use sparsity::{Informativeness, informative, informativeness};
