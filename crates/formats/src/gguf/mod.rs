//! GGUF files, the container of llama.cpp: typed metadata, and tensors of ggml's types behind them.
//!
//! Little-endian: `GGUF`, a u32 version, the numbers of tensors and of metadata as u64; then each pair of metadata
//! (key, u32 [`Kind`], value) and each tensor (name, u32 number of axes, u64 for each axis, u32 type, u64 offset).
//! Texts are a u64 length and UTF-8; arrays a u32 kind, a u64 length and elements, which may be arrays in turn. The
//! first axis is the fastest, the reverse of everybody else's order. Data begin at the next multiple of the alignment
//! (`general.alignment`, a u32, else 32), offsets count from there, and each tensor is filled up to the alignment.
//! Versions 2 and 3 differ in nothing that is stored here. (Source: ggml's `docs/gguf.md` and its reader.)

mod array;
mod cursor;
mod file;
mod header;
pub mod model;
pub mod tokenizer;
mod types;
mod value;

pub use array::Array;
pub use file::Gguf;
pub use header::{Header, TensorInfo};
pub use types::{Extent, extent};
pub use value::{Kind, Value};
