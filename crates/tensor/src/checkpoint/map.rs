//! Memory maps; the only unsafe code of this module.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::files::{ByteSource, window};
use crate::bytes::Bytes;
use crate::error::{Error, Result};

/// A read-only memory map of a whole file, which must not be truncated while it is mapped.
#[derive(Debug)]
pub struct MappedFile {
    map: Arc<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io("open the file", path, e))?;
        // SAFETY: the map is read-only and private to this process. As with every memory map, truncating the
        // file while it is mapped ends the process; the public documentation says so.
        let map =
            unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("map the file", path, e))?;
        Ok(Self { map: Arc::new(map) })
    }

    /// All of the file; nothing is copied.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::new(self.map.clone())
    }
}

impl ByteSource for MappedFile {
    fn size(&self) -> u64 {
        self.map.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        Ok(self.bytes().slice(window(self, &range)))
    }

    /// Gives the resident pages back to the operating system; they are read again from the file when touched.
    fn release(&self) {
        #[cfg(unix)]
        if !self.map.is_empty() {
            // SAFETY: the map is a shared, read-only map of a file, so pages dropped here hold nothing that the
            // file does not; a later access faults them in again with the same contents.
            let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}
