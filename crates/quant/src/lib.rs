//! Weight quantisation of tensorpress: number grid x granularity x rounding solver x transform before.
//!
//! Each method is a few lines along those axes: [`Rtn`] rounds to the nearest level, [`Gptq`] spreads each rounding
//! error over the columns still to come, [`Awq`] scales channels by how active they are before either of them, and
//! [`Hadamard`] rotates them.
//! All return [`GroupedAffine`] nodes, which multiply without ever being expanded.

mod awq;
mod gptq;
mod grouped;
mod hadamard;
mod rtn;
mod spec;

pub use awq::{Awq, AwqClip};
pub use gptq::Gptq;
pub use grouped::{GroupedAffine, Zeros};
pub use hadamard::{Hadamard, Sides};
pub use rtn::Rtn;
pub use spec::{Granularity, GridSpec};
pub use tensorpress_tensor::grid::{Affine, Clip, IntGrid, Span};

use tensorpress_tensor::Registry;

/// Adds this crate's nodes to a registry, so that files holding them can be read.
pub fn register(registry: &mut Registry) {
    registry.add_node("grouped_affine.v1", GroupedAffine::read_from);
}
