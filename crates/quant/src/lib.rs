//! Weight quantisation of tensorpress: number grid x granularity x rounding solver x transform before.
//!
//! Each method is a few lines along those axes: [`Rtn`] rounds to the nearest level, [`Gptq`] spreads each rounding
//! error over the columns still to come, [`Awq`] scales channels by how active they are before either of them, and
//! [`Hadamard`] rotates them.
//! All end in [`GroupedAffine`] nodes, under a transform where columns were reordered or scales could not be folded. Those
//! multiply a few tokens straight from the codes; for many, tiles of rows are decoded, never the whole matrix.

mod aqlm;
mod awq;
mod factor;
mod gptq;
mod hadamard;
mod hqq;
mod levels;
mod obq;
mod qtip;
mod rtn;
mod spqr;
mod watersic;

pub use aqlm::{AdditiveCodes, Aqlm};
pub use awq::{Awq, AwqClip};
pub use gptq::Gptq;
pub use hadamard::{Hadamard, Sides};
pub use hqq::Hqq;
pub use levels::{BitMod, KMeans, LevelSpec, SqueezeLlm, optimal_levels};
pub use levels::{Dynamic8, Fp4, Nf4};
pub use obq::Obq;
pub use qtip::Qtip;
pub use rtn::Rtn;
pub use spqr::Spqr;
pub use tensorpress_tensor::grid::{Affine, Clip, Granularity, GridSpec, IntGrid, Span};
pub use tensorpress_tensor::node::{
    BitshiftTrellis, GroupedAffine, LevelTable, NestedAffine, Steps,
};
pub use watersic::{ColumnSteps, RowSteps, Watersic};

use tensorpress_tensor::stage::{Row, WeightPart};

/// All stages of this crate.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    let [nf4, fp4, dynamic8] = levels::stages();
    let mut stages = vec![rtn::stage(), gptq::stage(), awq::stage(), hadamard::stage()];
    stages.extend([nf4, fp4, dynamic8]);
    stages.extend(levels::fitted_stages());
    stages.extend([watersic::stage(), hqq::stage(), spqr::stage(), obq::stage(), aqlm::stage()]);
    stages.push(qtip::stage());
    stages
}
