//! Lossless coding: byte and bit transforms x probability models x coders x a container that checks everything.
//!
//! - [`coder`]s turn symbols and a [`model`] into bits and back.
//! - [`chunk`] codes a piece of a tensor by whatever makes it smallest, bit for bit.
//! - [`compress()`] and [`decompress`] make one checked piece of bytes, a [`frame`], of numbers, and numbers of it.
//! - [`container`] is the packed file (`.tpk`): tensors in chunks, an index, checksums over everything.
//! - [`coded()`] entropy-codes the integers of any compressed node.

mod bits;
pub mod chunk;
pub mod coded;
pub mod coder;
pub mod container;
pub mod frame;
pub mod model;
mod spread;
pub mod value;
mod varint;

pub use chunk::Effort;
pub use coded::{TileCoder, coded, register, stages};
pub use container::{Base, PackedFile, Packer};
pub use frame::{Frame, Number, compress, compress_with, decompress};
pub use tensorpress_tensor::{Error, ErrorKind, Result};
pub use value::ValueType;
