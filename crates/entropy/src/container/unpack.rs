//! From a packed file back to the file or folder it was.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tensorpress_tensor::checkpoint::write_atomically;
use tensorpress_tensor::{Error, Result};

use super::paths::{self, Links};
use super::progress::{Progress, Watch, tell};
use super::reader::PackedFile;
use super::walk::{Consumer, walk};
use crate::chunk::CHUNK_BYTES;

/// What tells that a folder of unfinished work was ours.
const MARKER: &str = "tensorpress.unpack";
/// Where the files are meanwhile.
const FILES: &str = "files";

impl PackedFile {
    /// Restores what was packed: the file, or the folder, `to`, which appears under its name only when all of it is
    /// there, checked and on disk. With `force`, a file that is there is replaced, and so is a folder that has no
    /// files but those that are packed.
    ///
    /// A folder is made in `to.partial`, and what an interrupted call left there is removed.
    ///
    /// # Errors
    /// `Exists` if `to` is there and is not to be replaced; `MissingBase`, or `InvalidArgument` for another base;
    /// `Corruption` for damage, naming where; `Io`; `Interrupted`. Nothing is left behind.
    pub fn unpack(&self, to: &Path, force: bool, watch: Option<&mut Watch<'_>>) -> Result<()> {
        self.check_target(to, force)?;
        self.need_base()?;
        let progress = Progress { total: self.unpacked_bytes(), ..Progress::default() };
        let mut out = Out { progress, watch, file: None };
        if self.index().is_folder {
            let partial = with_suffix(to, ".partial");
            prepare(&partial)?;
            let done = self.unpack_folder(to, &partial, &mut out);
            // The error that matters is the first one.
            let _ = fs::remove_dir_all(&partial);
            return done;
        }
        write_atomically(to, &mut |file| {
            let io = |e| Error::io("write the file", to, e);
            out.file = Some((BufWriter::new(file.try_clone().map_err(io)?), to.to_path_buf()));
            self.write_file(0, &mut out)
        })
    }

    fn write_file(&self, number: usize, out: &mut Out<'_, '_>) -> Result<()> {
        walk(self, number, out)?;
        let Some((file, path)) = out.file.take() else { return Ok(()) };
        let file =
            file.into_inner().map_err(|e| Error::io("write the file", &path, e.into_error()))?;
        file.sync_all().map_err(|e| Error::io("sync the file", &path, e))
    }

    fn unpack_folder(&self, to: &Path, partial: &Path, out: &mut Out<'_, '_>) -> Result<()> {
        let files = partial.join(FILES);
        fs::create_dir(&files).map_err(|e| Error::io("create the folder", &files, e))?;
        for (number, file) in self.index().files.iter().enumerate() {
            let path = file.path.split('/').fold(files.clone(), |path, part| path.join(part));
            let parent = path.parent().unwrap_or(&files);
            fs::create_dir_all(parent).map_err(|e| Error::io("create the folder", parent, e))?;
            // Not `create`: names that are one to this file system must not become one file.
            let new =
                File::create_new(&path).map_err(|e| Error::io("create the file", &path, e))?;
            out.file = Some((BufWriter::with_capacity(CHUNK_BYTES, new), path));
            self.write_file(number, out)?;
        }
        let old = with_suffix(to, ".replaced");
        let had = to.exists();
        if had {
            fs::rename(to, &old).map_err(|e| Error::io("move the old folder away", to, e))?;
        }
        fs::rename(&files, to)
            .map_err(|e| Error::io("give the finished folder its name", to, e))?;
        if had {
            fs::remove_dir_all(&old)
                .map_err(|e| Error::io("remove the replaced folder", &old, e))?;
        }
        Ok(())
    }

    /// Whether what is packed may go to `to`.
    fn check_target(&self, to: &Path, force: bool) -> Result<()> {
        if to.file_name().is_none() {
            return Err(Error::invalid("is no name for a new file or folder").in_file(to));
        }
        let Ok(found) = fs::symlink_metadata(to) else { return Ok(()) };
        if !force {
            return Err(Error::exists("exists already").in_file(to));
        }
        if !self.index().is_folder {
            let same = |path: &Path| path.canonicalize().ok();
            return match found.is_file() {
                true if same(to) == same(self.path()) => {
                    Err(Error::invalid("is the packed file itself; write elsewhere").in_file(to))
                }
                true => Ok(()),
                false => Err(Error::invalid("exists and is no regular file").in_file(to)),
            };
        }
        if !found.is_dir() {
            return Err(Error::invalid("exists and is no folder").in_file(to));
        }
        for (name, _) in paths::list(to, Links::Refuse)? {
            if self.file(&name).is_err() {
                let what = format!("holds `{name}`, which is not packed; not replaced");
                return Err(Error::invalid(what).in_file(to));
            }
        }
        let old = with_suffix(to, ".replaced");
        match old.exists() {
            true => Err(Error::invalid("is in the way: an old folder is kept there").in_file(old)),
            false => Ok(()),
        }
    }
}

/// An empty folder for unfinished work.
fn prepare(partial: &Path) -> Result<()> {
    if let Ok(found) = fs::symlink_metadata(partial) {
        let ours = found.is_dir() && partial.join(MARKER).is_file();
        if !ours {
            let what = "is in the way, and is not what an interrupted unpack left: remove it";
            return Err(Error::invalid(what).in_file(partial));
        }
        fs::remove_dir_all(partial)
            .map_err(|e| Error::io("remove the unfinished folder", partial, e))?;
    }
    fs::create_dir(partial).map_err(|e| Error::io("create the folder", partial, e))?;
    let marker = partial.join(MARKER);
    fs::write(&marker, "unfinished: may be removed\n")
        .map_err(|e| Error::io("write the file", &marker, e))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// The file that is being written.
struct Out<'a, 'w> {
    progress: Progress,
    watch: Option<&'a mut Watch<'w>>,
    file: Option<(BufWriter<File>, PathBuf)>,
}

impl Consumer for Out<'_, '_> {
    fn bytes(&mut self, bytes: &[u8], stored: u64) -> Result<()> {
        if let Some((file, path)) = &mut self.file {
            file.write_all(bytes).map_err(|e| Error::io("write the file", path, e))?;
        }
        self.progress.done += bytes.len() as u64;
        self.progress.stored += stored;
        tell(&mut self.watch, self.progress)
    }

    fn damage(&mut self, error: Error) -> Result<()> {
        Err(error)
    }
}
