use std::io::Write;
use std::ops::Range;

use tensorpress_tensor::checkpoint::ByteSource;
use tensorpress_tensor::{Bytes, Context, Error, ErrorKind, Result};

use super::cursor::{Cursor, DEEPEST};
use super::types::extent;
use super::value::{Value, write_text};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT: &str = "general.alignment";

/// Pairs of metadata that a file may have; in memory the smallest take several times what they do in a file.
const MOST_KEYS: u64 = 1 << 14;
/// Tensors that a file may have.
const MOST_TENSORS: u64 = 1 << 16;
/// Bytes of a key (as the format has it) or a name.
const LONGEST_NAME: u64 = (1 << 16) - 1;
/// Axes of a tensor, as ggml has it.
const MOST_AXES: usize = 4;
/// The format sets no bound; files that fill up each tensor to more than this are forged.
const WIDEST: u64 = 1 << 20;

/// What a file says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Elements along each axis, the fastest axis first: a matrix `[out, in]` is `[in, out]` here. At most four axes.
    pub dims: Vec<u64>,
    /// Number of its type: see [`extent`].
    pub type_id: u32,
    /// Where it begins, counted from [`Header::data_start`].
    pub offset: u64,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// The front of a file: metadata in order, and where each tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    version: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    alignment: u64,
    data_start: u64,
}

/// An error of a key, which its message names.
fn of_key(key: &str, e: &Error) -> Error {
    Error::new(e.kind(), format!("key `{key}`: {}", e.message()))
}

impl Header {
    /// Reads the header of a file, of version 2 or 3.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData` if bytes contradict the format: they name the key or the tensor;
    /// `Unsupported` for types that no [`extent`] is known of and for more of anything than files in use have (16 384
    /// keys, 65 536 tensors, arrays 8 deep, an alignment of 1 MiB); `Version` for other versions and big-endian files;
    /// those of reading.
    pub fn read(source: &dyn ByteSource) -> Result<Self> {
        let header = Self::read_front(source)?;
        let size = source.size().saturating_sub(header.data_start);
        for info in &header.tensors {
            if info.offset + info.bytes > size {
                let what = format!(
                    "{} bytes at {} of the data, which have {size}",
                    info.bytes, info.offset
                );
                return Err(Error::insufficient(what).in_tensor(&info.name));
            }
        }
        Ok(header)
    }

    /// Reads a header without the data behind it, such as [`Header::bytes`].
    ///
    /// # Errors
    /// As [`Header::read`], but for tensors that are not there.
    pub fn read_alone(bytes: &Bytes) -> Result<Self> {
        Self::read_front(bytes)
    }

    fn read_front(source: &dyn ByteSource) -> Result<Self> {
        let mut cursor = Cursor::new(source);
        if source.size() < 24 || cursor.array()? != MAGIC {
            return Err(Error::corruption("no GGUF file: it does not begin with `GGUF`"));
        }
        let version = cursor.u32()?;
        if !(2..=VERSION).contains(&version) {
            let swapped = (1..=VERSION).contains(&version.swap_bytes());
            let what = if swapped { " (big-endian)" } else { "" };
            return Err(Error::version(format!("version {version:#x} of GGUF{what}")));
        }
        let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
        // The smallest pair and the smallest tensor.
        for (what, count, least) in [("keys", pairs, 13), ("tensors", tensors, 24)] {
            let name = |e: Error| Error::new(e.kind(), format!("{what}: {}", e.message()));
            cursor.check_count(count, least).map_err(name)?;
        }
        check_counts(pairs, tensors)?;
        let count = tensors;
        let mut metadata = Vec::with_capacity(pairs as usize);
        for number in 0..pairs {
            metadata.push(read_pair(&mut cursor, number)?);
        }
        let alignment = check_metadata(&metadata)?;
        let mut tensors = Vec::with_capacity(count as usize);
        for number in 0..count {
            tensors.push(read_info(&mut cursor, number)?);
        }
        let data_start = cursor.at().next_multiple_of(alignment);
        let header = Self { version, metadata, tensors, alignment, data_start };
        header.check_places()?;
        Ok(header)
    }

    /// The header of a file to be written: tensors (name, axes with the fastest first, number of the type) in order of
    /// place. The alignment is what `general.alignment` says in the metadata, else 32.
    ///
    /// # Errors
    /// `InvalidArgument`, `Corruption` or `Unsupported` for what [`Header::read`] would refuse.
    pub fn new(
        metadata: Vec<(String, Value)>,
        tensors: impl IntoIterator<Item = (String, Vec<u64>, u32)>,
    ) -> Result<Self> {
        let alignment = check_metadata(&metadata)?;
        for (key, value) in &metadata {
            if key.len() as u64 > LONGEST_NAME {
                return Err(Error::invalid(format!("a key of {} bytes", key.len())));
            }
            if value.as_array().is_some_and(|array| array.depth() > DEEPEST) {
                let what = format!("arrays in arrays, more than {DEEPEST} deep");
                return Err(of_key(key, &Error::unsupported(what)));
            }
        }
        let mut infos = Vec::new();
        let mut at = 0u64;
        for (name, dims, type_id) in tensors {
            if name.len() as u64 > LONGEST_NAME {
                return Err(Error::invalid(format!("a name of {} bytes", name.len())));
            }
            let bytes = bytes_of(&dims, type_id).in_tensor(&name)?;
            infos.push(TensorInfo { name, dims, type_id, offset: at, bytes });
            let next =
                at.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(alignment));
            at = next.ok_or_else(|| Error::invalid("tensors of more than 2^64 bytes"))?;
        }
        check_counts(metadata.len() as u64, infos.len() as u64)?;
        let (version, data_start) = (VERSION, 0);
        let mut header = Self { version, metadata, tensors: infos, alignment, data_start };
        header.data_start = (header.bytes().len() as u64).next_multiple_of(alignment);
        header.check_places()?;
        Ok(header)
    }

    /// The pairs of metadata, in order; no key is there twice.
    #[must_use]
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// What is said of each tensor, in order; no name is there twice.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// What is said of each tensor, in order of place.
    #[must_use]
    pub fn tensors_in_place(&self) -> Vec<&TensorInfo> {
        let mut infos: Vec<&TensorInfo> = self.tensors.iter().collect();
        infos.sort_by_key(|info| (info.offset, info.bytes));
        infos
    }

    /// Length of the file, in which every tensor is filled up to the alignment.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        let ends = self.tensors.iter().map(|info| info.offset + info.bytes);
        let end = ends.max().unwrap_or(0);
        self.data_start + end.next_multiple_of(self.alignment)
    }

    /// What is said of the tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|info| info.name == name)
    }

    /// What offsets are multiples of: a power of two.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the data begin in the file.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Where a tensor of this file lies in it.
    #[must_use]
    pub fn range(&self, info: &TensorInfo) -> Range<u64> {
        let start = self.data_start + info.offset;
        start..start + info.bytes
    }

    /// The header as files have it, without what fills it up.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            write_text(key, &mut out);
            out.extend((value.kind() as u32).to_le_bytes());
            value.write(&mut out);
        }
        for info in &self.tensors {
            write_text(&info.name, &mut out);
            out.extend((info.dims.len() as u32).to_le_bytes());
            info.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(info.type_id.to_le_bytes());
            out.extend(info.offset.to_le_bytes());
        }
        out
    }

    /// Writes the file: the header, and the bytes that `data` gives for each tensor, in order of place. A file in which
    /// every tensor is filled up to the alignment, the last one too, and with nothing else, comes out as it was read.
    ///
    /// # Errors
    /// `ShapeMismatch`, naming the tensor, if bytes are not as many as its type and axes take; `Io`; those of `data`.
    pub fn write(
        &self,
        out: &mut dyn Write,
        data: &mut dyn FnMut(&TensorInfo) -> Result<Bytes>,
    ) -> Result<()> {
        let fail = |e| Error::new(ErrorKind::Io, format!("cannot write the file: {e}"));
        let header = self.bytes();
        out.write_all(&header).map_err(fail)?;
        fill(out, self.data_start - header.len() as u64).map_err(fail)?;
        let mut at = 0;
        for info in self.tensors_in_place() {
            let bytes = data(info).in_tensor(&info.name)?;
            if bytes.len() as u64 != info.bytes {
                let what = format!("{} bytes, where {} belong", bytes.len(), info.bytes);
                return Err(Error::shape(what).in_tensor(&info.name));
            }
            fill(out, info.offset - at).map_err(fail)?;
            out.write_all(&bytes).map_err(fail)?;
            at = info.offset + info.bytes;
            fill(out, at.next_multiple_of(self.alignment) - at).map_err(fail)?;
            at = at.next_multiple_of(self.alignment);
        }
        Ok(())
    }

    /// That names are unique, offsets aligned, and no tensor overlaps another; nothing overflows past the end of the
    /// last.
    fn check_places(&self) -> Result<()> {
        if let Some(name) = twice(self.tensors.iter().map(|info| info.name.as_str())) {
            return Err(Error::corruption("is there twice").in_tensor(name));
        }
        for info in &self.tensors {
            let refuse = |what: String| Err(Error::corruption(what).in_tensor(&info.name));
            if !info.offset.is_multiple_of(self.alignment) {
                return refuse(format!(
                    "offset {} is no multiple of {}",
                    info.offset, self.alignment
                ));
            }
            let end = self.data_start.checked_add(info.offset);
            let end = end.and_then(|start| start.checked_add(info.bytes));
            if end.is_none_or(|end| end > u64::MAX - WIDEST) {
                return refuse(format!("offset {} overflows", info.offset));
            }
        }
        let infos = self.tensors_in_place();
        let overlap = infos.windows(2).find(|two| two[0].offset + two[0].bytes > two[1].offset);
        match overlap {
            None => Ok(()),
            Some(two) => {
                let what = format!("overlaps the tensor `{}`", two[0].name);
                Err(Error::corruption(what).in_tensor(&two[1].name))
            }
        }
    }
}

fn check_counts(keys: u64, tensors: u64) -> Result<()> {
    for (what, count, most) in [("keys", keys, MOST_KEYS), ("tensors", tensors, MOST_TENSORS)] {
        if count > most {
            return Err(Error::unsupported(format!("{count} {what}, where {most} are allowed")));
        }
    }
    Ok(())
}

/// One that is there twice.
fn twice<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.windows(2).find(|two| two[0] == two[1]).map(|two| two[0])
}

fn read_pair(cursor: &mut Cursor<'_>, number: u64) -> Result<(String, Value)> {
    let nameless = |e: Error| Error::new(e.kind(), format!("key {number}: {}", e.message()));
    let key = cursor.text(LONGEST_NAME).map_err(nameless)?;
    let value = cursor.value().map_err(|e| of_key(&key, &e))?;
    Ok((key, value))
}

fn read_info(cursor: &mut Cursor<'_>, number: u64) -> Result<TensorInfo> {
    let nameless = |e: Error| Error::new(e.kind(), format!("tensor {number}: {}", e.message()));
    let name = cursor.text(LONGEST_NAME).map_err(nameless)?;
    let mut read = || {
        let axes = cursor.u32()? as usize;
        if axes > MOST_AXES {
            return Err(Error::unsupported(format!("{axes} axes, where {MOST_AXES} are allowed")));
        }
        let dims = (0..axes).map(|_| cursor.u64()).collect::<Result<Vec<_>>>()?;
        let (type_id, offset) = (cursor.u32()?, cursor.u64()?);
        let bytes = bytes_of(&dims, type_id)?;
        Ok((dims, type_id, offset, bytes))
    };
    let (dims, type_id, offset, bytes) = read().in_tensor(&name)?;
    Ok(TensorInfo { name, dims, type_id, offset, bytes })
}

/// Bytes that a tensor takes.
fn bytes_of(dims: &[u64], type_id: u32) -> Result<u64> {
    if dims.len() > MOST_AXES {
        let what = format!("{} axes, where {MOST_AXES} are allowed", dims.len());
        return Err(Error::unsupported(what));
    }
    let Some(extent) = extent(type_id) else {
        return Err(Error::unsupported(format!("type {type_id} of ggml")));
    };
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(extent.elements) {
        let what = format!("rows of {row}, in blocks of {} elements", extent.elements);
        return Err(Error::corruption(what));
    }
    let bytes = dims.iter().skip(1).try_fold(row / extent.elements, |n, dim| n.checked_mul(*dim));
    let bytes = bytes.and_then(|blocks| blocks.checked_mul(extent.bytes));
    bytes.ok_or_else(|| Error::corruption(format!("axes {dims:?} overflow")))
}

/// That keys are unique, and the alignment, which they say.
fn check_metadata(metadata: &[(String, Value)]) -> Result<u64> {
    if let Some(key) = twice(metadata.iter().map(|(key, _)| key.as_str())) {
        return Err(of_key(key, &Error::corruption("is there twice")));
    }
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == ALIGNMENT) else { return Ok(32) };
    match value {
        Value::U32(width) if width.is_power_of_two() && u64::from(*width) <= WIDEST => {
            Ok(u64::from(*width))
        }
        Value::U32(width) => {
            let what = format!("{width} is no power of two up to {WIDEST}");
            Err(of_key(ALIGNMENT, &Error::corruption(what)))
        }
        other => {
            let what = format!("is {:?}, where U32 belongs", other.kind());
            Err(of_key(ALIGNMENT, &Error::corruption(what)))
        }
    }
}

/// Zeros.
fn fill(out: &mut dyn Write, count: u64) -> std::io::Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), count), out).map(drop)
}
