//! Files below a folder, through symbolic links.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The files below a folder, sorted: their paths relative to it, joined by `/`, and where they are. `wanted` is asked of
/// each file and folder, by that path, before it is looked into. Symbolic links are followed, those to folders too.
///
/// # Errors
/// `Io`; `Unsupported`, naming the path, for names that are no UTF-8, links that lead nowhere or back to a folder they
/// lie in, and what is neither file nor folder.
pub fn files_below(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let real = folder.canonicalize().map_err(|e| Error::io("list the folder", folder, e))?;
    let mut walk = Walk { wanted, found: Vec::new(), within: vec![real] };
    walk.list(folder, "")?;
    walk.found.sort();
    Ok(walk.found)
}

struct Walk<'a> {
    wanted: &'a dyn Fn(&str) -> bool,
    found: Vec<(String, PathBuf)>,
    /// The folders on the way here, without links.
    within: Vec<PathBuf>,
}

impl Walk<'_> {
    fn list(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let fail = |e| Error::io("list the folder", folder, e);
        for entry in fs::read_dir(folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let path = entry.path();
            let refuse = |what: &str| Err(Error::unsupported(what).in_file(&path));
            let name = entry.file_name();
            let Some(name) = name.to_str() else { return refuse("its name is no UTF-8") };
            let relative = format!("{prefix}{name}");
            if !(self.wanted)(&relative) {
                continue;
            }
            let mut kind = entry.file_type().map_err(fail)?;
            let is_link = kind.is_symlink();
            if is_link {
                let Ok(target) = fs::metadata(&path) else {
                    return refuse("is a symbolic link that leads nowhere");
                };
                kind = target.file_type();
            }
            if kind.is_file() {
                self.found.push((relative, path));
            } else if kind.is_dir() {
                let real = match (is_link, self.within.last()) {
                    (false, Some(parent)) => parent.join(name),
                    _ => path.canonicalize().map_err(fail)?,
                };
                if self.within.contains(&real) {
                    return refuse("is a symbolic link to a folder that it lies in");
                }
                self.within.push(real);
                self.list(&path, &format!("{relative}/"))?;
                self.within.pop();
            } else {
                return refuse("is neither a file nor a folder");
            }
        }
        Ok(())
    }
}

/// Whether a relative path stays inside the folder it is joined to, on any system: components joined by `/`, none of
/// them empty, `.` or `..`, without NUL and backslashes, and not beginning with a drive.
#[must_use]
pub fn stays_inside(path: &str) -> bool {
    let drive = |part: &str| {
        let bytes = part.as_bytes();
        bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':'
    };
    let leaves = |part: &str| {
        matches!(part, "" | "." | "..")
            || part.contains(['\\', '\0'])
            || drive(part)
            || (cfg!(windows) && part.contains(':'))
    };
    !path.split('/').any(leaves)
}
