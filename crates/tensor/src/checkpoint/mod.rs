//! Checkpoints: safetensors files read through memory maps or out of containers, and files and folders written whole or
//! not at all.

mod advice;
mod exchange;
mod files;
mod header;
mod index;
mod map;
mod publish;
mod read;
mod reader;
mod view;
mod walk;
mod writer;

pub use advice::{explain_missing, is_other_weights, refuse_lfs_pointer};
pub use files::{ByteSource, Files, Folder};
pub use header::{Header, Place, Placed, write_header};
pub use map::{MappedFile, survive_cut_files};
pub use publish::{
    Unfinished, find_foreign, is_temporary, name_file, name_folder, refuse_mount_point,
    remove_files, remove_listed, write_atomically, write_new,
};
pub use read::FileReader;
pub use reader::Checkpoint;
pub use view::{Content, Made, View};
pub use walk::{files_below, stays_inside};
pub use writer::{Announced, CountSink, Produce, shard_bytes, write_announced, write_shard};
