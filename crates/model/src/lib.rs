//! Reference transformers: they exist to calibrate compression and to judge it, not to serve.
//!
//! A [`Source`] opens a Hugging Face folder of many architectures (`architecture/` has a row for each), compressed or not. Out of it
//! come single [`Block`]s, so that a pipeline can stream through a model in bounded memory, or a whole [`Decoder`] or
//! [`Encoder`]. Any weight can be any node.
//!
//! ```
//! use tensorpress_model::{Generation, Source, embedded, generate_text, perplexity, text};
//! use tensorpress_tensor::Registry;
//!
//! # fn main() -> tensorpress_tensor::Result<()> {
//! let source = Source::demo(&Registry::default())?;
//! let (model, tokenizer) = (source.decoder()?.materialise()?, source.tokenizer()?);
//!
//! let limits = text::Limits { max_segments: Some(4), max_tokens: Some(100) };
//! let file = "heldout.jsonl".as_ref();
//! let stories = text::segments(embedded::HELD_OUT, file, &tokenizer, source.config().context, limits)?;
//! let judged = perplexity(&model, &stories, &|_, _| {})?;
//! assert!(judged.perplexity < 30.0);
//!
//! let how = Generation { max_tokens: 20, ..Generation::default() };
//! let story = generate_text(&model, &tokenizer, "Once upon a time", how, &mut |_| {})?;
//! assert!(!story.is_empty());
//! # Ok(())
//! # }
//! ```

mod architecture;
pub mod backward;
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
pub mod prompts;
pub mod recall;
pub mod reduced;
mod repeat;
pub mod source;
pub mod text;
pub mod tokenizer;

pub use block::{Block, Observer, SharedInput, chunks};
pub use cache::{KvCache, Repeats, ScanState};
pub use calibrate::{Calibrations, Collecting, calibrate};
pub use config::{
    Activation, Architecture, BlockShape, Config, Images, Reads, RopeConfig, RopeScaling,
};
pub use decoder::{Decoder, Embedding, Head};
pub use encoder::{Encoder, TwoTowers};
pub use eval::{Judged, Judgement, Reading, Reference, ThroughCache, compare, perplexity};
pub use generate::{Generation, generate, generate_text};
pub use layers::{Linear, Norm, Rope, Routing};
pub use prompts::{LanguageModel, SentenceSimilarity};
pub use recall::{Passages, Recall, recall};
pub use reduced::{Reduced, Reduction};
pub use repeat::RepeatPrompts;
pub use source::{LinearSpec, Source};
pub use tokenizer::{TextStream, Tokenizer};
