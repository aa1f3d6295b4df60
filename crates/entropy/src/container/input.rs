//! What is packed, and where it may go.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tensorpress_tensor::checkpoint::{ByteSource, FileReader, refuse_mount_point};
use tensorpress_tensor::{Bytes, Error, Result};

use super::paths;

/// A file that is to be packed.
#[derive(Debug)]
pub(super) enum Input {
    Disk(PathBuf, Seen),
    Memory(String, Bytes),
}

/// What a file was when it was listed: another file of its name, or another content, looks otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    len: u64,
    modified: Option<SystemTime>,
    /// Device and number, where files have them.
    file: (u64, u64),
}

impl Seen {
    fn at(path: &Path) -> Result<Self> {
        let found = fs::metadata(path).map_err(|e| Error::io("look at the file", path, e))?;
        #[cfg(unix)]
        let file = {
            use std::os::unix::fs::MetadataExt;
            (found.dev(), found.ino())
        };
        #[cfg(not(unix))]
        let file = (0, 0);
        Ok(Self { len: found.len(), modified: found.modified().ok(), file })
    }
}

impl Input {
    fn disk(path: PathBuf) -> Result<Self> {
        let seen = Seen::at(&path)?;
        Ok(Self::Disk(path, seen))
    }

    pub(super) fn open(&self) -> Result<Arc<dyn ByteSource>> {
        Ok(match self {
            Self::Memory(_, bytes) => Arc::new(bytes.clone()),
            Self::Disk(path, seen) => {
                let file = FileReader::open(path)?;
                if file.size() != seen.len {
                    return Err(Error::moved(path));
                }
                Arc::new(file)
            }
        })
    }

    /// What errors call it.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Disk(path, _) => path,
            Self::Memory(name, _) => Path::new(name),
        }
    }

    fn seen(&self) -> Option<Seen> {
        match self {
            Self::Disk(_, seen) => Some(*seen),
            Self::Memory(..) => None,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Disk(_, seen) => seen.len,
            Self::Memory(_, bytes) => bytes.size(),
        }
    }
}

/// The files to pack, sorted, and whether they are those of a folder.
pub(super) fn inputs(from: &Path) -> Result<(Vec<(String, Input)>, bool)> {
    let found = fs::metadata(from).map_err(|e| Error::io("look at the file", from, e))?;
    if found.is_dir() {
        let files = paths::list(from)?.into_iter();
        let disk = |(relative, path)| Ok((relative, Input::disk(path)?));
        return Ok((files.map(disk).collect::<Result<_>>()?, true));
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
    Ok((vec![(name.to_owned(), Input::disk(from.to_path_buf())?)], false))
}

/// That the files are still those that were listed.
pub(super) fn check_unmoved(from: &Path, listed: &[(String, Input)]) -> Result<()> {
    let (now, _) = inputs(from)?;
    let alike = |(was, is): &(&(String, Input), &(String, Input))| {
        was.0 == is.0 && was.1.seen() == is.1.seen()
    };
    let same = listed.iter().zip(&now).take_while(alike).count();
    // Of two sorted lists that go apart, the first name is the one that came, went or changed.
    match [listed.get(same), now.get(same)].into_iter().flatten().min_by_key(|(name, _)| name) {
        Some((_, input)) => Err(Error::moved(input.path())),
        None => Ok(()),
    }
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
    refuse_mount_point(to)?;
    match fs::symlink_metadata(to) {
        Err(_) => Ok(()),
        Ok(_) if !force => Err(Error::exists("exists already").in_file(to)),
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(Error::invalid("exists and is no regular file").in_file(to)),
    }
}
