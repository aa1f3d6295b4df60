//! Checkpoints: safetensors files read through memory maps or out of containers, and shards written whole or not at
//! all.

mod files;
mod map;
mod reader;
mod writer;

pub use files::{ByteSource, Files, Folder};
pub use map::MappedFile;
pub use reader::Checkpoint;
pub use writer::{CountSink, write_atomically, write_shard};
