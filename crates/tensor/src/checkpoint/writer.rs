use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

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

/// Writes a safetensors file that appears under its name only when it is complete and on disk.
///
/// `produce` hands over every part; it is called twice (sizes first, then bytes) and must hand over the same.
/// Returns the file's length.
///
/// # Errors
/// Those of `produce`; `Io`; `InvalidArgument` if two parts have one name. Nothing is left behind.
pub fn write_shard(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    produce: &mut dyn FnMut(&mut dyn PartSink) -> Result<()>,
) -> Result<u64> {
    let mut plan = Plan::default();
    produce(&mut plan)?;
    let (header, total) = plan.layout(metadata);
    write_atomically(path, &mut |file| {
        let io = |e| Error::io("write the file", path, e);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_all(header.as_bytes()).map_err(io)?;
        let start = 8 + header.len() as u64;
        let mut writer = Writer { file, path, start, plan: &plan, seen: 0 };
        produce(&mut writer)?;
        let seen = writer.seen;
        if seen != plan.entries.len() {
            return Err(Error::invalid(format!("{seen} of {} parts", plan.entries.len())));
        }
        file.seek(SeekFrom::Start(start + total)).map_err(io)?;
        Ok(())
    })?;
    Ok(8 + header.len() as u64 + total)
}

/// Writes a file through a temporary one in the same folder, synced and then renamed over `path`.
///
/// # Errors
/// `Io`, or those of `write`. Nothing is left behind.
pub fn write_atomically(path: &Path, write: &mut dyn FnMut(&mut File) -> Result<()>) -> Result<()> {
    let io = |doing: &'static str| move |e| Error::io(doing, path, e);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let result = (|| {
        let mut file = File::create(&temporary).map_err(io("create the file"))?;
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

#[derive(Default)]
struct Plan {
    entries: BTreeMap<String, Entry>,
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
    /// Places wide elements first, so that every tensor is aligned to its element; returns header and data size.
    fn layout(&mut self, metadata: &BTreeMap<String, String>) -> (String, u64) {
        let mut order: Vec<(usize, String)> =
            self.entries.iter().map(|(name, e)| (e.dtype.size(), name.clone())).collect();
        order.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let mut offset = 0;
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".into(), serde_json::json!(metadata));
        }
        for (_, name) in order {
            let entry = self.entries.get_mut(&name).expect("from the entries");
            entry.offset = offset;
            offset += entry.len;
            let json = serde_json::json!({
                "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [entry.offset, offset],
            });
            header.insert(name, json);
        }
        let mut text = serde_json::Value::Object(header).to_string();
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        (text, offset)
    }
}

struct Writer<'a> {
    file: &'a mut File,
    path: &'a Path,
    start: u64,
    plan: &'a Plan,
    seen: usize,
}

impl PartSink for Writer<'_> {
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
