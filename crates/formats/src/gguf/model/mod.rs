//! Models in GGUF files: seen as folders of ours, and what files say of folders.

mod arch;
mod config;
mod folder;
mod keys;
mod parts;

pub use arch::{Arch, Paired, Place, pairs};
pub use folder::{GgufFolder, HEADER, config_of};
pub use keys::{Factors, Metadata, metadata_of};
pub use parts::{is_gguf, only_file, only_name, open_parts};
