//! Reference transformers: they exist to calibrate compression and to judge it, not to serve.
//!
//! A [`Source`] opens a Hugging Face folder (Llama 2 and 3, Mistral, Qwen 2 and 3, BERT), compressed or not. Out of it
//! come single [`Block`]s, so that a pipeline can stream through a model in bounded memory, or a whole [`Decoder`] or
//! [`Encoder`]. Any weight can be any node.

pub mod block;
pub mod cache;
pub mod calibrate;
pub mod config;
pub mod decoder;
pub mod embedded;
pub mod encoder;
pub mod eval;
pub mod generate;
pub mod layers;
pub mod source;
pub mod text;
pub mod tokenizer;

pub use block::{Block, Observer, SharedInput};
pub use cache::{DenseCache, KvCache};
pub use calibrate::{Calibrations, Collecting, calibrate};
pub use config::{Activation, Architecture, Config, RopeConfig, RopeScaling};
pub use decoder::{Decoder, Embedding, Head};
pub use encoder::Encoder;
pub use eval::{Judgement, Reference, compare, perplexity};
pub use generate::{Generation, generate, generate_text};
pub use layers::{Linear, Norm, Rope};
pub use source::{LinearSpec, Source};
pub use tokenizer::{TextStream, Tokenizer};
