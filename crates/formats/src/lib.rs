//! Everybody's formats of quantised weights, to the bit: small floats, the block types of ggml, GGUF files, and the
//! tensors of GPTQ, AWQ, compressed-tensors and bitsandbytes.

pub mod awq;
pub mod bnb;
pub mod compressed_tensors;
pub mod float;
pub mod ggml;
pub mod gguf;
pub mod gptq;
mod parts;
