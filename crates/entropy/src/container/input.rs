//! What is packed, and where it may go.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{ByteSource, MappedFile};
use tensorpress_tensor::{Bytes, Error, Result};

use super::paths::{self, Links};

/// A file that is to be packed.
pub(super) enum Input {
    Disk(PathBuf),
    Memory(Bytes),
}

impl Input {
    pub(super) fn open(&self) -> Result<Arc<dyn ByteSource>> {
        Ok(match self {
            Self::Disk(path) => Arc::new(MappedFile::open(path)?),
            Self::Memory(bytes) => Arc::new(bytes.clone()),
        })
    }

    /// What tells whether a file was changed.
    pub(super) fn metadata(&self) -> Result<Option<Metadata>> {
        match self {
            Self::Disk(path) => {
                fs::metadata(path).map(Some).map_err(|e| Error::io("look at the file", path, e))
            }
            Self::Memory(_) => Ok(None),
        }
    }

    pub(super) fn size(&self) -> Result<u64> {
        match self {
            Self::Disk(_) => Ok(self.metadata()?.map_or(0, |m| m.len())),
            Self::Memory(bytes) => Ok(bytes.size()),
        }
    }
}

/// The files to pack, sorted, and whether they are those of a folder.
pub(super) fn inputs(from: &Path) -> Result<(Vec<(String, Input)>, bool)> {
    let found = fs::metadata(from).map_err(|e| Error::io("look at the file", from, e))?;
    if found.is_dir() {
        let files = paths::list(from, Links::Refuse)?;
        let disk = |(relative, path)| (relative, Input::Disk(path));
        return Ok((files.into_iter().map(disk).collect(), true));
    }
    if !found.is_file() {
        return Err(Error::unsupported("is neither a file nor a folder").in_file(from));
    }
    let name = from.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Error::unsupported("its name is no UTF-8").in_file(from))?;
    paths::check([name]).map_err(|_| {
        Error::unsupported("its name has a meaning on other systems and cannot be stored")
            .in_file(from)
    })?;
    Ok((vec![(name.to_owned(), Input::Disk(from.to_path_buf()))], false))
}

/// Whether the packed file may go to `to`.
pub(super) fn check_target(from: &Path, to: &Path, force: bool) -> Result<()> {
    if to.file_name().is_none() {
        return Err(Error::invalid("is no name for a new file").in_file(to));
    }
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let (Ok(from), Ok(folder)) = (from.canonicalize(), folder.canonicalize()) {
        let to = folder.join(to.file_name().unwrap_or_default());
        if to == from || (from.is_dir() && to.starts_with(&from)) {
            let what = "is what is packed, or lies in it; write elsewhere";
            return Err(Error::invalid(what).in_file(to));
        }
    }
    match fs::symlink_metadata(to) {
        Err(_) => Ok(()),
        Ok(_) if !force => Err(Error::exists("exists already").in_file(to)),
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(Error::invalid("exists and is no regular file").in_file(to)),
    }
}
