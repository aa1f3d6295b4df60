//! From nodes to others' formats: codes move over where a format can hold them, and nothing is rounded.

mod blocks;
mod grids;
mod layers;

pub use blocks::{Fit, as_blocks, fallback, fitting};
pub use grids::{Grids, Survey};
pub use layers::{Stored, awq, bits_and_bytes, compressed_tensors, gptq};

use tensorpress_tensor::Error;

/// Why a format cannot hold a node, and the nearest thing that would do.
pub(crate) fn refuse(why: impl std::fmt::Display, nearest: &str) -> Error {
    let or = if nearest.contains("requantise") { "" } else { ", or requantise" };
    Error::unsupported(format!("{why}: {nearest}{or}"))
}
