//! Pruning: which weights are kept.
//!
//! A method is a saliency ([`saliency`]) x a support pattern ([`Pattern`]) x what is done to the weights that stay:
//! nothing ([`Pruner`]), or the optimal-brain sweep ([`SparseGpt`]), which chooses and repairs at once. [`flap`] has the
//! same axes for what a model is built of, whole heads and channels; [`DropBlocks`] drops whole blocks.

mod drop_blocks;
pub mod flap;
mod pattern;
mod pruner;
pub mod saliency;
mod sparsegpt;

pub use drop_blocks::DropBlocks;
pub use flap::{ChannelMetric, Flap};
pub use pattern::{Pattern, Scope};
pub use pruner::{Pruner, magnitude, prune_group, wanda};
pub use saliency::{InputNorm, Magnitude, Saliency};
pub use sparsegpt::{Grid, Pruned, SparseGpt};
