//! Packed files in the place of files and folders.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{ByteSource, Files};
use tensorpress_tensor::{Bytes, Result};

use super::format::{FileEntry, Segment};
use super::reader::PackedFile;

/// A file inside a packed one.
#[derive(Debug, Clone)]
pub struct Member {
    packed: PackedFile,
    number: usize,
}

impl Member {
    pub(super) fn new(packed: PackedFile, number: usize) -> Self {
        Self { packed, number }
    }

    fn entry(&self) -> &FileEntry {
        &self.packed.index().files[self.number]
    }
}

impl ByteSource for Member {
    fn size(&self) -> u64 {
        self.entry().len
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        assert!(range.start <= range.end && range.end <= self.size(), "range out of bounds");
        let first = self.entry().segments.start;
        let segments = &self.packed.index().segments[self.entry().segments.clone()];
        let end = |s: &Segment| s.offset + s.len;
        let from = segments.partition_point(|s| end(s) <= range.start);
        let mut joined = Vec::new();
        for (i, segment) in segments.iter().enumerate().skip(from) {
            if segment.offset >= range.end {
                break;
            }
            let part = range.start.max(segment.offset)..range.end.min(end(segment));
            let inside = part.start - segment.offset..part.end - segment.offset;
            let bytes = self.packed.range(first + i, inside)?;
            if part == range {
                return Ok(bytes);
            }
            joined.extend_from_slice(&bytes);
        }
        Ok(joined.into())
    }

    fn check_unmoved(&self) -> Result<()> {
        self.packed.check_unmoved()
    }
}

/// The files of the packed folder, or the packed file.
impl Files for PackedFile {
    fn names(&self) -> Result<Vec<String>> {
        let paths = self.index().files.iter().map(|file| &file.path);
        Ok(paths.filter(|path| !path.contains('/')).cloned().collect())
    }

    fn below(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let wanted = |path: &&String| {
            let folders = path.match_indices('/').map(|(at, _)| &path[..at]);
            folders.chain([path.as_str()]).all(wanted)
        };
        Ok(self.index().files.iter().map(|file| &file.path).filter(wanted).cloned().collect())
    }

    fn contains(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>> {
        Ok(Arc::new(self.file(name)?))
    }

    fn path(&self, name: &str) -> PathBuf {
        PackedFile::path(self).join(name)
    }
}
