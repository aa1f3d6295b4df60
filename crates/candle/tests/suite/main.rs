//! Layers and tensors of tensorpress in candle: against slow products, against nodes, against the reference decoder.

mod common;
mod embedding;
mod layers;
mod tokens;
mod vars;
mod wrong;

#[path = "../../examples/llama/model.rs"]
mod llama;
