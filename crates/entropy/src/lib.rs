//! Lossless coding: byte and bit transforms x probability models x coders x a container that checks everything.
//!
//! - [`chunk`] codes a piece of a tensor by whatever makes it smallest, bit for bit.
//! - [`container`] is the packed file (`.tpk`): tensors in chunks, an index, checksums over everything.

mod bits;
pub mod chunk;
pub mod coder;
pub mod container;
mod kernels;
pub mod model;
pub mod value;
mod varint;

pub use chunk::Effort;
pub use container::{Base, Packed, Packer};
pub use value::ValueType;
