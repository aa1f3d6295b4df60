//! The block types of ggml: decoding, and the reference quantisers, to the bit.
//!
//! Sources: ggml (`ggml-common.h`, `ggml-quants.c`) and gguf-py; the values are those of the builds without fused
//! multiply-add.
//!
//! ```
//! use tensorpress_formats::ggml::{self, Type};
//!
//! let values: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
//! let mut bytes = vec![0; Type::Q8_0.block_bytes()];
//! ggml::encode(Type::Q8_0, &values, None, &mut bytes)?;
//! let mut back = vec![0.0; 32];
//! ggml::decode(Type::Q8_0, &bytes, &mut back)?;
//! assert!(values.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.07));
//! # Ok::<(), tensorpress_tensor::Error>(())
//! ```

mod decode;
mod encode;
mod fill;
mod grids;
mod node;
mod product;
mod tables;
mod types;

pub use decode::decode;
pub use encode::{Flavour, encode, encode_as};
pub(crate) use fill::stage;
pub use fill::{Fill, Rounding};
pub use node::{GgmlBlocks, GgmlFormat, blocks};
pub use types::Type;
