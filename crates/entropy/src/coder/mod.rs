//! Entropy coders: from symbols and a model to bits and back.
//!
//! Every coder works on whole slices, so that nobody meets the order in which it works inside.

pub(crate) mod blocks;
pub(crate) mod classes;
pub(crate) mod huffman;
mod interface;
pub mod range;
pub(crate) mod rans;
pub(crate) mod slots;

pub use interface::{EntropyCoder, Huffman, Range, Rans};
