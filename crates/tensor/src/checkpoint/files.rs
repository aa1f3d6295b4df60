//! Files wherever they are: on disk, in memory, or inside another file.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::map::MappedFile;
use super::walk::files_below;
use crate::bytes::Bytes;
use crate::error::{Error, Result};

/// The bytes of a file, wherever they come from.
pub trait ByteSource: Debug + Send + Sync {
    /// Length in bytes. (Not `len`, which slices have as well.)
    fn size(&self) -> u64;

    /// Length of the files that it stands for: its own, unless it is a view of others.
    fn stored(&self) -> u64 {
        self.size()
    }

    /// The bytes of a range: a view where they are in memory, made on demand where they are not.
    ///
    /// # Errors
    /// `Corruption` if the bytes have to be decoded and cannot be, `Io`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    fn read(&self, range: Range<u64>) -> Result<Bytes>;

    /// Gives memory that can be had again back to the operating system; bytes handed out stay valid.
    fn release(&self) {}

    /// That nobody has written to it since it was opened: what was read until now is what was there.
    ///
    /// # Errors
    /// `Io`, naming the file, if somebody has.
    fn check_unmoved(&self) -> Result<()> {
        Ok(())
    }
}

/// What a file was when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unmoved {
    len: u64,
    modified: Option<SystemTime>,
}

impl Unmoved {
    pub(super) fn of(file: &File, path: &Path) -> Result<Self> {
        let found = file.metadata().map_err(|e| Error::io("look at the file", path, e))?;
        if found.is_dir() {
            let e = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(Error::io("read the file", path, e));
        }
        Ok(Self { len: found.len(), modified: found.modified().ok() })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// That it still is what it was.
    pub(super) fn check(&self, file: &File, path: &Path) -> Result<()> {
        match Self::of(file, path)? == *self {
            true => Ok(()),
            false => Err(Error::moved(path)),
        }
    }
}

/// A range of bytes as indices.
///
/// # Panics
/// If it is out of bounds.
pub(super) fn window(source: &dyn ByteSource, range: &Range<u64>) -> Range<usize> {
    assert!(range.start <= range.end && range.end <= source.size(), "range out of bounds");
    range.start as usize..range.end as usize
}

impl ByteSource for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        Ok(self.slice(window(self, &range)))
    }
}

/// The files of a folder. A name may be a path, joined by `/`, of a file in a folder in it.
pub trait Files: Debug + Send + Sync {
    /// Names of the files, sorted, without those of folders in it.
    ///
    /// # Errors
    /// `Io`.
    fn names(&self) -> Result<Vec<String>>;

    /// Paths of the files and of those in folders in it, joined by `/`, sorted. `wanted` is asked of each file and folder,
    /// by its path, before it is looked into. Without folders (the default), those of [`Files::names`].
    ///
    /// # Errors
    /// `Io`; `Unsupported`, naming the path, for what cannot be listed: see [`files_below`](super::files_below).
    fn below(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter(|name| wanted(name)).collect())
    }

    /// Whether there is a file of this name.
    fn contains(&self, name: &str) -> bool;

    /// Opens a file, to read parts of it.
    ///
    /// # Errors
    /// `Io` or `InsufficientData` if it cannot be had; names the file.
    fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>>;

    /// All bytes of a file, for small ones.
    ///
    /// # Errors
    /// As [`Files::open`] and [`ByteSource::read`]; names the file.
    fn read(&self, name: &str) -> Result<Bytes> {
        let file = self.open(name)?;
        file.read(0..file.size()).map_err(|e| e.in_file(self.path(name)))
    }

    /// What errors call a file.
    fn path(&self, name: &str) -> PathBuf;
}

/// A folder on disk.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at a path, which need not be there yet.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_path_buf() }
    }
}

impl Files for Folder {
    /// Names that are no UTF-8 are left out.
    fn names(&self) -> Result<Vec<String>> {
        let fail = |e| Error::io("list the folder", &self.path, e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            // Through symbolic links, of which the hub's cache consists.
            if entry.path().is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    fn below(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        Ok(files_below(&self.path, wanted)?.into_iter().map(|(path, _)| path).collect())
    }

    fn contains(&self, name: &str) -> bool {
        self.path(name).is_file()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>> {
        Ok(Arc::new(MappedFile::open(self.path(name))?))
    }

    fn read(&self, name: &str) -> Result<Bytes> {
        let path = self.path(name);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read the file", &path, e))?;
        Ok(bytes.into())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}
