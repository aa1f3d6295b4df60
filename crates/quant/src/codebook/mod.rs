//! Codebooks of vectors: k-means, codewords of few numbers, levels of residuals, smaller codebooks of larger ones,
//! communities.

mod lr2vq;
mod residual;
mod shrink;
mod structural;

pub use lr2vq::Lr2Vq;
pub use residual::{ResidualQuantizer, ResidualSpec};
pub use shrink::NestedCodebooks;
pub use structural::{StructuralCodebook, StructuralEntropy, structural_entropy};
pub use tensorpress_tensor::cluster::{Clusters, cluster};
pub(crate) use tensorpress_tensor::cluster::{assign, lloyd, means, seeds};

use tensorpress_tensor::stage::{Row, WeightPart};

/// The stage of this module.
pub(crate) fn stage() -> Row<WeightPart> {
    lr2vq::stage()
}
