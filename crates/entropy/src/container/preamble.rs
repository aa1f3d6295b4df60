//! The first bytes of a packed file: what says where the index is.

use tensorpress_tensor::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

/// The first bytes of every container: not text, and spoilt by whatever mends line ends.
pub const MAGIC: [u8; 8] = *b"\x89TPK\r\n\x1a\n";
/// The version of the format that is written.
pub const VERSION: u32 = 1;
/// Bytes of the preamble.
pub(super) const PREAMBLE: usize = 64;

/// Where the index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preamble {
    pub(super) index_offset: u64,
    pub(super) index_bytes: u64,
    pub(super) index_sum: u128,
}

impl Preamble {
    pub(super) fn to_bytes(self) -> [u8; PREAMBLE] {
        let mut bytes = [0; PREAMBLE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // 12..16 is zero.
        bytes[16..24].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_bytes.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.index_sum.to_le_bytes());
        bytes[48..56].copy_from_slice(&(self.index_offset + self.index_bytes).to_le_bytes());
        let sum = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the preamble of a file of `length` bytes.
    pub(super) fn parse(bytes: &[u8], length: u64) -> Result<Self> {
        let Some(bytes) = bytes.first_chunk::<PREAMBLE>() else {
            return Err(Error::insufficient(format!("header: the file ends at byte {length}")));
        };
        if bytes[..8] != MAGIC {
            return Err(Error::corruption("header: this is no packed file"));
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if word(56) != xxh3_64(&bytes[..56]) {
            return Err(Error::corruption("header: its checksum does not match"));
        }
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(Error::version(format!(
                "header: written in version {version} of the format; this program reads {VERSION}"
            )));
        }
        let (index_offset, index_bytes) = (word(16), word(24));
        let end = index_offset.checked_add(index_bytes);
        if bytes[12..16] != [0; 4] || index_offset < PREAMBLE as u64 || end != Some(word(48)) {
            return Err(Error::corruption("header: contradicts itself"));
        }
        if word(48) != length {
            return Err(Error::insufficient(format!(
                "header: the file is {length} bytes long, and was {}",
                word(48)
            )));
        }
        let index_sum = u128::from_le_bytes(bytes[32..48].try_into().expect("16 bytes"));
        Ok(Self { index_offset, index_bytes, index_sum })
    }
}
