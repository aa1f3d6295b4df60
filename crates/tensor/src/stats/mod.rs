//! Calibration statistics of a linear layer's input, gathered from a stream of activations.
//!
//! A method declares what it [`Needs`]: a set of keys, each the type of a [`Statistic`]. A [`Collector`] gathers that from
//! chunks X `[tokens, channels]` in bounded memory, and [`Collector::finish`] gives the [`Calibration`] a method reads:
//! [`Gram`] (XᵀX), [`Moments`] (per channel), [`SampledRows`], [`CrossGram`] (of compressed and original inputs),
//! [`OutputGram`], [`TokenNorms`], [`RouteCounts`]. A statistic of one's own is a type that implements the trait; what only
//! the caller knows, such as gradients, he hands over as [`Supplied`].
//!
//! # What is guaranteed
//! - **Streaming.** How the stream is cut into chunks does not change a byte of the Gram matrix and of the samples.
//! - **Merging.** Statistics of two parts merge into those of the whole. The caller fixes the order of the merges;
//!   the same order, the same bytes.
//! - **Threads.** The bytes do not depend on `par`.
//! - **NaN and infinity** are found, counted as tokens, and make the statistics an error naming the first channel
//!   concerned, so that a layer can fall back to a method that needs none.

mod calibration;
mod collector;
mod cross;
mod experts;
mod gram;
mod moments;
mod needs;
mod outputs;
mod routes;
mod samples;
mod statistic;
mod supplied;
mod tokens;

pub use calibration::Calibration;
pub use collector::Collector;
pub use cross::CrossGram;
pub use experts::{ChannelSeen, ExpertActivity, ExpertSeen};
pub use gram::Gram;
pub use moments::Moments;
pub use needs::Needs;
pub use outputs::OutputGram;
pub use routes::RouteCounts;
pub use samples::SampledRows;
pub use statistic::{Ask, Batch, Statistic, Stream, Via};
pub use supplied::{Order, Supplied, Supply};
pub use tokens::TokenNorms;

use ndarray::{ArrayView1, ArrayView2};

use crate::Error;

/// All ones in the exponent of an f32 mean NaN or infinity.
const EXPONENT: u32 = 0x7F80_0000;

/// The first entry of a stream that is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NonFinite {
    token: u64,
    channel: usize,
}

impl NonFinite {
    /// In the order of rows, then channels; tokens are counted from `first_token`.
    fn find(x: ArrayView2<'_, f32>, first_token: u64) -> Option<Self> {
        // No early exit within a row: that keeps the loop in vector registers.
        let bad = |v: &f32| v.to_bits() & EXPONENT == EXPONENT;
        let any_bad = |row: &ArrayView1<'_, f32>| row.fold(false, |any, v| any | bad(v));
        let (row, values) = x.rows().into_iter().enumerate().find(|(_, row)| any_bad(row))?;
        let channel = values.iter().position(bad)?;
        Some(Self { token: first_token + row as u64, channel })
    }

    fn error(self, what: &str) -> Error {
        let Self { token, channel } = self;
        Error::numerical(format!("{what}: channel {channel} is NaN or infinite at token {token}"))
    }
}
