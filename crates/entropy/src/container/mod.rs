//! Packed files (`.tpk`): one file, or a folder of them, restored byte for byte.
//!
//! A safetensors file becomes its header and its tensors, each coded in chunks of [`CHUNK_BYTES`](crate::chunk::CHUNK_BYTES);
//! of any other file the bytes are. An index at the end says where everything is, so that a tensor, or rows of one, can
//! be read without the rest. Header, index, chunks, tensors and files all have checksums: there is no bit in a packed
//! file whose change goes unnoticed. Equal tensors are stored once, and a checkpoint can be packed as the difference
//! from another. `docs/format-tpk.md` is the format.
//!
//! ```
//! use tensorpress_entropy::container::{PackedFile, Packer};
//!
//! # fn main() -> tensorpress_tensor::Result<()> {
//! # let folder = tempfile::tempdir().expect("a folder");
//! # let (file, packed) = (folder.path().join("weights.bin"), folder.path().join("weights.tpk"));
//! # std::fs::write(&file, [7; 1000]).expect("written");
//! let report = Packer::new().pack(&file, &packed)?;
//! assert_eq!(report.bytes_before, 1000);
//!
//! let packed = PackedFile::open(&packed)?;
//! assert!(packed.verify(None)?.damages.is_empty());
//! packed.unpack(&folder.path().join("again.bin"), false, None)?;
//! # assert_eq!(std::fs::read(folder.path().join("again.bin")).expect("a file"), [7; 1000]);
//! # Ok(())
//! # }
//! ```

mod base;
mod batch;
mod file;
mod format;
mod index;
mod input;
mod layout;
mod paths;
mod preamble;
mod progress;
mod reader;
mod unpack;
mod verify;
mod walk;
mod wire;
mod writer;

pub use base::Base;
pub use file::Member;
pub use format::{Chunk, FileEntry, Index, Segment, Stored, TensorInfo};
pub use preamble::{MAGIC, VERSION};
pub use progress::{Progress, Watch};
pub use reader::PackedFile;
pub use verify::Verified;
pub use writer::{PackReport, Packer};
