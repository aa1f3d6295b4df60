//! Which files of a folder are read, and what an index says of them that does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::advice::{ADAPTER, explain_missing, is_adapter, listed, refuse_lfs_pointer};
use super::files::Files;
use super::reader::Checkpoint;
use crate::error::{Context, Error, Result};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Of an index of which nothing holds.
const NOWHERE: &str = "in the index, but not in its shard";

/// What an index says, and what became of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    pub(super) path: PathBuf,
    /// The file of each tensor.
    pub(super) map: BTreeMap<String, String>,
    /// Files that are not there.
    pub(super) gone: BTreeSet<String>,
}

impl Index {
    fn read(folder: &dyn Files, name: &str) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Json {
            weight_map: BTreeMap<String, String>,
        }
        let path = folder.path(name);
        let text = folder.read(name)?;
        refuse_lfs_pointer(&text, text.len() as u64).in_file(&path)?;
        let Json { weight_map: map } = serde_json::from_slice(&text)
            .map_err(|e| Error::corruption(format!("not a shard index: {e}")).in_file(&path))?;
        for name in map.values() {
            let plain = Path::new(name).file_name().is_some_and(|f| f == name.as_str());
            if !plain {
                let what = format!("shard `{name}` is not in the index's folder");
                return Err(Error::corruption(what).in_file(path));
            }
        }
        Ok(Self { path, map, gone: BTreeSet::new() })
    }

    /// The files it names.
    fn files(&self) -> BTreeSet<&str> {
        self.map.values().map(String::as_str).collect()
    }

    /// The error of a tensor that no file has.
    pub(super) fn missing(&self, tensor: &str) -> Error {
        let what = match self.map.get(tensor) {
            Some(file) if self.gone.contains(file) => {
                format!("missing: the index says that it is in {file}, which is not there")
            }
            Some(file) => {
                format!("missing: the index says that it is in {file}, which has no such tensor")
            }
            None => "no such tensor: no file that the index names has it".to_owned(),
        };
        Error::insufficient(what).in_tensor(tensor).in_file(&self.path)
    }
}

/// What stands before the numbers of model-00001-of-00002.safetensors, its number, and how many there are.
fn part_of(name: &str) -> Option<(&str, usize, usize)> {
    let (stem, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (model, number) = stem.rsplit_once('-')?;
    let (number, of) = (number.parse().ok()?, of.parse().ok()?);
    (of > 1).then_some((model, number, of))
}

/// Whether these are all parts of one model.
fn are_parts(names: &[&str]) -> bool {
    let parts: Option<BTreeSet<_>> = names.iter().map(|name| part_of(name)).collect();
    let models = |parts: &BTreeSet<(&str, usize, usize)>| {
        let mut each = parts.iter().enumerate();
        let model = parts.first().map(|(model, ..)| *model);
        each.all(|(at, part)| Some(part.0) == model && (part.1, part.2) == (at + 1, names.len()))
    };
    parts.is_some_and(|parts| !names.is_empty() && parts.len() == names.len() && models(&parts))
}

impl Checkpoint {
    /// [`Checkpoint::open`] of a folder, wherever it is.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_in(folder: &dyn Files) -> Result<Self> {
        let mut checkpoint = Self::open_set(folder)?;
        if folder.contains(ADAPTER) {
            let path = folder.path(ADAPTER);
            checkpoint.notes.push(format!(
                "{}: an adapter (PEFT, LoRA) lies beside the model and is not applied",
                path.display()
            ));
        }
        Ok(checkpoint)
    }

    fn open_set(folder: &dyn Files) -> Result<Self> {
        if folder.contains(SINGLE) {
            return Self::open_single(folder, SINGLE, INDEX);
        }
        if folder.contains(INDEX) {
            return Self::open_sharded(folder, Index::read(folder, INDEX)?);
        }
        let names = folder.names()?;
        let all = names.iter().map(String::as_str).filter(|n| n.ends_with(".safetensors"));
        let found: Vec<&str> = all.filter(|name| !is_adapter(name)).collect();
        // The folder itself, for errors.
        let whole = folder.path(SINGLE).parent().map(Path::to_path_buf).unwrap_or_default();
        // Other kinds of models name their files otherwise: diffusion_pytorch_model.
        let mut others = names.iter().filter(|name| name.ends_with(".safetensors.index.json"));
        if let (Some(index), None) = (others.next(), others.next()) {
            let single = index.strip_suffix(".index.json").unwrap_or(index);
            return match folder.contains(single) {
                true => Self::open_single(folder, single, index),
                false => Self::open_sharded(folder, Index::read(folder, index)?),
            };
        }
        match found.len() {
            _ if are_parts(&found) => {
                let mut checkpoint = Self::open_named(folder, &found, None)?;
                checkpoint.notes.push(format!(
                    "{}: there is no {INDEX}: all {} parts are read, as their names count them",
                    whole.display(),
                    found.len()
                ));
                Ok(checkpoint)
            }
            1 if part_of(found[0]).is_none() => Self::open_named(folder, &found, None),
            1 => Err(Error::insufficient(format!(
                "the one part that is there, and no {INDEX}: the others are missing"
            ))
            .in_file(folder.path(found[0]))),
            0 => Err(explain_missing(folder).unwrap_or_else(|| {
                let what = format!("no {INDEX}, {SINGLE} or other .safetensors file");
                Error::insufficient(what).in_file(whole)
            })),
            n => Err(Error::insufficient(format!(
                "{n} .safetensors files but no {INDEX} that says which belong together: give one of them"
            ))
            .in_file(whole)),
        }
    }

    /// The one file, which stands above an index, as it does for transformers.
    fn open_single(folder: &dyn Files, single: &str, index: &str) -> Result<Self> {
        let read = folder.contains(index).then(|| Index::read(folder, index));
        let why = match read {
            None => None,
            Some(Err(error)) => Some(error.message().to_owned()),
            Some(Ok(read)) if read.map.is_empty() => Some("it names nothing".to_owned()),
            Some(Ok(read)) if read.files().iter().all(|file| *file == single) => {
                match Self::open_sharded(folder, read) {
                    // Of the index, not of the file.
                    Err(error) if error.tensor().is_some() && error.message() == NOWHERE => {
                        Some("the file has none of the tensors that it names".to_owned())
                    }
                    opened => return opened,
                }
            }
            Some(Ok(read)) => {
                let files = read.files();
                let others: Vec<&str> = files.into_iter().filter(|f| *f != single).collect();
                Some(format!("it names {}", listed(&others)))
            }
        };
        let mut checkpoint = Self::open_named(folder, &[single], None)?;
        let (index, single) = (folder.path(index), folder.path(single));
        checkpoint.notes.extend(why.map(|why| {
            format!(
                "{}: not read ({why}): {} is there and is read, as transformers reads it",
                index.display(),
                single.display()
            )
        }));
        Ok(checkpoint)
    }

    /// The files that an index names and that are there. What the index says and does not hold is noted; it is an error
    /// where nothing holds.
    fn open_sharded(folder: &dyn Files, mut index: Index) -> Result<Self> {
        let named: Vec<String> = index.files().into_iter().map(str::to_owned).collect();
        let (there, gone): (Vec<String>, Vec<String>) =
            named.into_iter().partition(|name| folder.contains(name));
        if let (Some(first), true) = (gone.first(), there.is_empty()) {
            let missing = || Error::insufficient("missing shard, named in the index");
            let why = explain_missing(folder).map_or_else(missing, |why| {
                Error::insufficient(format!(
                    "missing shard, named in the index; the folder {}",
                    why.message()
                ))
            });
            return Err(why.in_file(folder.path(first)));
        }
        index.gone = gone.into_iter().collect();
        let there: Vec<&str> = there.iter().map(String::as_str).collect();
        let mut checkpoint = Self::open_named(folder, &there, Some(index))?;
        let notes = checkpoint.judge_index(folder)?;
        checkpoint.notes.extend(notes);
        Ok(checkpoint)
    }

    /// What its index says and does not hold.
    fn judge_index(&self, folder: &dyn Files) -> Result<Vec<String>> {
        let Some(index) = &self.index else { return Ok(Vec::new()) };
        let says = |name: &str| index.map.get(name).map(|file| folder.path(file));
        let named = || index.map.keys().map(String::as_str);
        let missing: Vec<&str> = named().filter(|name| !self.contains(name)).collect();
        if let (Some(first), true) = (missing.first(), missing.len() == index.map.len()) {
            let error = Error::insufficient(NOWHERE).in_tensor(*first);
            return Err(error.in_file(says(first).unwrap_or_default()));
        }
        let moved: Vec<&str> = named()
            .filter(|name| {
                self.file_of(name).is_some_and(|file| Some(file) != says(name).as_deref())
            })
            .collect();
        let unnamed: Vec<&str> =
            self.names().filter(|name| !index.map.contains_key(*name)).collect();
        let gone: Vec<&str> = index.gone.iter().map(String::as_str).collect();
        let notes = [
            (gone, "stale: names files that are not there"),
            (missing, "stale: names tensors that no file has"),
            (moved, "stale: these tensors are read from another file than it says"),
            (unnamed, "incomplete: these tensors are read though it does not name them"),
        ];
        let notes = notes.into_iter().filter(|(names, _)| !names.is_empty());
        let path = index.path.display();
        Ok(notes.map(|(names, what)| format!("{path}: {what}: {}", listed(&names))).collect())
    }
}
