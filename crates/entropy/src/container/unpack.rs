//! From a packed file back to the file or folder it was.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tensorpress_tensor::checkpoint::{
    Unfinished, find_foreign, refuse_mount_point, write_atomically, write_new,
};
use tensorpress_tensor::{Error, Result};

use super::progress::{Progress, Watch, tell};
use super::reader::PackedFile;
use super::walk::{Consumer, walk};
use crate::chunk::CHUNK_BYTES;

impl PackedFile {
    /// Restores what was packed: the file, or the folder, `to`, which appears under its name only when all of it is
    /// there, checked and on disk. With `force`, a file that is there is replaced, and so is a folder that has no
    /// files but those that are packed. Of several callers one wins whole; the others replace it only if forced.
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
            let unfinished = Unfinished::beside(to)?;
            self.write_folder(&unfinished.files(), &mut out)?;
            let names = self.index().files.iter().map(|file| file.path.clone());
            let replaced: Option<Vec<String>> = force.then(|| names.collect());
            return unfinished.publish(to, replaced.as_deref());
        }
        let publish = if force { write_atomically } else { write_new };
        publish(to, &mut |file| {
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

    fn write_folder(&self, files: &Path, out: &mut Out<'_, '_>) -> Result<()> {
        for (number, file) in self.index().files.iter().enumerate() {
            let path = file.path.split('/').fold(files.to_path_buf(), |path, part| path.join(part));
            let parent = path.parent().unwrap_or(files);
            fs::create_dir_all(parent).map_err(|e| Error::io("create the folder", parent, e))?;
            // Not `create`: names that are one to this file system must not become one file.
            let new =
                File::create_new(&path).map_err(|e| Error::io("create the file", &path, e))?;
            out.file = Some((BufWriter::with_capacity(CHUNK_BYTES, new), path));
            self.write_file(number, out)?;
        }
        Ok(())
    }

    /// Whether what is packed may go to `to`.
    fn check_target(&self, to: &Path, force: bool) -> Result<()> {
        if to.file_name().is_none() {
            return Err(Error::invalid("is no name for a new file or folder").in_file(to));
        }
        let Ok(found) = fs::symlink_metadata(to) else { return Ok(()) };
        refuse_mount_point(to)?;
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
        match find_foreign(to, &mut |name| Ok(self.file(name).is_ok()))? {
            Some(name) => {
                let what = format!("holds `{name}`, which is not packed; not replaced");
                Err(Error::invalid(what).in_file(to))
            }
            None => Ok(()),
        }
    }
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
