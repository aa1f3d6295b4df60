use std::collections::BTreeMap;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use super::header::{Place, write_header};
use super::publish::write_atomically;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::storage::{Part, PartSink};

/// Counts parts and their bytes without keeping them.
#[derive(Debug, Default)]
pub struct CountSink {
    /// Parts seen.
    pub parts: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl PartSink for CountSink {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        self.parts += 1;
        self.bytes += part.bytes.len() as u64;
        Ok(())
    }
}

/// What hands over every part of a file; the same ones each time.
pub type Produce<'a> = dyn FnMut(&mut dyn PartSink) -> Result<()> + 'a;

/// Writes a safetensors file that appears under its name only when it is complete and on disk. Returns its length.
///
/// `produce` is called twice: what it hands over is announced first and written then, for the header and the order of
/// the parts depend on all of them, and to hold their bytes until the last one is there would be to hold the file.
///
/// # Errors
/// Those of `produce`; `Io`; `InvalidArgument` if two parts have one name. Nothing is left behind.
pub fn write_shard(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    produce: &mut Produce<'_>,
) -> Result<u64> {
    let mut announced = Announced::default();
    produce(&mut announced)?;
    write_announced(path, metadata, announced, produce)
}

/// [`write_shard`] of parts that are announced already: `produce` is called once.
///
/// # Errors
/// As [`write_shard`]; `InvalidArgument` if parts are not those that were announced.
pub fn write_announced(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    mut announced: Announced,
    produce: &mut Produce<'_>,
) -> Result<u64> {
    let header = announced.layout(metadata);
    write_atomically(path, &mut |file| announced.write(&header, file, path, produce))?;
    Ok(header.len() as u64 + announced.len)
}

/// The bytes that [`write_shard`] writes. `produce` is called twice here too: so they are in memory once.
///
/// # Errors
/// Those of `produce`; `InvalidArgument` if two parts have one name.
pub fn shard_bytes(
    metadata: &BTreeMap<String, String>,
    produce: &mut Produce<'_>,
) -> Result<Vec<u8>> {
    let mut announced = Announced::default();
    produce(&mut announced)?;
    let header = announced.layout(metadata);
    let mut bytes = Cursor::new(Vec::new());
    announced.write(&header, &mut bytes, Path::new("memory"), produce)?;
    Ok(bytes.into_inner())
}

/// What a file will hold: name, type and shape of each part. Takes parts, of which it keeps no bytes.
#[derive(Debug, Clone, Default)]
pub struct Announced {
    entries: BTreeMap<String, Entry>,
    /// Bytes behind the header, once they are laid out.
    len: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    /// Name of the element type.
    dtype: String,
    /// Bytes that its elements are aligned to.
    width: usize,
    shape: Vec<usize>,
    offset: u64,
    len: u64,
}

impl PartSink for Announced {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        let len = part.bytes.len() as u64;
        let expected = bytes_of(part.dtype, &part.shape);
        if len != expected {
            return Err(
                Error::shape(format!("{len} bytes, shape says {expected}")).in_tensor(part.name)
            );
        }
        self.announce(part.name, part.dtype, part.shape)
    }
}

fn bytes_of(dtype: DType, shape: &[usize]) -> u64 {
    (shape.iter().product::<usize>() * dtype.size()) as u64
}

impl Announced {
    /// Announces a part whose bytes are not made yet.
    ///
    /// # Errors
    /// `InvalidArgument` if one of this name was announced before.
    pub fn announce(&mut self, name: String, dtype: DType, shape: Vec<usize>) -> Result<()> {
        let len = bytes_of(dtype, &shape);
        let (dtype, width) = (dtype.name().to_owned(), dtype.size());
        self.add(name, Entry { dtype, width, shape, offset: 0, len })
    }

    /// Announces a part of this many bytes whose element type, by its name in safetensors, may be one that no [`DType`]
    /// is. It is handed over as bytes of any type.
    ///
    /// # Errors
    /// As [`Announced::announce`].
    pub fn announce_stored(
        &mut self,
        name: String,
        dtype: &str,
        shape: Vec<usize>,
        len: u64,
    ) -> Result<()> {
        let width = match DType::from_name(dtype) {
            Some(dtype) => dtype.size(),
            None if dtype == "C64" => 8,
            None => 1,
        };
        self.add(name, Entry { dtype: dtype.to_owned(), width, shape, offset: 0, len })
    }

    /// Announces all that `other` does.
    ///
    /// # Errors
    /// As [`Announced::announce`].
    pub fn append(&mut self, other: &Self) -> Result<()> {
        let mut entries = other.entries.iter();
        entries.try_for_each(|(name, entry)| self.add(name.clone(), entry.clone()))
    }

    fn add(&mut self, name: String, entry: Entry) -> Result<()> {
        if self.entries.contains_key(&name) {
            return Err(Error::invalid("two parts of one name").in_tensor(name));
        }
        self.entries.insert(name, entry);
        Ok(())
    }

    fn write<W: Write + Seek>(
        &self,
        header: &[u8],
        file: &mut W,
        path: &Path,
        produce: &mut Produce<'_>,
    ) -> Result<()> {
        let io = |e| Error::io("write the file", path, e);
        let start = header.len() as u64;
        file.write_all(header).map_err(io)?;
        let mut writer = Writer { file, path, start, plan: self, seen: 0 };
        produce(&mut writer)?;
        let seen = writer.seen;
        if seen != self.entries.len() {
            return Err(Error::invalid(format!("{seen} of {} parts", self.entries.len())));
        }
        file.seek(SeekFrom::Start(start + self.len)).map_err(io)?;
        Ok(())
    }

    /// Places wide elements first, so that every tensor is aligned to its element; returns the header.
    fn layout(&mut self, metadata: &BTreeMap<String, String>) -> Vec<u8> {
        let mut order: Vec<(&String, &mut Entry)> = self.entries.iter_mut().collect();
        order.sort_by(|a, b| b.1.width.cmp(&a.1.width).then_with(|| a.0.cmp(b.0)));
        let mut end = 0;
        for (_, entry) in order {
            entry.offset = end;
            end += entry.len;
        }
        let places = self.entries.iter().map(|(name, entry)| {
            let range = entry.offset..entry.offset + entry.len;
            (name.as_str(), Place { dtype: entry.dtype.as_str(), shape: &entry.shape, range })
        });
        let header = write_header(metadata, places);
        self.len = end;
        header
    }
}

struct Writer<'a, W> {
    file: &'a mut W,
    path: &'a Path,
    start: u64,
    plan: &'a Announced,
    seen: usize,
}

impl<W: Write + Seek> PartSink for Writer<'_, W> {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        let planned = self.plan.entries.get(&part.name);
        let Some(entry) = planned.filter(|e| e.len == part.bytes.len() as u64) else {
            return Err(Error::invalid("part differs from the one announced").in_tensor(part.name));
        };
        let io = |e| Error::io("write the file", self.path, e);
        self.file.seek(SeekFrom::Start(self.start + entry.offset)).map_err(io)?;
        self.file.write_all(&part.bytes).map_err(io)?;
        self.seen += 1;
        Ok(())
    }
}
