//! Compress neural networks on CPUs: recipes, a streaming pipeline, and every method of tensorpress under one roof.
//!
//! - [`compress`] does it to one matrix, in one call.
//! - [`Recipe`](recipe::Recipe) says what to do, as a line (`awq | gptq(bits=3, group=64)`), a preset or a TOML file.
//! - [`Compressor`](pipeline::Compressor) does it to a model, block by block, in bounded memory, and can be stopped
//!   and resumed at any moment.
//! - [`Bill`](bill::Bill) says what the result is made of, to the byte.
//!
//! - [`open_model`] opens a model: a folder, or a packed file (`.tpk`), out of which weights are decoded when asked for.
//!
//! - [`Compose`](compose::Compose) makes methods of methods: prune, then quantise what stays, then correct, then code.
//!
//! Features, all on by default: `model` (whole models: pipeline, bills, the reference transformer, tokenizers), `formats`
//! (GGUF files, and folders quantised by GPTQ, AWQ, compressed-tensors and bitsandbytes), `kvcache`, `tokencomp`. Without them, what is left compresses matrices by recipes.
//! Off by default: `report` (pages of what was done).
//!
//! The crates below are re-exported: [`tensor`] (nodes, kernels, checkpoints), [`quant`], [`prune`] and [`lowrank`]
//! (methods), [`allocate`] (sharing a budget out), [`entropy`] (lossless coding and packed files), [`kvcache`] (keys and values), [`tokencomp`] (fewer tokens,
//! shorter prompts), [`formats`] (everybody's), [`model`] (the reference transformer that calibrates and judges); with the feature `report`, `report` (pages and plots).

#[cfg(feature = "model")]
pub mod bill;
pub mod compose;
mod compress;
#[cfg(feature = "model")]
mod open;
#[cfg(feature = "model")]
pub mod pipeline;
pub mod prelude;
pub mod recipe;
mod registry;

pub use compress::{compress, compress_with};
#[cfg(feature = "model")]
pub use open::{open_model, open_model_with, open_packed_model, open_packed_model_with};
pub use registry::registry;
pub use tensorpress_allocate as allocate;
pub use tensorpress_entropy as entropy;
#[cfg(feature = "formats")]
pub use tensorpress_formats as formats;
#[cfg(feature = "kvcache")]
pub use tensorpress_kvcache as kvcache;
pub use tensorpress_lowrank as lowrank;
#[cfg(feature = "model")]
pub use tensorpress_model as model;
pub use tensorpress_prune as prune;
pub use tensorpress_quant as quant;
#[cfg(feature = "report")]
pub use tensorpress_report as report;
pub use tensorpress_tensor as tensor;
pub use tensorpress_tensor::{Error, ErrorKind, Result};
#[cfg(feature = "tokencomp")]
pub use tensorpress_tokencomp as tokencomp;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeDoctest;
