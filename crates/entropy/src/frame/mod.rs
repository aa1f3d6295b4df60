//! A frame: numbers of any count in one piece of bytes, with their layout, length and checksums inside.
//!
//! [`compress()`] and [`decompress`] work on slices, [`FrameWriter`] and [`FrameReader`] on streams; both speak the same
//! layout, which docs/format-tpk.md states. Numbers come back bit for bit, NaNs too; equal numbers give equal frames for
//! any number of threads.

mod number;
mod record;
mod stream;

use rayon::prelude::*;
use tensorpress_tensor::{Error, Result};

use crate::chunk::{self, CHUNK_BYTES, Effort};
use crate::value::ValueType;
use record::{HEAD, Record, SUM, Walk, early};

pub use number::Number;
pub use record::{MAGIC, VERSION};
pub use stream::{FrameReader, FrameWriter};

/// Codes `numbers`, whose bits are laid out as `values` says: that decides how small they become, not whether they come
/// back. At most 30 bytes longer than the numbers, and 17 more for each MiB of them, or part of one.
///
/// ```
/// use tensorpress_entropy::{ValueType, compress, decompress};
///
/// // bf16 weights, as an engine holds them.
/// let weights: Vec<u16> = (0..100_000u32).map(|i| 0x3c00 | (i * 40_503 >> 9) as u16 & 0x81ff).collect();
/// let frame = compress(&weights, ValueType::BF16);
/// assert!(frame.len() < 2 * weights.len() * 8 / 10);
/// assert_eq!(decompress::<u16>(&frame)?, weights);
/// # Ok::<(), tensorpress_entropy::Error>(())
/// ```
#[must_use]
pub fn compress<T: Number>(numbers: &[T], values: ValueType) -> Vec<u8> {
    compress_with(numbers, values, Effort::default())
}

/// [`compress()`] with a given effort.
#[must_use]
pub fn compress_with<T: Number>(numbers: &[T], values: ValueType, effort: Effort) -> Vec<u8> {
    let code = |bytes: &mut Vec<u8>, piece: &[T]| {
        bytes.clear();
        T::write_le(piece, bytes);
        (bytes.len(), chunk::encode_whole(values, bytes, None, effort))
    };
    let chunks: Vec<(usize, Vec<u8>)> =
        numbers.par_chunks(CHUNK_BYTES / T::BYTES).map_init(Vec::new, code).collect();
    let head = record::head(values);
    let mut walk = Walk::new(&head);
    let mut frame = head.to_vec();
    let mut append = |record: Record, stored: &[u8]| {
        frame.extend_from_slice(&record.to_bytes());
        frame.extend_from_slice(stored);
        frame.extend_from_slice(&walk.write(record, stored));
    };
    for (len, stored) in &chunks {
        append(Record::Chunk { len: *len, stored: stored.len() }, stored);
    }
    append(Record::End, &((numbers.len() * T::BYTES) as u64).to_le_bytes());
    frame
}

/// The numbers of a frame. Every checksum is compared before anything is decoded or room for the numbers is taken;
/// 18 bytes of a frame may stand for up to 1 MiB of equal numbers, so ask [`Frame::open`] for the length first where
/// frames come from strangers.
///
/// # Errors
/// `Corruption`, `InsufficientData` for a frame that ends early, `Version` for one of a later version,
/// `InvalidArgument` if its bytes are no whole number of `T`, `Unsupported` if they are more than this machine can
/// count.
pub fn decompress<T: Number>(frame: &[u8]) -> Result<Vec<T>> {
    Frame::open(frame)?.decode()
}

/// A frame whose checksums were compared, not decoded yet.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    values: ValueType,
    len: u64,
    /// Bytes of each chunk before coding and as stored.
    chunks: Vec<(usize, &'a [u8])>,
}

impl<'a> Frame<'a> {
    /// Checks `bytes`, which hold a frame and nothing else.
    ///
    /// # Errors
    /// `Corruption`, `InsufficientData` or `Version`.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let (head, mut rest) = bytes.split_first_chunk::<HEAD>().ok_or_else(early)?;
        let values = record::read_head(*head)?;
        let mut walk = Walk::new(head);
        let mut chunks = Vec::new();
        loop {
            let (record, after) = rest.split_first_chunk().ok_or_else(early)?;
            let record = Record::read(*record)?;
            let (stored, after) = after.split_at_checked(record.stored()).ok_or_else(early)?;
            let (sum, after) = after.split_at_checked(SUM).ok_or_else(early)?;
            rest = after;
            walk.read(record, stored, sum)?;
            match record {
                Record::Chunk { len, .. } => chunks.push((len, stored)),
                Record::End if rest.is_empty() => {
                    return Ok(Self { values, len: walk.len, chunks });
                }
                Record::End => return Err(Error::corruption("bytes behind the end of the frame")),
            }
        }
    }

    /// How the bits of its numbers are laid out.
    #[must_use]
    pub fn values(&self) -> ValueType {
        self.values
    }

    /// Bytes of its numbers.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.len
    }

    /// Its numbers.
    ///
    /// # Errors
    /// `Corruption`; `InvalidArgument` if the bytes are no whole number of `T`; `Unsupported` if they are more than this
    /// machine can count.
    pub fn decode<T: Number>(&self) -> Result<Vec<T>> {
        if !self.len.is_multiple_of(T::BYTES as u64) {
            let (len, width) = (self.len, T::BYTES);
            return Err(Error::invalid(format!(
                "{len} bytes are no numbers of {width} bytes each"
            )));
        }
        // Chunks stand for 1 MiB at most: their number bounds the length, though not to what 32 bits can count.
        let len = usize::try_from(self.len)
            .map_err(|_| Error::unsupported("a frame too long for this machine"))?;
        let mut numbers = vec![T::default(); len / T::BYTES];
        let pieces = numbers.par_chunks_mut(CHUNK_BYTES / T::BYTES);
        pieces.zip(&self.chunks).try_for_each_init(Vec::new, |bytes, (piece, (len, stored))| {
            bytes.resize(*len, 0);
            record::decode(self.values, stored, bytes)?;
            T::read_le(bytes, piece);
            Ok(())
        })?;
        Ok(numbers)
    }
}
