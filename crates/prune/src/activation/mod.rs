//! Weights that stay, and are read only where a token needs them.
//!
//! Nothing here makes a model smaller: a product skips what adds little or nothing. The axes:
//! - [`FeedForward`]: the matrices, stored so that a channel's weights lie side by side, and products with some channels;
//! - which channels a token needs: [`Thresholds`] on its gates (CHESS; on the inputs of any linear: [`SkippingLinear`]), a
//!   [`BlockRouter`] of blocks (BlockFFN), a [`Partition`] into groups that an oracle or a fitted router chooses from
//!   ([`RoutedNetwork`]), or how many learners of an [`OrderedSum`];
//! - several tokens go together: what any of them needs is read once, and their inactive channels are 0 ([`Step`]).

mod affine;
mod block_ffn;
mod chess;
mod clusters;
mod feed_forward;
mod moefication;
mod ordered_sum;

pub use affine::Affine;
pub use block_ffn::{Activity, BlockNetwork, BlockRouter};
pub use chess::{Chess, SkippingLinear, ThresholdCollector, Thresholds};
pub use feed_forward::{Activation, FeedForward, Step};
pub use moefication::{Moefication, Partition, RoutedNetwork, choose};
pub use ordered_sum::{Learners, OrderedSum, OrderedSumFit};

use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::{Error, Result};

/// `ShapeMismatch` unless a matrix has so many columns.
fn check_columns(what: &str, x: ArrayView2<'_, f32>, columns: usize) -> Result<()> {
    match x.ncols() {
        found if found == columns => Ok(()),
        found => Err(Error::shape(format!("{what}: {found} columns, expected {columns}"))),
    }
}

/// `Numerical` naming the first entry that is NaN or infinite.
fn check_finite(what: &str, x: ArrayView2<'_, f32>) -> Result<()> {
    match x.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((r, c), v)) => Err(Error::numerical(format!("{what}: entry [{r}, {c}] is {v}"))),
    }
}
