//! The bytes of a frame: a head, and records that each end with a checksum of everything before.

use tensorpress_tensor::{Error, ErrorKind, Result};
use xxhash_rust::xxh3::Xxh3;

use crate::chunk::{self, CHUNK_BYTES};
use crate::value::ValueType;

/// The first bytes of every frame: not text.
pub const MAGIC: [u8; 4] = *b"\x89TPF";
/// The version of the layout that is written.
pub const VERSION: u8 = 1;

/// Magic, version, layout of the values.
pub(super) const HEAD: usize = 6;
/// Bytes before coding and as stored.
pub(super) const RECORD: usize = 8;
/// The checksum behind what is stored.
pub(super) const SUM: usize = 8;

pub(super) fn head(values: ValueType) -> [u8; HEAD] {
    let [a, b, c, d] = MAGIC;
    [a, b, c, d, VERSION, values.id()]
}

pub(super) fn read_head(head: [u8; HEAD]) -> Result<ValueType> {
    if head[..4] != MAGIC {
        return Err(Error::corruption("this is no frame of numbers"));
    }
    if head[4] != VERSION {
        return Err(Error::version(format!(
            "a frame of version {}; this build reads {VERSION}",
            head[4]
        )));
    }
    ValueType::from_id(head[5])
        .ok_or_else(|| Error::version(format!("unknown layout {} of values in a frame", head[5])))
}

/// What a record says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// A chunk: its bytes before coding and as stored.
    Chunk { len: usize, stored: usize },
    /// The last record, which holds the length of all chunks.
    End,
}

/// What stands behind the end: the length before coding, as a u64.
pub(super) const END: usize = 8;

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD] {
        // Both lengths are at most 2^20 + 1.
        let (len, stored) = match self {
            Self::Chunk { len, stored } => (len as u32, stored as u32),
            Self::End => (0, END as u32),
        };
        (u64::from(stored) << 32 | u64::from(len)).to_le_bytes()
    }

    pub(super) fn read(bytes: [u8; RECORD]) -> Result<Self> {
        let word = u64::from_le_bytes(bytes);
        let (len, stored) = (word as u32 as usize, (word >> 32) as usize);
        match (len, stored) {
            (0, END) => Ok(Self::End),
            (1..=CHUNK_BYTES, 1..) if stored <= len + 1 => Ok(Self::Chunk { len, stored }),
            _ => Err(Error::corruption(format!("a record of {len} bytes in {stored}"))),
        }
    }

    /// Bytes behind the lengths, without the checksum.
    pub(super) fn stored(self) -> usize {
        match self {
            Self::Chunk { stored, .. } => stored,
            Self::End => END,
        }
    }
}

/// Follows a frame from its head to its end.
#[derive(Clone)]
pub(super) struct Walk {
    hash: Xxh3,
    /// Bytes of the chunks so far.
    pub(super) len: u64,
    last: bool,
}

impl Walk {
    pub(super) fn new(head: &[u8; HEAD]) -> Self {
        let mut hash = Xxh3::new();
        hash.update(head);
        Self { hash, len: 0, last: false }
    }

    /// The checksum of what is written, as it stands behind `stored`.
    pub(super) fn write(&mut self, record: Record, stored: &[u8]) -> [u8; SUM] {
        if let Record::Chunk { len, .. } = record {
            self.len += len as u64;
        }
        self.hash.update(&record.to_bytes());
        self.hash.update(stored);
        let sum = self.hash.digest().to_le_bytes();
        self.hash.update(&sum);
        sum
    }

    /// Checks a record that was read.
    pub(super) fn read(&mut self, record: Record, stored: &[u8], sum: &[u8]) -> Result<()> {
        if self.write(record, stored) != sum {
            return Err(Error::corruption(format!(
                "the checksum behind byte {} of the numbers does not match",
                self.len
            )));
        }
        match record {
            Record::Chunk { .. } if self.last => {
                Err(Error::corruption("a short chunk that is not the last one"))
            }
            Record::Chunk { len, .. } => {
                self.last = len < CHUNK_BYTES;
                Ok(())
            }
            Record::End if stored == self.len.to_le_bytes() => Ok(()),
            Record::End => Err(Error::corruption(format!(
                "chunks of {} bytes in all, which is not the length at the end",
                self.len
            ))),
        }
    }
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Decodes what a record stores: never a difference from a base.
pub(super) fn decode(values: ValueType, stored: &[u8], out: &mut [u8]) -> Result<()> {
    chunk::decode(values, stored, None, out).map_err(|e| match e.kind() {
        ErrorKind::InvalidArgument => Error::corruption(e.message()),
        _ => e,
    })
}

pub(super) fn early() -> Error {
    Error::insufficient("the frame ends early")
}
