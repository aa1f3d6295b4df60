//! Lossless coding: byte and bit transforms x probability models x coders x a container that checks everything.
//!
//! - [`coder`]s turn symbols and a [`model`] into bits and back.
//! - [`chunk`] codes a piece of a tensor by whatever makes it smallest, bit for bit.
//! - [`container`] is the packed file (`.tpk`): tensors in chunks, an index, checksums over everything.
//! - [`coded()`] entropy-codes the integers of any compressed node.

mod bits;
pub mod chunk;
pub mod coded;
pub mod coder;
pub mod container;
pub mod model;
pub mod value;
mod varint;

pub use chunk::Effort;
pub use coded::{TileCoder, coded, register};
pub use container::{Base, Packed, Packer};
pub use value::ValueType;
