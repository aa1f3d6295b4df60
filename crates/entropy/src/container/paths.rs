//! Which relative paths a container may hold, and how a folder is listed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tensorpress_tensor::{Error, Result};

/// Whether a relative path stays inside the folder it is unpacked to, on any system: components joined by `/`, none
/// of them empty, `.` or `..`, without NUL and backslashes, and not beginning with a drive.
fn is_safe(path: &str) -> bool {
    let drive = |part: &str| {
        let bytes = part.as_bytes();
        bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':'
    };
    let unsafe_part = |part: &str| {
        matches!(part, "" | "." | "..")
            || part.contains(['\\', '\0'])
            || drive(part)
            || (cfg!(windows) && part.contains(':'))
    };
    !path.split('/').any(unsafe_part)
}

/// Checks the paths of a container: safe, sorted, none twice, none a folder of another.
///
/// # Errors
/// `Corruption`, naming the path.
pub(super) fn check<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut last: Option<&str> = None;
    for path in paths {
        if !is_safe(path) {
            return Err(Error::corruption(format!("index: unsafe path {path:?}")));
        }
        if last.is_some_and(|last| last >= path) {
            return Err(Error::corruption(format!("index: path {path:?} is out of order")));
        }
        last = Some(path);
        let folders = path.match_indices('/').map(|(at, _)| &path[..at]);
        for folder in folders {
            // Sorted, so a file that is a folder of this one came before it.
            if seen.contains(folder) {
                return Err(Error::corruption(format!(
                    "index: path {folder:?} is a file and a folder"
                )));
            }
        }
        seen.insert(path);
    }
    Ok(())
}

/// What to do with symbolic links in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// They are errors: what they point to may lie anywhere.
    Refuse,
    /// Those to files are read; those to folders are passed over.
    Files,
}

/// The regular files below a folder, as paths relative to it, sorted.
///
/// # Errors
/// `Io`; `Unsupported` for names that cannot be stored, symbolic links if they are refused, and special files.
pub(super) fn list(folder: &Path, links: Links) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut folders = vec![(String::new(), folder.to_path_buf())];
    while let Some((prefix, folder)) = folders.pop() {
        let fail = |e| Error::io("list the folder", &folder, e);
        for entry in fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                return Err(Error::unsupported("its name is no UTF-8").in_file(path));
            };
            let relative =
                if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            if !is_safe(&name) {
                let what = "its name has a meaning on other systems and cannot be stored";
                return Err(Error::unsupported(what).in_file(path));
            }
            let mut kind = entry.file_type().map_err(fail)?;
            if kind.is_symlink() {
                if links == Links::Refuse {
                    let what = "is a symbolic link, which may point anywhere; pack a copy without links (`cp -rL`)";
                    return Err(Error::unsupported(what).in_file(path));
                }
                kind = match fs::metadata(&path) {
                    Ok(target) if target.is_file() => target.file_type(),
                    _ => continue,
                };
            }
            if kind.is_dir() {
                folders.push((relative, path));
            } else if kind.is_file() {
                found.push((relative, path));
            } else if links == Links::Refuse {
                return Err(Error::unsupported("is no regular file").in_file(path));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_refused() {
        let bad = [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "./a",
            "a\\b",
            "..\\a",
            "C:",
            "C:a",
            "c:/a",
            "a/D:b",
            "a\0",
            "\\\\server\\x",
        ];
        for path in bad {
            assert!(!is_safe(path), "{path:?}");
            assert!(check([path]).is_err(), "{path:?}");
        }
        for path in ["a", "a/b", ".hidden", "a..b", "...", "ünï/x", "a b", "1:a"] {
            assert_eq!(is_safe(path), !cfg!(windows) || !path.contains(':'), "{path:?}");
        }
    }

    #[test]
    fn order_and_overlap() {
        assert!(check(["a", "a.b", "a/b"]).is_err_and(|e| e.message().contains("folder")));
        assert!(check(["a", "a"]).is_err());
        assert!(check(["b", "a"]).is_err());
        assert!(check(["a", "b/c", "b/d"]).is_ok());
        assert!(check([]).is_ok());
    }
}
