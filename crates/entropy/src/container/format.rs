//! What a container holds: everything that can be known of it without decoding a chunk.

use std::ops::Range;

use crate::chunk::CHUNK_BYTES;
use crate::value::ValueType;

/// What a container holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Index {
    /// Whether a folder was packed, rather than one file.
    pub is_folder: bool,
    /// Where the base of a delta was when it was packed.
    pub base: Option<String>,
    /// The files, sorted by path.
    pub files: Vec<FileEntry>,
    /// The segments of all files, in order.
    pub segments: Vec<Segment>,
}

/// A file in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEntry {
    /// Path in the folder, components joined by `/`; of a single file its name.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// xxh3-128 of the file.
    pub hash: u128,
    /// Its segments in [`Index::segments`]; joined they are the file.
    pub segments: Range<usize>,
}

/// A piece of a file that is coded on its own: a tensor, or bytes between tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// The tensor, if it is one.
    pub tensor: Option<TensorInfo>,
    /// How its values are coded.
    pub values: ValueType,
    /// Where it begins in its file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// xxh3-128 of its bytes.
    pub hash: u128,
    /// Where its bytes are.
    pub stored: Stored,
}

/// A tensor as the safetensors header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Element type by its name in the file.
    pub dtype: String,
    /// Shape in elements.
    pub shape: Vec<u64>,
}

/// Where the bytes of a segment are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stored {
    /// Coded in chunks of [`CHUNK_BYTES`] before coding, the last one shorter.
    Chunks {
        /// The chunks, in order.
        chunks: Vec<Chunk>,
        /// xxh3-128 of the tensor of the base that some chunks are differences from.
        base: Option<u128>,
    },
    /// Equal to an earlier segment, by its number; that one has chunks.
    SameAs(usize),
}

/// A chunk: where it is stored, and what its bytes must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Offset in the container.
    pub offset: u64,
    /// Bytes stored.
    pub len: u32,
    /// xxh3-64 of the bytes stored.
    pub checksum: u64,
    /// Whether it is the difference from the base.
    pub delta: bool,
}

impl Index {
    /// Number of chunks that a segment of `len` bytes has.
    pub(super) fn chunks_of(len: u64) -> u64 {
        len.div_ceil(CHUNK_BYTES as u64)
    }

    /// The segment that holds the bytes of segment `number`: itself, or the equal one before it.
    #[must_use]
    pub fn owner(&self, number: usize) -> &Segment {
        match self.segments[number].stored {
            Stored::SameAs(earlier) => &self.segments[earlier],
            Stored::Chunks { .. } => &self.segments[number],
        }
    }

    /// The file that segment `number` belongs to.
    #[must_use]
    pub fn file_of(&self, number: usize) -> &FileEntry {
        let after = self.files.partition_point(|file| file.segments.end <= number);
        &self.files[after]
    }
}
