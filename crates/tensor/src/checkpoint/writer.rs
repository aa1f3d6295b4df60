use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::header::{Place, write_header};
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

/// What hands over every part of a file: called twice, sizes first, then bytes, it must hand over the same.
pub type Produce<'a> = dyn FnMut(&mut dyn PartSink) -> Result<()> + 'a;

/// Writes a safetensors file that appears under its name only when it is complete and on disk. Returns its length.
///
/// # Errors
/// Those of `produce`; `Io`; `InvalidArgument` if two parts have one name. Nothing is left behind.
pub fn write_shard(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    produce: &mut Produce<'_>,
) -> Result<u64> {
    let (plan, header) = Plan::of(metadata, produce)?;
    write_atomically(path, &mut |file| plan.write(&header, file, path, produce))?;
    Ok(header.len() as u64 + plan.len)
}

/// The bytes that [`write_shard`] writes.
///
/// # Errors
/// Those of `produce`; `InvalidArgument` if two parts have one name.
pub fn shard_bytes(
    metadata: &BTreeMap<String, String>,
    produce: &mut Produce<'_>,
) -> Result<Vec<u8>> {
    let (plan, header) = Plan::of(metadata, produce)?;
    let mut bytes = Cursor::new(Vec::new());
    plan.write(&header, &mut bytes, Path::new("memory"), produce)?;
    Ok(bytes.into_inner())
}

/// Writes a file through a temporary one in the same folder, synced and then renamed over `path`. Of several writers the
/// last one wins whole; what a killed one left behind goes with the next.
///
/// # Errors
/// `Io`, or those of `write`. Nothing is left behind.
pub fn write_atomically(path: &Path, write: &mut dyn FnMut(&mut File) -> Result<()>) -> Result<()> {
    let io = |doing: &'static str| move |e| Error::io(doing, path, e);
    remove_leftovers(path);
    let temporary = temporary(path);
    let result = (|| {
        let mut file = File::create_new(&temporary).map_err(io("create the file"))?;
        // Says that somebody is at work. Some file systems have no locks; work goes on without.
        let _ = file.try_lock();
        write(&mut file)?;
        file.sync_all().map_err(io("sync the file"))?;
        drop(file);
        std::fs::rename(&temporary, path).map_err(io("rename the finished file"))
    })();
    if result.is_err() {
        // The error that matters is the first one.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// A name that no other writer of this or another process has.
fn temporary(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// Removes temporary files for `path` that nobody works on any more.
fn remove_leftovers(path: &Path) {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (Some(name), Ok(listing)) = (path.file_name(), std::fs::read_dir(folder)) else { return };
    let start = format!("{}.", name.to_string_lossy());
    for entry in listing.flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let number = found.strip_prefix(&start).and_then(|rest| rest.strip_suffix(".tmp"));
        let ours = number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit() || b == b'-'));
        if ours && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[derive(Default)]
struct Plan {
    entries: BTreeMap<String, Entry>,
    /// Bytes behind the header.
    len: u64,
}

struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
    len: u64,
}

impl PartSink for Plan {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        let len = part.bytes.len() as u64;
        let expected = part.shape.iter().product::<usize>() * part.dtype.size();
        if len != expected as u64 {
            return Err(
                Error::shape(format!("{len} bytes, shape says {expected}")).in_tensor(part.name)
            );
        }
        let entry = Entry { dtype: part.dtype, shape: part.shape, offset: 0, len };
        if self.entries.insert(part.name.clone(), entry).is_some() {
            return Err(Error::invalid("two parts of one name").in_tensor(part.name));
        }
        Ok(())
    }
}

impl Plan {
    /// The plan of a file, and its header.
    fn of(
        metadata: &BTreeMap<String, String>,
        produce: &mut Produce<'_>,
    ) -> Result<(Self, Vec<u8>)> {
        let mut plan = Self::default();
        produce(&mut plan)?;
        let header = plan.layout(metadata);
        Ok((plan, header))
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
        order.sort_by(|a, b| b.1.dtype.size().cmp(&a.1.dtype.size()).then_with(|| a.0.cmp(b.0)));
        let mut end = 0;
        for (_, entry) in order {
            entry.offset = end;
            end += entry.len;
        }
        let places = self.entries.iter().map(|(name, entry)| {
            let range = entry.offset..entry.offset + entry.len;
            (name.as_str(), Place { dtype: entry.dtype, shape: &entry.shape, range })
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
    plan: &'a Plan,
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
