//! Files and folders that get their names whole or not at all, and take nothing from anybody.
//!
//! What is unfinished lies beside its target as `NAME.tensorpress-PID-N.tmp`, a name that no other writer of this or
//! another process has, and is locked as long as somebody works on it. What a killed writer left goes with the next
//! writer to the same target.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::exchange::exchange;
use crate::error::{Error, Result};

/// Writes a file through a temporary one in the same folder, synced and then renamed over `path`. Of several writers the
/// last one wins whole.
///
/// # Errors
/// `Io`, or those of `write`. Nothing is left behind.
pub fn write_atomically(path: &Path, write: &mut dyn FnMut(&mut File) -> Result<()>) -> Result<()> {
    publish_file(path, write, &|temporary| fs::rename(temporary, path))
}

/// [`write_atomically`] that replaces nothing: of several writers the first one wins.
///
/// # Errors
/// As [`write_atomically`]; `Exists` if there is something of this name, also if it came while the file was written.
pub fn write_new(path: &Path, write: &mut dyn FnMut(&mut File) -> Result<()>) -> Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(exists(path));
    }
    publish_file(path, write, &|temporary| name_free(temporary, path))
}

fn exists(path: &Path) -> Error {
    Error::exists("exists already").in_file(path)
}

fn publish_file(
    path: &Path,
    write: &mut dyn FnMut(&mut File) -> Result<()>,
    name: &dyn Fn(&Path) -> io::Result<()>,
) -> Result<()> {
    let (temporary, mut file) = claim(path, &|temporary| File::create_new(temporary))
        .map_err(|e| Error::io("create the file", path, e))?;
    let result = write(&mut file).and_then(|()| {
        file.sync_all().map_err(|e| Error::io("sync the file", path, e))?;
        name(&temporary).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => exists(path),
            _ => Error::io("rename the finished file", path, e),
        })
    });
    match result {
        Ok(()) => sync_folder(path),
        // The error that matters is the first one.
        Err(_) => drop(fs::remove_file(&temporary)),
    }
    result
}

/// Gives a finished file its name: syncs it, and replaces a file of that name only where that is asked for.
///
/// # Errors
/// `Exists` if there is something that is not to be replaced; `Io`.
pub fn name_file(from: &Path, to: &Path, replace: bool) -> Result<()> {
    let file = File::open(from).and_then(|file| file.sync_all());
    file.map_err(|e| Error::io("sync the file", from, e))?;
    let named = if replace { fs::rename(from, to) } else { name_free(from, to) };
    named.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => exists(to),
        _ => Error::io("rename the finished file", to, e),
    })?;
    sync_folder(to);
    Ok(())
}

/// Renames a file, and replaces nothing.
fn name_free(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => {
            // The file has its name, whatever becomes of the other one.
            let _ = fs::remove_file(from);
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        // A file system without links: between the look and the rename somebody may come.
        Err(_) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// A folder of unfinished work beside its target. Dropped, it goes with all that is in it.
#[derive(Debug)]
pub struct Unfinished {
    folder: PathBuf,
    /// Locked as long as this is alive.
    _lock: File,
    /// What is in it is not to go.
    keep: bool,
}

/// What says that somebody is at work in a folder, or was.
const LOCK: &str = "tensorpress.lock";
/// Where the files are meanwhile, and what they replaced afterwards.
const FILES: &str = "files";
/// The list of what may be removed of `files`, from the moment on that a replaced folder may lie there.
const REPLACED: &str = "tensorpress.replaced.json";

impl Unfinished {
    /// An empty folder for what shall become `target`.
    ///
    /// # Errors
    /// `Io`.
    pub fn beside(target: &Path) -> Result<Self> {
        let make = |folder: &Path| {
            fs::create_dir(folder)?;
            File::create_new(folder.join(LOCK))
        };
        let (folder, lock) =
            claim(target, &make).map_err(|e| Error::io("create the folder", target, e))?;
        let made = Self { folder, _lock: lock, keep: false };
        let files = made.files();
        fs::create_dir(&files).map_err(|e| Error::io("create the folder", &files, e))?;
        Ok(made)
    }

    /// Where its files go.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// Gives the files the name `target`. Where `replaced` lists files, relative to it, the folder of that name goes, if
    /// it holds nothing else; without it, nothing is replaced.
    ///
    /// # Errors
    /// As [`name_folder`].
    pub fn publish(mut self, target: &Path, replaced: Option<&[String]>) -> Result<()> {
        if let Some(list) = replaced {
            let (path, text) = (self.folder.join(REPLACED), serde_json::to_vec(list));
            let text = text.map_err(io::Error::from).and_then(|text| fs::write(&path, text));
            text.map_err(|e| Error::io("write the file", &path, e))?;
        }
        let done = name_folder(&self.files(), target, replaced);
        self.keep = matches!(&done, Err(e) if e.file() == Some(&self.files()));
        done
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Removes a folder of unfinished work; of what it has replaced, only what is listed.
fn remove_unfinished(folder: &Path) {
    let listed = match fs::read(folder.join(REPLACED)) {
        Err(e) => e.kind() == io::ErrorKind::NotFound,
        Ok(text) => serde_json::from_slice::<Vec<String>>(&text)
            .is_ok_and(|list| remove_listed(&folder.join(FILES), &list).is_ok()),
    };
    if listed {
        let _ = fs::remove_dir_all(folder);
    }
}

/// Gives the finished folder `from` the name `to`, beside it. Without `replaced` nothing may be there. With it, the
/// folder that is there goes, of which `replaced` lists the files, relative to it: the two exchange their names in one
/// step where the system can, so that there is a whole one at any moment. What is not listed is never removed.
///
/// # Errors
/// `Exists` if there is something that is not to be replaced, or if the old folder holds more than the list: it is kept
/// under the name of the error's file then, and the new one stands. `Io`.
pub fn name_folder(from: &Path, to: &Path, replaced: Option<&[String]>) -> Result<()> {
    sync_tree(from);
    let fail = |e: io::Error| Error::io("give the finished folder its name", to, e);
    let Some(list) = replaced.filter(|_| fs::symlink_metadata(to).is_ok()) else {
        if fs::symlink_metadata(to).is_ok_and(|found| !found.is_dir() || !is_empty(to)) {
            return Err(exists(to));
        }
        // Replaces an empty folder at most.
        fs::rename(from, to).map_err(fail)?;
        sync_folder(to);
        return Ok(());
    };
    let old = if exchange(from, to).map_err(fail)? {
        from.to_path_buf()
    } else {
        let old = free_name(to);
        fs::rename(to, &old).map_err(|e| Error::io("move the old folder away", to, e))?;
        if let Err(e) = fs::rename(from, to) {
            let _ = fs::rename(&old, to);
            return Err(fail(e));
        }
        old
    };
    sync_folder(to);
    remove_listed(&old, list)
}

/// Removes a folder that holds these files, given relative to it, and nothing else.
///
/// # Errors
/// `Exists` if there is something else, which stays; `Io`.
pub fn remove_listed(folder: &Path, list: &[String]) -> Result<()> {
    remove_files(folder, list)?;
    match fs::remove_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let what = "holds what is not ours, so the replaced folder is kept there";
            Err(Error::exists(what).in_file(folder))
        }
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove the replaced folder", folder, e))
        }
        _ => Ok(()),
    }
}

/// Removes files, given relative to a folder, in this order, and the folders in it that they leave empty.
///
/// # Errors
/// `InvalidArgument`, before anything goes, for a path that leads out of the folder; `Io`.
pub fn remove_files(folder: &Path, list: &[String]) -> Result<()> {
    if let Some(name) = list.iter().find(|name| leads_out(name)) {
        let what = format!("a list of its files names `{name}`, which leads out of it");
        return Err(Error::invalid(what).in_file(folder));
    }
    let mut inner: Vec<PathBuf> = Vec::new();
    for name in list {
        let path = folder.join(name);
        let parents = || path.ancestors().skip(1).take_while(|parent| *parent != folder);
        // What lies behind a link is not in the folder.
        let is_link =
            |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        if parents().any(is_link) {
            continue;
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove the file", &path, e));
            }
            _ => {}
        }
        inner.extend(parents().map(Path::to_path_buf));
    }
    inner.sort();
    inner.dedup();
    // Deepest first; what is not empty holds what is not listed.
    inner.iter().rev().for_each(|inner| drop(fs::remove_dir(inner)));
    Ok(())
}

fn leads_out(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_none() || parts.any(|part| !matches!(part, Component::Normal(_)))
}

/// The first thing below a folder that is not ours: a file that `ours` says so of, given its path relative to the folder;
/// anything that is neither file nor folder; a folder without files in it.
///
/// # Errors
/// `Io`; those of `ours`.
pub fn find_foreign(
    folder: &Path,
    ours: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<Option<String>> {
    foreign_below(folder, "", ours)
}

fn foreign_below(
    folder: &Path,
    prefix: &str,
    ours: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<Option<String>> {
    let fail = |e| Error::io("list the folder", folder, e);
    let mut entries: Vec<_> =
        fs::read_dir(folder).map_err(fail)?.collect::<io::Result<_>>().map_err(fail)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let relative = format!("{prefix}{}", name.to_string_lossy());
        let kind = entry.file_type().map_err(fail)?;
        let foreign = if kind.is_dir() {
            if is_empty(&entry.path()) {
                return Ok(Some(relative));
            }
            foreign_below(&entry.path(), &format!("{relative}/"), ours)?
        } else if kind.is_file() && name.to_str().is_some() && ours(&relative)? {
            None
        } else {
            Some(relative)
        };
        if foreign.is_some() {
            return Ok(foreign);
        }
    }
    Ok(None)
}

/// `InvalidArgument` if `path` is a mount point: nothing can be renamed to it.
///
/// # Errors
/// As said.
pub fn refuse_mount_point(path: &Path) -> Result<()> {
    if is_mount_point(path) {
        let what = "is a mount point, which cannot be replaced: name something in it";
        return Err(Error::invalid(what).in_file(path));
    }
    Ok(())
}

#[cfg(unix)]
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(found), Ok(real)) = (fs::symlink_metadata(path), path.canonicalize()) else {
        return false;
    };
    if found.is_symlink() {
        return false;
    }
    // A folder mounted onto another of the same file system has the same device, and a file of an overlay has another
    // than its folder: where the system lists mounts, the list says. Octal escapes stand for blanks.
    if let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") {
        let escapes = [("\\", "\\134"), (" ", "\\040"), ("\t", "\\011"), ("\n", "\\012")];
        let real = real.to_string_lossy().into_owned();
        let real = escapes.iter().fold(real, |text, (raw, escape)| text.replace(raw, escape));
        return mounts.lines().any(|line| line.split(' ').nth(4) == Some(real.as_str()));
    }
    let parent = real.parent().and_then(|parent| fs::metadata(parent).ok());
    parent.is_none_or(|parent| parent.dev() != found.dev())
}

#[cfg(not(unix))]
fn is_mount_point(_: &Path) -> bool {
    false
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut listing| listing.next().is_none())
}

/// The folder that a path lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes names in the folder of `path` durable, where the system can.
fn sync_folder(path: &Path) {
    if let Ok(folder) = File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
}

/// Makes the names below a folder durable, where the system can.
fn sync_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_tree(&entry.path());
        }
    }
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

const TAG: &str = ".tensorpress-";
const END: &str = ".tmp";

/// What the names of temporary things for `path` begin with. Names of files have at most 255 bytes.
fn start(path: &Path) -> String {
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let fits = (0..=200.min(name.len())).rev().find(|n| name.is_char_boundary(*n));
    name.truncate(fits.unwrap_or(0));
    name + TAG
}

/// The next name for something temporary.
fn next_name(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}{}-{number}{END}", start(path), std::process::id());
    folder_of(path).join(OsString::from(name))
}

/// A temporary name that nothing has.
fn free_name(path: &Path) -> PathBuf {
    loop {
        let name = next_name(path);
        if fs::symlink_metadata(&name).is_err() {
            return name;
        }
    }
}

/// Whether a file name is one that unfinished work has, for whatever target.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    let number = name.rsplit_once(TAG).and_then(|(_, rest)| rest.strip_suffix(END));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
}

/// Makes something temporary for `path`, and locks the file that says so.
fn claim(path: &Path, make: &dyn Fn(&Path) -> io::Result<File>) -> io::Result<(PathBuf, File)> {
    remove_leftovers(path);
    for last in (0..100).rev() {
        let temporary = next_name(path);
        let file = match make(&temporary) {
            Ok(file) => file,
            // Left by a process of the same number, or taken for a leftover between two steps.
            Err(e) if last > 0 && e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) if last > 0 && e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        // Another process that looks for leftovers may hold it, or have removed it. Some file systems have no locks;
        // there, nobody removes anything.
        let held = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if !held && fs::symlink_metadata(&temporary).is_ok() {
            return Ok((temporary, file));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Removes temporary files and folders for `path` that nobody works on any more.
fn remove_leftovers(path: &Path) {
    let start = start(path);
    for entry in fs::read_dir(folder_of(path)).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if !found.starts_with(&start) || !is_temporary(&found) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let lock = if is_folder { entry.path().join(LOCK) } else { entry.path() };
        match File::open(lock).map(|file| file.try_lock().map(|()| file)) {
            Ok(Ok(_held)) if is_folder => remove_unfinished(&entry.path()),
            Ok(Ok(_held)) => drop(fs::remove_file(entry.path())),
            // Killed between two steps; nothing but an empty folder goes.
            Err(e) if is_folder && e.kind() == io::ErrorKind::NotFound => {
                drop(fs::remove_dir(entry.path()));
            }
            _ => {}
        }
    }
}
