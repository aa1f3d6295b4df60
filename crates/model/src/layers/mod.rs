//! The parts of a transformer block.

pub(crate) mod activation;
pub(crate) mod attend;
pub(crate) mod attention;
mod linear;
pub(crate) mod math;
mod matrix;
pub(crate) mod mlp;
pub(crate) mod moe;
mod norm;
mod project;
mod rope;
mod scan;

pub(crate) use attention::{Attention, Latent, Projection, Relative, alibi_slopes};
pub use linear::Linear;
pub(crate) use matrix::Matrix;
pub(crate) use mlp::{Mlp, MlpLinears};
pub(crate) use moe::Moe;
pub use moe::Routing;
pub use norm::Norm;
pub use rope::Rope;
pub(crate) use rope::RowsAt;
pub(crate) use scan::{Conv, Scan, Scanning};

use ndarray::ArrayViewMut2;
use tensorpress_tensor::Scratch;

/// A matrix over a buffer of `scratch`; contents unspecified. Give the buffer back.
pub(crate) fn buffer(scratch: &mut Scratch, rows: usize, cols: usize) -> Vec<f32> {
    scratch.take(rows * cols)
}

/// Sees a buffer as a matrix of `cols` columns.
pub(crate) fn as_matrix(buffer: &mut [f32], cols: usize) -> ArrayViewMut2<'_, f32> {
    let rows = buffer.len() / cols;
    ArrayViewMut2::from_shape((rows, cols), buffer).expect("rows x cols values")
}
