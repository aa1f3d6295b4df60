//! The index as bytes.

use tensorpress_tensor::{Error, Result};
use xxhash_rust::xxh3::xxh3_128;

use super::format::{Chunk, FileEntry, Index, Segment, Stored, TensorInfo};
use super::paths;
use super::preamble::{PREAMBLE, Preamble};
use super::wire::{Put, Take};
use crate::chunk::CHUNK_BYTES;
use crate::value::ValueType;

/// No chunk is stored in more than this: raw storage takes a byte more than the chunk.
pub(super) const MAX_STORED: u64 = 2 * CHUNK_BYTES as u64;

const BYTES: u8 = 0;
const TENSOR: u8 = 1;

const CHUNKS: u8 = 0;
const SAME_AS: u8 = 1;
const DELTA: u8 = 2;

/// Least bytes of a file, a segment and a chunk in the index.
const LEAST: [usize; 3] = [18, 7, 9];

impl Index {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut put = Put::default();
        put.byte(u8::from(self.is_folder));
        put.byte(u8::from(self.base.is_some()));
        if let Some(base) = &self.base {
            put.text(base);
        }
        put.number(self.files.len() as u64);
        for file in &self.files {
            put.text(&file.path);
            put.sum128(file.hash);
            put.number(file.segments.len() as u64);
            for segment in &self.segments[file.segments.clone()] {
                put_segment(&mut put, segment);
            }
        }
        put.bytes
    }

    /// Reads the index; `end` is where the chunks end. Takes a few dozen times the memory of `bytes` at most.
    pub(super) fn parse(bytes: &[u8], end: u64) -> Result<Self> {
        let mut take = Take::new(bytes);
        let mut index = Self { is_folder: flag(&mut take)?, ..Self::default() };
        if flag(&mut take)? {
            index.base = Some(take.text()?);
        }
        let (mut offset, mut total) = (PREAMBLE as u64, 0u64);
        for _ in 0..take.count(LEAST[0])? {
            let path = take.text()?;
            let hash = take.sum128()?;
            let first = index.segments.len();
            let mut len: u64 = 0;
            for _ in 0..take.count(LEAST[1])? {
                let mut segment = take_segment(&mut take, &index, &mut offset)?;
                segment.offset = len;
                // No file is longer than all of them.
                total = total
                    .checked_add(segment.len)
                    .ok_or_else(|| Error::corruption("index: the files are too long"))?;
                len += segment.len;
                index.segments.push(segment);
            }
            let segments = first..index.segments.len();
            index.files.push(FileEntry { path, len, hash, segments });
        }
        if !take.is_empty() || offset != end {
            return Err(Error::corruption("index: does not cover the file"));
        }
        if !index.is_folder && (index.files.len() != 1 || index.files[0].path.contains('/')) {
            return Err(Error::corruption("index: not one file, and no folder"));
        }
        paths::check(index.files.iter().map(|file| file.path.as_str()))?;
        Ok(index)
    }
}

fn flag(take: &mut Take<'_>) -> Result<bool> {
    match take.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::corruption("index: a flag is neither 0 nor 1")),
    }
}

fn put_segment(put: &mut Put, segment: &Segment) {
    match &segment.tensor {
        None => put.byte(BYTES),
        Some(tensor) => {
            put.byte(TENSOR);
            put.text(&tensor.name);
            put.text(&tensor.dtype);
            put.number(tensor.shape.len() as u64);
            tensor.shape.iter().for_each(|n| put.number(*n));
        }
    }
    put.text(segment.values.name());
    put.number(segment.len);
    let (chunks, base) = match &segment.stored {
        Stored::SameAs(earlier) => {
            put.byte(SAME_AS);
            return put.number(*earlier as u64);
        }
        Stored::Chunks { chunks, base } => (chunks, base),
    };
    put.byte(if base.is_some() { DELTA } else { CHUNKS });
    put.sum128(segment.hash);
    if let Some(base) = base {
        put.sum128(*base);
    }
    for chunk in chunks {
        let len = u64::from(chunk.len);
        put.number(if base.is_some() { len << 1 | u64::from(chunk.delta) } else { len });
        put.sum64(chunk.checksum);
    }
}

/// Reads a segment; `offset` is where its first chunk is, and moves behind its last.
fn take_segment(take: &mut Take<'_>, index: &Index, offset: &mut u64) -> Result<Segment> {
    let tensor = match take.byte()? {
        BYTES => None,
        TENSOR => {
            let (name, dtype) = (take.text()?, take.text()?);
            let shape = (0..take.count(1)?).map(|_| take.number()).collect::<Result<_>>()?;
            Some(TensorInfo { name, dtype, shape })
        }
        _ => return Err(Error::corruption("index: unknown kind of segment")),
    };
    let named = |error: Error| match &tensor {
        Some(tensor) => error.in_tensor(&tensor.name),
        None => error,
    };
    let values = take.text()?;
    let values = ValueType::from_name(&values)
        .ok_or_else(|| named(Error::version(format!("index: unknown layout {values:?}"))))?;
    let len = take.number()?;
    if let Some(tensor) = tensor.as_ref().filter(|_| values != ValueType::Bytes) {
        // Unknown element types are stored as bytes: their size is nobody's business.
        let size = tensor.shape.iter().try_fold(values.width() as u64, |n, d| n.checked_mul(*d));
        if size != Some(len) {
            return Err(named(Error::corruption("index: its shape is not that of its bytes")));
        }
    }
    let kind = take.byte()?;
    if kind == SAME_AS {
        let earlier = take.number()?;
        let owner = usize::try_from(earlier).ok().and_then(|n| index.segments.get(n));
        let same = |s: &&Segment| {
            s.len == len && s.values == values && matches!(s.stored, Stored::Chunks { .. })
        };
        let Some(owner) = owner.filter(same) else {
            return Err(named(Error::corruption("index: equal to a segment that is not there")));
        };
        let stored = Stored::SameAs(earlier as usize);
        return Ok(Segment { hash: owner.hash, tensor, values, offset: 0, len, stored });
    }
    if kind != CHUNKS && (kind != DELTA || index.base.is_none() || tensor.is_none()) {
        return Err(named(Error::corruption("index: unknown kind of storage")));
    }
    let hash = take.sum128()?;
    let base = if kind == DELTA { Some(take.sum128()?) } else { None };
    let count = Index::chunks_of(len);
    if count > take.room(LEAST[2]) {
        return Err(named(Error::corruption("index: says more than it holds")));
    }
    let mut chunks = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let number = take.number()?;
        let (len, delta) = match base {
            Some(_) => (number >> 1, number & 1 == 1),
            None => (number, false),
        };
        if len == 0 || len > MAX_STORED {
            return Err(named(Error::corruption(format!("index: a chunk of {len} bytes"))));
        }
        chunks.push(Chunk { offset: *offset, len: len as u32, checksum: take.sum64()?, delta });
        *offset = offset
            .checked_add(len)
            .ok_or_else(|| named(Error::corruption("index: chunks beyond the file")))?;
    }
    let stored = Stored::Chunks { chunks, base };
    Ok(Segment { tensor, values, offset: 0, len, hash, stored })
}

/// The index behind the chunks, checked.
pub(super) fn read_index(bytes: &[u8], preamble: &Preamble) -> Result<Index> {
    if xxh3_128(bytes) != preamble.index_sum {
        return Err(Error::corruption("index: its checksum does not match"));
    }
    Index::parse(bytes, preamble.index_offset)
}
