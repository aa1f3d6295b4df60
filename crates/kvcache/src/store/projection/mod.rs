//! Fewer coordinates: keys and values on a basis of their own (CSKV, Wang et al., 2024; MatryoshkaKV, Lin et al., 2024).

mod basis;
mod channel_shrink;
mod code;
mod matryoshka;
mod nested;
mod ranks;
#[cfg(test)]
mod tests;

pub(crate) use basis::principal_order;
pub use basis::{principal_basis, weighted_basis};
pub use channel_shrink::ChannelShrink;
pub(crate) use code::ProjectedCode;
pub use matryoshka::MatryoshkaProj;
pub use nested::Matryoshka;
pub use ranks::{HeadSample, greedy_ranks};

use tensorpress_tensor::stage::Row;

use crate::stage::KvPart;

/// The stages of this module.
pub(super) fn stages() -> [Row<KvPart>; 2] {
    [channel_shrink::stage(), matryoshka::stage()]
}
