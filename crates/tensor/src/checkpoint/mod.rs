//! Checkpoints: safetensors files read through memory maps, and shards written whole or not at all.

mod map;
mod reader;
mod writer;

pub use reader::Checkpoint;
pub use writer::{CountSink, write_atomically, write_shard};
