//! Weights that are signs: under a scale, several of them summed, and some of them left out.

mod binary;
mod sherry;

pub use binary::{Binary, BinaryFit};
pub use sherry::Sherry;

use tensorpress_tensor::Result;
use tensorpress_tensor::node::{Blocks, Child, LevelFormat, LevelTable, PackedPlane};
use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::{DType, ndarray::Array2};

use crate::levels::scaled::dense;

/// The stages of this module.
pub(crate) fn stages() -> [Row<WeightPart>; 2] {
    [binary::stage(), sherry::stage()]
}

/// Signs (1: plus), and the scales `[rows, groups]` of groups of `size` columns.
fn signs(signs: &Array2<u8>, size: usize, scales: &[f32], dtype: DType) -> Result<LevelTable> {
    let (rows, cols) = signs.dim();
    let codes = PackedPlane::pack(signs.as_slice().expect("standard layout"), rows, cols, 1)?;
    let format = LevelFormat::new(2, Blocks::Rows(size))?;
    let levels = dense(&[-1.0, 1.0], [1, 2], Some(DType::F16))?;
    let scales = dense(scales, [rows, cols.div_ceil(size)], Some(dtype))?;
    let beside = vec![Child::Node(levels), Child::Node(scales)];
    LevelTable::new(format, [rows, cols], Box::new(codes), beside)
}
