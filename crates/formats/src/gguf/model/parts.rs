//! Files that are split.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorpress_tensor::checkpoint::{Files, MappedFile};
use tensorpress_tensor::{Context as _, Error, Result};

use crate::gguf::Gguf;

/// Whether a file begins as GGUF files do.
#[must_use]
pub fn is_gguf(path: &Path) -> bool {
    let mut bytes = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.is_ok() && bytes == *b"GGUF"
}

/// The name of the GGUF file of a folder that has no other weights: no config, no safetensors, and one such file, or the
/// first of the parts of one.
///
/// # Errors
/// Those of listing the folder.
pub fn only_name(files: &dyn Files) -> Result<Option<String>> {
    if files.contains("config.json") {
        return Ok(None);
    }
    let names = files.names()?;
    if names.iter().any(|name| name.ends_with(".safetensors")) {
        return Ok(None);
    }
    let is_later = |name: &str| {
        let count = name.strip_suffix(".gguf").and_then(|rest| rest.rsplit_once("-of-"));
        count.is_some_and(|(before, _)| before.len() > 6 && !before.ends_with("-00001"))
    };
    let mut found = names.into_iter().filter(|name| name.ends_with(".gguf") && !is_later(name));
    Ok(found.next().filter(|_| found.next().is_none()))
}

/// [`only_name`] of a folder on disk, as a path, if the file begins as GGUF files do.
///
/// # Errors
/// As [`only_name`].
pub fn only_file(files: &dyn Files) -> Result<Option<PathBuf>> {
    let path = only_name(files)?.map(|name| files.path(&name));
    Ok(path.filter(|path| is_gguf(path)))
}

/// Most parts of a split file.
const MOST: u64 = 9999;

/// The file, or all parts of one that is split, in their order: any of them may be named, and says how many there are.
///
/// # Errors
/// Those of [`Gguf::open`]; `InsufficientData` for a part that is not there; `Corruption` for one that says it is another
/// part, or of another number of them, or has a tensor that another has. Each names the file.
pub fn open_parts(path: &Path) -> Result<Vec<(PathBuf, Gguf)>> {
    let first = mapped(path)?;
    let count = number(&first, "split.count").in_file(path)?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![(path.to_path_buf(), first)]);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let suffix = format!("-of-{count:05}.gguf");
    let before = name.strip_suffix(&suffix).and_then(|rest| {
        let (before, number) = rest.split_at_checked(rest.len().checked_sub(6)?)?;
        number.starts_with('-').then_some(before)
    });
    let (Some(before), 1..=MOST) = (before, count) else {
        let what = format!("one of {count} parts, but not called NAME-00001{suffix}");
        return Err(Error::corruption(what).in_file(path));
    };
    let mut parts = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for part in 0..count {
        let path = path.with_file_name(format!("{before}-{:05}{suffix}", part + 1));
        if !path.is_file() {
            let what = format!("part {} of {count} is missing", part + 1);
            return Err(Error::insufficient(what).in_file(&path));
        }
        let file = mapped(&path)?;
        let says = [number(&file, "split.no"), number(&file, "split.count")];
        let [no, of] = says.map(|said| said.in_file(&path));
        let (no, of) = (no?, of?);
        if (no, of) != (Some(part), Some(count)) {
            let what = format!("says it is part {no:?} of {of:?}, not {part} of {count}");
            return Err(Error::corruption(what).in_file(&path));
        }
        for info in file.header().tensors() {
            if !names.insert(info.name.clone()) {
                let error = Error::corruption("is in two parts").in_tensor(&info.name);
                return Err(error.in_file(&path));
            }
        }
        parts.push((path, file));
    }
    let wanted = number(&parts[0].1, "split.tensors.count").in_file(path)?;
    if wanted.is_some_and(|wanted| wanted != names.len() as u64) {
        let what = format!("{} tensors in {count} parts, not {}", names.len(), wanted.unwrap_or(0));
        return Err(Error::corruption(what).in_file(path));
    }
    Ok(parts)
}

/// A file whose tensors stay in a memory map.
fn mapped(path: &Path) -> Result<Gguf> {
    Gguf::from_source(Arc::new(MappedFile::open(path)?)).in_file(path)
}

fn number(file: &Gguf, key: &str) -> Result<Option<u64>> {
    match file.header().get(key) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| {
            Error::corruption(format!("key `{key}` is {:?}, no number", value.kind()))
        }),
    }
}
