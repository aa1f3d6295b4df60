//! Which relative paths a container may hold, and how a folder is listed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tensorpress_tensor::checkpoint::{files_below, stays_inside};
use tensorpress_tensor::{Error, Result};

/// Checks the paths of a container: safe, sorted, none twice, none a folder of another.
///
/// # Errors
/// `Corruption`, naming the path.
pub(super) fn check<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut last: Option<&str> = None;
    for path in paths {
        if !stays_inside(path) {
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

/// The regular files below a folder, as paths relative to it, sorted; symbolic links are followed.
///
/// # Errors
/// `Io`; `Unsupported`, naming the path, for names that cannot be stored, links that lead nowhere or into a loop, and
/// special files.
pub(super) fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let found = files_below(folder, &|_| true)?;
    match found.iter().find(|(relative, _)| !stays_inside(relative)) {
        Some((_, path)) => {
            let what = "its name has a meaning on other systems and cannot be stored";
            Err(Error::unsupported(what).in_file(path))
        }
        None => Ok(found),
    }
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
            assert!(!stays_inside(path), "{path:?}");
            assert!(check([path]).is_err(), "{path:?}");
        }
        for path in ["a", "a/b", ".hidden", "a..b", "...", "ünï/x", "a b", "1:a"] {
            assert_eq!(stays_inside(path), !cfg!(windows) || !path.contains(':'), "{path:?}");
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
