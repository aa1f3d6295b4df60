//! Entropy coders: from symbols and a model to bits and back.

pub(crate) mod blocks;
pub(crate) mod huffman;
pub(crate) mod rans;
pub(crate) mod slots;
