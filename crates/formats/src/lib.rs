//! Everybody's formats of quantised weights, to the bit: small floats, the block types of ggml, GGUF files, and the
//! tensors of GPTQ, AWQ, compressed-tensors and bitsandbytes; and their folders, seen as folders of ours.

pub mod awq;
pub mod bnb;
pub mod compressed_tensors;
pub mod export;
pub mod float;
pub mod ggml;
pub mod gguf;
pub mod gptq;
pub mod imatrix;
pub mod import;
mod parts;
mod register;
mod words;

pub use register::{register, stages};
pub use words::repacked;
