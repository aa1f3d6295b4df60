//! Pruning: which weights are kept.
//!
//! A method is a saliency ([`saliency`]) x a support pattern ([`Pattern`]) x what is done to the weights that stay:
//! nothing ([`Pruner`]), or the optimal-brain sweep ([`SparseGpt`]), which chooses and repairs at once. [`structured`] has the
//! same axes for what a model is built of, whole heads and channels, and [`flap`] is one of its own; [`depth`] drops whole
//! blocks, [`experts`] those of a mixture, and [`DropScanHeads`] heads of state-space layers. [`activation`] skips what a
//! token does not need and drops nothing; [`train`] has what a training loop calls.

pub mod activation;
pub mod depth;
mod drop_matrix;
pub mod experts;
pub mod flap;
mod joint;
mod obc;
mod obert;
mod pattern;
mod pruner;
pub mod saliency;
mod scan;
mod sparsegpt;
pub mod structured;
pub mod train;

pub use depth::DropBlocks;
pub use drop_matrix::DropMatrix;
pub use flap::{ChannelMetric, Flap};
pub use joint::JointSparseGpt;
pub use obc::Obc;
pub use obert::{BlockFisher, Obert};
pub use pattern::{Pattern, Scope};
pub use pruner::{Pruner, magnitude, prune_group, wanda};
pub use saliency::{InputNorm, Magnitude, Saliency};
pub use scan::DropScanHeads;
pub use sparsegpt::{Grid, Pruned, SparseGpt};

use tensorpress_tensor::stage::{Row, WeightPart};

/// All stages of this crate.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    let [magnitude, wanda] = pruner::stages();
    let [drop_blocks, refit_head] = depth::stages();
    let mut all = vec![
        flap::stage(),
        drop_blocks,
        refit_head,
        scan::stage(),
        drop_matrix::stage(),
        magnitude,
        wanda,
        sparsegpt::stage(),
        obc::stage(),
    ];
    all.extend(structured::stages());
    all.extend(experts::stages());
    all
}
