//! The tensors of bitsandbytes.
//!
//! A tensor is flattened row by row into blocks, the last of which may be shorter; each block has its largest magnitude
//! as an f32 (`absmax`), and each element is a code of a table of levels: `level * absmax` ([`Blockwise`]).
//! - 4 bits ([`FourBit`]): NF4 or FP4, two codes to a byte, the first in the *high* half; the other formats here have
//!   it low.
//! - 8 bits: the dynamic map of 256 levels.
//! - Nested statistics (double quantisation): the `absmax` of a tensor are codes of the dynamic map in blocks of 256,
//!   about an offset, which is their mean.
//! - LLM.int8 ([`Int8`]): a scale for each row.
//!
//! (Source: `functional.py`, `csrc/cpu_ops.cpp` of bitsandbytes 0.50, `nn/modules.py` for the names.)

mod blockwise;
mod four;
mod int8;
mod mean;
mod nearest;
mod node;
mod state;

pub use blockwise::{Blockwise, Statistics};
pub use four::FourBit;
pub use int8::Int8;
pub use node::{Int8Format, Int8Rows};
pub use state::{QuantType, State};
