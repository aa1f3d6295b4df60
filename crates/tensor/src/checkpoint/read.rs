//! Files that are read, not mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::files::{ByteSource, Unmoved, window};
use crate::bytes::Bytes;
use crate::error::{Error, Result};

/// A file whose ranges are read when asked for: nothing of it stays in memory, and a file that is cut meanwhile is an
/// error.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    path: PathBuf,
    was: Unmoved,
    /// Where there are no positioned reads.
    #[cfg(not(any(unix, windows)))]
    turn: std::sync::Mutex<()>,
}

impl FileReader {
    /// Opens a file.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|e| Error::io("open the file", &path, e))?;
        let was = Unmoved::of(&file, &path)?;
        Ok(Self {
            file,
            path,
            was,
            #[cfg(not(any(unix, windows)))]
            turn: std::sync::Mutex::default(),
        })
    }

    #[cfg(unix)]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, at)
    }

    #[cfg(windows)]
    fn read_at(&self, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(&self.file, bytes, at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    bytes = &mut bytes[n..];
                    at += n as u64;
                }
            }
        }
        Ok(())
    }

    #[cfg(not(any(unix, windows)))]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let _turn = self.turn.lock();
        (&self.file).seek(SeekFrom::Start(at))?;
        (&self.file).read_exact(bytes)
    }
}

impl ByteSource for FileReader {
    fn size(&self) -> u64 {
        self.was.len()
    }

    /// `Io` if the file ends before the range does: it was cut since it was opened.
    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let mut bytes = vec![0; window(self, &range).len()];
        self.read_at(&mut bytes, range.start).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::moved(&self.path),
            _ => Error::io("read the file", &self.path, e),
        })?;
        Ok(bytes.into())
    }

    fn check_unmoved(&self) -> Result<()> {
        self.was.check(&self.file, &self.path)
    }
}
