//! The tensors of compressed-tensors checkpoints (llm-compressor, vLLM), by the names of their formats.
//!
//! A layer of N outputs and K inputs has a weight `[N, K]`:
//! - `pack-quantized` ([`PackQuantized`]): integers of 1 to 8 bits in words of 32;
//! - `int-quantized` and `float-quantized` ([`IntQuantized`], [`FloatQuantized`]): a byte each;
//! - `mxfp4-pack-quantized`, `mxfp6-pack-quantized`, `mxfp8-quantized` ([`Mx`]) and `nvfp4-pack-quantized` ([`Nvfp4`]):
//!   small floats in short blocks with scales of 8 bits;
//! - `sparse-bitmask` and `sparse-24-bitmask` ([`SparseBitmask`], [`Sparse24Bitmask`]): values and where they are;
//! - `marlin-24` ([`Marlin24`]): integers of which each four in a row keep two, in the order of a kernel.
//!
//! Floats of 8 bits are given as tensors of [`DType::U8`](tensorpress_tensor::DType). Each type says how its parts lie.
//! (Source: `compressed_tensors/compressors` of the package, versions 0.11 and 0.20.)

mod blocks;
mod bytewise;
mod integers;
mod marlin;
mod order;
mod packed;
mod scales;
mod sparse;
mod words;

pub use blocks::{Mx, MxFormat, Nvfp4, UnpackedMx, UnpackedNvfp4};
pub use bytewise::{FloatQuantized, Floats, IntQuantized};
pub use integers::Integers;
pub use marlin::Marlin24;
pub use packed::PackQuantized;
pub(crate) use packed::read_shape;
pub use scales::{Granularity, Scales};
pub use sparse::{Sparse24Bitmask, SparseBitmask};
pub use words::{Packing, pack_words, unpack_words};
