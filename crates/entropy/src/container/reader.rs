//! Packed files opened for reading: any tensor, rows of it, or a whole file, without decoding the rest.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use rayon::prelude::*;
use tensorpress_tensor::checkpoint::{ByteSource, FileReader};
use tensorpress_tensor::{Bytes, Context, Error, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::base::{Base, BaseTensor};
use super::file::Member;
use super::format::{Chunk, FileEntry, Index, Segment, Stored};
use super::index::read_index;
use super::preamble::{PREAMBLE, Preamble};
use crate::chunk::{self, CHUNK_BYTES};

/// A packed file. Opening reads its header and index; chunks are decoded when asked for, and checked always.
///
/// Clones share the file. Nothing is allocated that the index does not back: a chunk decodes to [`CHUNK_BYTES`] at
/// most, and each takes at least 9 bytes of the index and one of its own.
///
/// ```
/// use tensorpress_entropy::PackedFile;
///
/// let error = PackedFile::from_bytes("not.tpk", b"no packed file".to_vec()).unwrap_err();
/// assert!(error.to_string().contains("not.tpk"));
/// ```
#[derive(Debug, Clone)]
pub struct PackedFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    source: Arc<dyn ByteSource>,
    index: Arc<Index>,
    base: Option<Base>,
    /// Segments that were decoded whole and are still held by someone.
    decoded: Mutex<HashMap<usize, Weak<Vec<u8>>>>,
}

/// Decoded bytes, shared by all who hold them.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

const CHUNK: u64 = CHUNK_BYTES as u64;

impl PackedFile {
    /// Opens a packed file. It is read, not mapped: what is not asked for takes no memory.
    ///
    /// # Errors
    /// `Io`; `Corruption` or `InsufficientData` for a damaged header or index; `Version`. Each names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(path.to_path_buf(), Arc::new(FileReader::open(path)?)).in_file(path)
    }

    /// A packed file in memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`PackedFile::open`].
    pub fn from_bytes(name: &str, bytes: impl Into<Bytes>) -> Result<Self> {
        Self::new(name.into(), Arc::new(bytes.into())).in_file(Path::new(name))
    }

    fn new(path: PathBuf, source: Arc<dyn ByteSource>) -> Result<Self> {
        let len = source.size();
        let preamble = Preamble::parse(&source.read(0..len.min(PREAMBLE as u64))?, len)?;
        let end = preamble.index_offset + preamble.index_bytes;
        let index = read_index(&source.read(preamble.index_offset..end)?, &preamble)?;
        let index = Arc::new(index);
        let inner = Inner { path, source, index, base: None, decoded: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Gives a delta the base it was packed against. Which tensors of it are the right ones is checked when they are
    /// needed. A file that is no delta needs none and ignores it.
    #[must_use]
    pub fn with_base(self, base: Base) -> Self {
        let Inner { path, source, index, .. } = &*self.inner;
        let (path, source, index) = (path.clone(), source.clone(), index.clone());
        let inner = Inner { path, source, index, base: Some(base), decoded: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What is in it.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    /// Length of the packed file.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.inner.source.size()
    }

    /// Length of all files in it.
    #[must_use]
    pub fn unpacked_bytes(&self) -> u64 {
        self.inner.index.files.iter().map(|file| file.len).sum()
    }

    /// Bytes of a segment as they are stored; none if it is equal to another.
    #[must_use]
    pub fn stored_bytes_of(&self, segment: usize) -> u64 {
        match &self.inner.index.segments[segment].stored {
            Stored::Chunks { chunks, .. } => chunks.iter().map(|c| u64::from(c.len)).sum(),
            Stored::SameAs(_) => 0,
        }
    }

    /// The segments of a name, with their numbers; several files may have a tensor of one name.
    pub fn find(&self, tensor: &str) -> impl Iterator<Item = (usize, &Segment)> {
        let named = move |s: &Segment| s.tensor.as_ref().is_some_and(|t| t.name == tensor);
        self.inner.index.segments.iter().enumerate().filter(move |(_, s)| named(s))
    }

    fn found(&self, tensor: &str) -> Result<(usize, &Segment)> {
        self.find(tensor).next().ok_or_else(|| {
            Error::insufficient("no such tensor").in_tensor(tensor).in_file(&self.inner.path)
        })
    }

    /// Decodes a tensor, of the first file that has one of this name, and checks its hash.
    ///
    /// # Errors
    /// `InsufficientData` if there is none; `Corruption` for damage; `MissingBase` if it needs a base that was not
    /// given, or another one than was given. Each names tensor and file.
    pub fn tensor(&self, name: &str) -> Result<Bytes> {
        self.segment(self.found(name)?.0)
    }

    /// Decodes rows of a tensor, where its first axis counts rows; only their chunks are decoded.
    ///
    /// # Errors
    /// As [`PackedFile::tensor`]; `Unsupported` if its rows are no whole number of bytes.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows(&self, name: &str, rows: Range<u64>) -> Result<Bytes> {
        let (number, segment) = self.found(name)?;
        let shape = &segment.tensor.as_ref().expect("found by its name").shape;
        let count = shape.first().copied().unwrap_or(1);
        assert!(rows.start <= rows.end && rows.end <= count, "rows out of bounds");
        if count == 0 || !segment.len.is_multiple_of(count) {
            return match segment.len {
                0 => Ok(Vec::new().into()),
                _ => Err(self.at(Error::unsupported("rows that are no whole bytes"), number)),
            };
        }
        let width = segment.len / count;
        self.range(number, rows.start * width..rows.end * width)
    }

    /// Decodes a segment and checks its hash.
    ///
    /// # Errors
    /// As [`PackedFile::tensor`].
    ///
    /// # Panics
    /// If there is no such segment.
    pub fn segment(&self, number: usize) -> Result<Bytes> {
        let owner = match self.inner.index.segments[number].stored {
            Stored::SameAs(earlier) => earlier,
            Stored::Chunks { .. } => number,
        };
        let held = self.inner.decoded.lock().ok().and_then(|d| d.get(&owner)?.upgrade());
        if let Some(bytes) = held {
            return Ok(Bytes::new(Arc::new(Shared(bytes))));
        }
        let segment = &self.inner.index.segments[owner];
        let bytes = self.decode(number, 0..segment.len)?;
        if xxh3_128(&bytes) != segment.hash {
            return Err(self.at(Error::corruption(WRONG_HASH), number));
        }
        let bytes = Arc::new(bytes);
        if let Ok(mut decoded) = self.inner.decoded.lock() {
            decoded.retain(|_, held| held.strong_count() > 0);
            decoded.insert(owner, Arc::downgrade(&bytes));
        }
        Ok(Bytes::new(Arc::new(Shared(bytes))))
    }

    /// Decodes a range of a segment: the chunks it lies in, each checked.
    ///
    /// # Errors
    /// As [`PackedFile::tensor`].
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn range(&self, number: usize, range: Range<u64>) -> Result<Bytes> {
        let len = self.inner.index.segments[number].len;
        assert!(range.start <= range.end && range.end <= len, "range out of bounds");
        if range == (0..len) {
            return self.segment(number);
        }
        let whole = range.start / CHUNK * CHUNK..len.min(range.end.next_multiple_of(CHUNK));
        let bytes: Bytes = self.decode(number, whole.clone())?.into();
        let from = (range.start - whole.start) as usize;
        Ok(bytes.slice(from..from + (range.end - range.start) as usize))
    }

    /// Decodes whole chunks of a segment.
    fn decode(&self, number: usize, range: Range<u64>) -> Result<Vec<u8>> {
        let first = (range.start / CHUNK) as usize;
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| self.at(Error::unsupported("too long for this machine"), number))?;
        let mut out = vec![0; len];
        let pieces = out.par_chunks_mut(CHUNK_BYTES).enumerate();
        pieces.try_for_each(|(i, piece)| self.chunk_into(number, first + i, piece))?;
        Ok(out)
    }

    /// Bytes of a chunk as it is stored; none if its segment is equal to another.
    pub(super) fn stored_len(&self, number: usize, chunk: usize) -> u64 {
        match &self.inner.index.segments[number].stored {
            Stored::Chunks { chunks, .. } => u64::from(chunks[chunk].len),
            Stored::SameAs(_) => 0,
        }
    }

    /// Bytes of a chunk of a segment before coding.
    pub(super) fn chunk_len(&self, number: usize, chunk: usize) -> usize {
        let from = chunk as u64 * CHUNK;
        (self.inner.index.segments[number].len - from).min(CHUNK) as usize
    }

    /// A chunk of a segment as it is stored, checked.
    ///
    /// # Errors
    /// `Corruption` if its checksum does not match; names tensor and file.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn stored_chunk(&self, number: usize, chunk: usize) -> Result<(Chunk, Bytes)> {
        let Stored::Chunks { chunks, .. } = &self.inner.index.owner(number).stored else {
            unreachable!("an owner has chunks")
        };
        let entry = chunks[chunk];
        let stored = self.inner.source.read(entry.offset..entry.offset + u64::from(entry.len))?;
        if xxh3_64(&stored) != entry.checksum {
            let error = Error::corruption(format!("chunk {chunk}: its checksum does not match"));
            return Err(self.at(error, number));
        }
        Ok((entry, stored))
    }

    /// Decodes a chunk of a segment; `out` has its length.
    pub(super) fn chunk_into(&self, number: usize, chunk: usize, out: &mut [u8]) -> Result<()> {
        let (entry, stored) = self.stored_chunk(number, chunk)?;
        let from = chunk as u64 * CHUNK;
        let owner = self.inner.index.owner(number);
        let mut decode = || {
            let base = match entry.delta {
                true => Some(self.base_of(owner)?.read(from..from + out.len() as u64)?),
                false => None,
            };
            chunk::decode(owner.values, &stored, base.as_deref(), out)
                .map_err(|e| Error::new(e.kind(), format!("chunk {chunk}: {}", e.message())))
        };
        decode().map_err(|e| self.at(e, number))
    }

    /// The tensor of the base that a segment with chunks is the difference from.
    pub(super) fn base_of(&self, owner: &Segment) -> Result<&BaseTensor> {
        let index = &self.inner.index;
        let (Some(tensor), Stored::Chunks { base: Some(hash), .. }) =
            (&owner.tensor, &owner.stored)
        else {
            return Err(Error::corruption("a difference, but from nothing"));
        };
        let Some(base) = &self.inner.base else {
            return Err(Error::missing_base(format!(
                "packed against a base, which is needed: it was at {:?}, and its tensor has xxh3-128 {hash:032x}",
                index.base.as_deref().unwrap_or_default()
            )));
        };
        base.wanted(tensor, *hash)
    }

    /// Says where an error is: the tensor, or the place in the file, and the file.
    pub(super) fn at(&self, error: Error, number: usize) -> Error {
        let segment = &self.inner.index.segments[number];
        let error = match &segment.tensor {
            Some(tensor) => error.in_tensor(&tensor.name),
            None => {
                let end = segment.offset + segment.len;
                let message = format!("bytes {}..{end}: {}", segment.offset, error.message());
                Error::new(error.kind(), message)
            }
        };
        error.in_file(self.path_of(self.inner.index.file_of(number)))
    }

    /// What errors call a file inside.
    pub(super) fn path_of(&self, file: &FileEntry) -> PathBuf {
        self.inner.path.join(&file.path)
    }

    /// That nobody has written to the file, or to its base, since they were opened.
    ///
    /// # Errors
    /// `Io`, naming the file, if somebody has.
    pub fn check_unmoved(&self) -> Result<()> {
        self.inner.source.check_unmoved()?;
        self.inner.base.as_ref().map_or(Ok(()), Base::check_unmoved)
    }

    /// A file in the container, read on demand.
    ///
    /// # Errors
    /// `InsufficientData` if there is none of this path.
    pub fn file(&self, path: &str) -> Result<Member> {
        let files = &self.inner.index.files;
        match files.binary_search_by(|file| file.path.as_str().cmp(path)) {
            Ok(number) => Ok(self.file_at(number)),
            Err(_) => Err(Error::insufficient("no such file").in_file(self.inner.path.join(path))),
        }
    }

    pub(super) fn file_at(&self, number: usize) -> Member {
        Member::new(self.clone(), number)
    }
}

/// What an error says of bytes that decode to something else than was packed.
pub(super) const WRONG_HASH: &str =
    "decoded to other bytes than were packed: its hash does not match";
