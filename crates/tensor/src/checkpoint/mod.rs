//! Checkpoints: safetensors files read through memory maps or out of containers, and shards written whole or not at
//! all.

mod files;
mod header;
mod map;
mod reader;
mod writer;

pub use files::{ByteSource, Files, Folder};
pub use header::{Header, Place, Placed, write_header};
pub use map::MappedFile;
pub use reader::Checkpoint;
pub use writer::{
    Announced, CountSink, Produce, shard_bytes, write_announced, write_atomically, write_shard,
};
