//! Pruning in depth: whole blocks go, or whole operators of any network.
//!
//! A method is a score of each block ([`BlockScore`]) x a choice (so many, or a share of the weights at the least sum of
//! scores) x a repair of what stays (none, [`RefitHead`]). [`DropBlocks`] has the first two, for decoders:
//!
//! | paper | score | choice | repair |
//! |---|---|---|---|
//! | ShortGPT | influence | count | |
//! | Reassessing Layer Pruning ([`reverse_order`]) | the last first | count | [`RefitHead`] |
//! | LAPTOP-Diff ([`laptop`]) | squared change of the output | knapsack | |
//!
//! For networks that only the caller can run, such as those of diffusion, the same axes are functions of a closure
//! ([`Run`]): an [`OutputDistance`] measures what the output loses without a unit ([`removal_losses`]), and [`least_loss`]
//! (LAPTOP-Diff) or [`remove_greedily`] (LD-Pruner) chooses.

mod choice;
mod closures;
mod drop_blocks;
mod refit;
mod score;

pub use choice::least_loss;
pub use closures::{OutputDistance, Run, removal_losses, remove_greedily};
pub use drop_blocks::{DropBlocks, laptop, reverse_order};
pub use refit::{RefitHead, refit};
pub use score::{BlockScore, logit_change};

use tensorpress_tensor::stage::{Row, WeightPart};

/// All stages of this module.
pub(crate) fn stages() -> [Row<WeightPart>; 2] {
    [drop_blocks::stage(), refit::stage()]
}
