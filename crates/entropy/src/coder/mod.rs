//! Entropy coders: from symbols and a model to bits and back.
//!
//! Every coder works on whole slices, so that nobody meets the order in which it works inside. Planes are coded by
//! [`TileCoder`](crate::TileCoder)s, which make their models from what they code; [`range`] takes any model.

pub(crate) mod blocks;
pub(crate) mod classes;
pub(crate) mod huffman;
mod modelled;
pub mod range;
pub(crate) mod rans;
pub(crate) mod slots;
