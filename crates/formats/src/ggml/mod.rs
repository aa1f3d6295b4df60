//! The block types of ggml: decoding to the bit.
//!
//! Sources: ggml (`ggml-common.h`, `ggml-quants.c`) and gguf-py; the values are those of the builds without fused
//! multiply-add.
//!
//! ```
//! use tensorpress_formats::ggml::{self, Type};
//!
//! // d = 1 (f16), then sixteen bytes of two codes each.
//! let block = [&[0x00, 0x3c], [0x9f; 16].as_slice()].concat();
//! let mut values = [0.0; 32];
//! ggml::decode(Type::Q4_0, &block, &mut values)?;
//! assert_eq!((values[0], values[16]), (7.0, 1.0));
//! # Ok::<(), tensorpress_tensor::Error>(())
//! ```

mod decode;
mod grids;
mod tables;
mod types;

pub use decode::decode;
pub use types::Type;
