//! Weight quantisation of tensorpress: number grid x granularity x rounding solver x transform before.
//!
//! Each method is a few lines along those axes: [`Rtn`] rounds to the nearest level, [`Gptq`] spreads each rounding
//! error over the columns still to come, [`Awq`] scales channels by how active they are before either of them, and
//! [`Hadamard`] rotates them; [`activation`] rounds inputs too.
//! All end in [`GroupedAffine`] nodes, under a transform where columns were reordered or scales could not be folded. Those
//! multiply a few tokens straight from the codes; for many, tiles of rows are decoded, never the whole matrix.
//!
//! Vectors that are no weights are quantised by [`codebook`]s, and stored for retrieval by [`embedding`].

pub mod activation;
mod aqlm;
mod awq;
mod binary_conv;
pub mod codebook;
mod drift;
pub mod embedding;
mod fixed_point;
mod gptq;
mod guided;
mod hadamard;
mod hqq;
mod levels;
mod mixed;
mod obq;
mod pv;
mod qtip;
mod rounding;
mod rtn;
mod scaled;
mod sharing;
mod signs;
mod spqr;
mod vectors;
mod watersic;
mod yaqa;

pub use activation::{Fptq, SmoothQuant};
pub use aqlm::{AdditiveCodes, Aqlm};
pub use awq::{Awq, AwqClip};
pub use binary_conv::{BinaryConv, RPRelu};
pub use codebook::Lr2Vq;
pub use drift::Drift;
pub use fixed_point::{AdaPt, FixedPoint, gradient_diversity};
pub use gptq::{ColumnLevels, Gptaq, Gptq};
pub use guided::Guided;
pub use hadamard::{Hadamard, Sides};
pub use hqq::Hqq;
pub use levels::{BitMod, Dkm, KMeans, LevelSpec, Nested, Post, Sketch, SqueezeLlm};
pub use levels::{Dynamic8, Fp4, Nf4};
pub use levels::{optimal_levels, optimal_scale};
pub use mixed::MixedRows;
pub use obq::Obq;
pub use pv::{LevelCodes, Proposal, Pv, Representation, VectorCodes};
pub use qtip::Qtip;
pub use rounding::{Codes, Rounding};
pub use rtn::Rtn;
pub use sharing::{FoldedWeights, RandomFold};
pub use signs::{Binary, BinaryFit, Sherry};
pub use spqr::Spqr;
pub use tensorpress_tensor::grid::{Affine, Clip, Granularity, GridSpec, IntGrid, Span};
pub use tensorpress_tensor::node::{
    BitshiftTrellis, GroupedAffine, LevelTable, NestedAffine, Steps,
};
pub use tensorpress_tensor::obs::Damping;
pub use vectors::{E8, Pvq};
pub use watersic::{ColumnSteps, RowSteps, Watersic};
pub use yaqa::Yaqa;

use tensorpress_tensor::stage::{Row, WeightPart};

/// All stages of this crate.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    let [nf4, fp4, dynamic8] = levels::stages();
    let mut stages = vec![
        rtn::stage(),
        gptq::stage(),
        awq::stage(),
        hadamard::stage(),
        drift::stage(),
        guided::stage(),
        gptq::gptaq_stage(),
    ];
    stages.extend([nf4, fp4, dynamic8]);
    stages.extend(levels::fitted_stages());
    stages.extend(signs::stages());
    stages.extend(vectors::stages());
    stages.extend([mixed::stage(), pv::stage()]);
    stages.extend([watersic::stage(), hqq::stage(), spqr::stage(), obq::stage(), aqlm::stage()]);
    stages.extend(activation::stages());
    stages.push(fixed_point::stage());
    stages.push(codebook::stage());
    stages.extend([qtip::stage(), yaqa::stage()]);
    stages
}
