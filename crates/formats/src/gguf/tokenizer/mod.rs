//! The tokenizer of a file, to the two files that folders of Hugging Face have and back.
//!
//! Three kinds, by `tokenizer.ggml.model`: `gpt2` (byte-level BPE, split before by the patterns that
//! `tokenizer.ggml.pre` names), `llama` (SentencePiece's BPE with a fallback to bytes, ordered by scores) and `bert`
//! (WordPiece; tokens that begin words have U+2581 before them, where `tokenizer.json` marks the others with `##`).
//! What neither side can say is lost: flags of added tokens, what unused tokens are, how texts are trimmed.
//! (Source of keys, types and defaults: llama.cpp's reader and converter.)

mod keys;
mod merges;
mod pre;
mod read;
mod special;
mod write;

pub use read::from_hugging_face;
pub use write::{TokenizerFiles, to_hugging_face};
