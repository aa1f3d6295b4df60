//! Lossless coding: byte and bit transforms x probability models x coders x a container that checks everything.
//!
//! - [`chunk`] codes a piece of a tensor by whatever makes it smallest, bit for bit.

pub mod chunk;
pub mod value;

pub use chunk::Effort;
pub use value::ValueType;
