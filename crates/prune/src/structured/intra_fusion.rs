//! Intra-Fusion (Theus, Geimer, Wicke, Hofmann, Anagnostidis, Singh: "Towards Meta-Pruning via Optimal Transport", ICLR
//! 2024) as a stage.

use tensorpress_tensor::stage::{Row, WeightPart};

use super::{Allocation, Norms, Repair, Structured, Transport};

/// Intra-Fusion: the channels that an importance picks stay, and all others are fused into them by optimal transport
/// ([`Transport`]). Data-free with its importance, the norm of a channel's weights; any other
/// [`Score`](super::Score) can stand in its place.
///
/// ```
/// use tensorpress_prune::structured::{Norm, Repair, Transport, intra_fusion};
///
/// let by_l1 = Transport::default().with_norm(Norm::L1).with_by_importance(true);
/// assert!(intra_fusion().with_repair(Repair::Transport(by_l1)).check().is_ok());
/// ```
#[must_use]
pub fn intra_fusion() -> Structured<Norms> {
    let fused = Repair::Transport(Transport::default());
    Structured::new(NAME, Norms, Allocation::Uniform, fused).with_heads(false)
}

const NAME: &str = "intra_fusion";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes channels of small weights and fuses them into those that stay by optimal transport; needs no \
                 calibration";
    Row::rewrite(NAME, about, intra_fusion)
}
