//! Weight quantisation of tensorpress: number grid x granularity x rounding solver x transform before.
//!
//! Each method is a few lines along those axes: [`Rtn`] rounds to the nearest level, [`Gptq`] spreads each rounding
//! error over the columns still to come, [`Awq`] scales channels by how active they are before either of them.
//! All return [`GroupedAffine`] nodes, which multiply without ever being expanded.

mod awq;
mod gptq;
mod levels;
mod rtn;

pub use awq::{Awq, AwqClip};
pub use gptq::Gptq;
pub use levels::{Dynamic8, Fp4, Nf4};
pub use rtn::Rtn;
pub use tensorpress_tensor::grid::{Affine, Clip, Granularity, GridSpec, IntGrid, Span};
pub use tensorpress_tensor::node::{GroupedAffine, LevelTable};
