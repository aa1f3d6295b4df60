//! Lossless coding: byte and bit transforms x probability models x coders x a container that checks everything.
//!
//! - [`chunk`] codes a piece of a tensor by whatever makes it smallest, bit for bit.
//! - [`container`] is the packed file (`.tpk`): tensors in chunks, an index, checksums over everything.

pub mod chunk;
pub mod container;
pub mod value;

pub use chunk::Effort;
pub use container::{Base, Packed, Packer};
pub use value::ValueType;
