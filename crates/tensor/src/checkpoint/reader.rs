use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::map::Map;
use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::node::{Json, PartSource};
use crate::source::RawTensor;

/// One or more safetensors files seen as one set of named tensors, mapped rather than read.
///
/// The files must not be truncated while they are mapped.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    map: Option<Map>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

impl Checkpoint {
    /// Opens a safetensors file, or a folder with `model.safetensors.index.json`, `model.safetensors`, or one
    /// other `.safetensors` file.
    ///
    /// # Errors
    /// `Io` or `InsufficientData` for missing files (naming the shard), `Corruption` for invalid ones.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::open_files(&[path.to_path_buf()]);
        }
        let index = path.join(INDEX);
        if index.is_file() {
            return Self::open_sharded(path, &index);
        }
        if path.join(SINGLE).is_file() {
            return Self::open_files(&[path.join(SINGLE)]);
        }
        let listing = std::fs::read_dir(path).map_err(|e| Error::io("list the folder", path, e))?;
        let mut found: Vec<PathBuf> = listing
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        found.sort();
        match found.len() {
            1 => Self::open_files(&found),
            0 => {
                Err(Error::insufficient(format!("no {INDEX}, {SINGLE} or other .safetensors file"))
                    .in_file(path))
            }
            n => Err(Error::insufficient(format!(
                "{n} .safetensors files but no {INDEX} that says which belong together"
            ))
            .in_file(path)),
        }
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read(index).map_err(|e| Error::io("read the index", index, e))?;
        let parsed: Index = serde_json::from_slice(&text)
            .map_err(|e| Error::corruption(format!("not a shard index: {e}")).in_file(index))?;
        let names: BTreeSet<&String> = parsed.weight_map.values().collect();
        let mut paths = Vec::new();
        for name in names {
            let plain = Path::new(name).file_name().is_some_and(|f| f == name.as_str());
            if !plain {
                return Err(Error::corruption(format!(
                    "shard `{name}` is not in the index's folder"
                ))
                .in_file(index));
            }
            let shard = folder.join(name);
            if !shard.is_file() {
                return Err(
                    Error::insufficient("missing shard, named in the index").in_file(&shard)
                );
            }
            paths.push(shard);
        }
        let checkpoint = Self::open_files(&paths)?;
        for (tensor, file) in &parsed.weight_map {
            if !checkpoint.contains(tensor) {
                return Err(Error::insufficient("in the index, but not in its shard")
                    .in_tensor(tensor)
                    .in_file(folder.join(file)));
            }
        }
        Ok(checkpoint)
    }

    /// Opens the given safetensors files as one checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; `Corruption` if two files hold the same tensor.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let map = Map::open(path)?;
            checkpoint.add(path.clone(), map.bytes(), Some(map)).in_file(path)?;
        }
        Ok(checkpoint)
    }

    /// A checkpoint over the bytes of one safetensors file; `name` stands for the file in errors.
    ///
    /// # Errors
    /// `Corruption` for invalid bytes.
    pub fn from_bytes(name: &str, bytes: impl Into<Bytes>) -> Result<Self> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add(name.into(), bytes.into(), None).in_file(Path::new(name))?;
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf, bytes: Bytes, map: Option<Map>) -> Result<()> {
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes)
            .map_err(|e| Error::corruption(format!("invalid safetensors file: {e}")))?;
        let start = 8 + header;
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let range = start + from..start + to;
            if range.end > bytes.len() {
                return Err(Error::insufficient(format!(
                    "file ends at byte {}, the tensor at {}",
                    bytes.len(),
                    range.end
                ))
                .in_tensor(name));
            }
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range,
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(Error::corruption("stored in two files").in_tensor(name));
            }
        }
        if start + metadata.data_len() != bytes.len() {
            return Err(Error::insufficient(format!(
                "file is {} bytes long, its header describes {}",
                bytes.len(),
                start + metadata.data_len()
            )));
        }
        let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
        self.files.push(Shard { path, bytes, map, metadata });
        Ok(())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor of this name is stored.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor, where there is one.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|e| e.shape.as_slice())
    }

    /// Bytes of a tensor as stored, where there is one.
    #[must_use]
    pub fn stored_bytes(&self, name: &str) -> Option<u64> {
        self.tensors.get(name).map(|e| e.range.len() as u64)
    }

    /// The tensor of this name; nothing is copied.
    ///
    /// # Errors
    /// `InsufficientData` if there is none, `Unsupported` if its element type is unknown here.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let Some(entry) = self.tensors.get(name) else {
            let error = Error::insufficient("no such tensor").in_tensor(name);
            return Err(match self.files.as_slice() {
                [only] => error.in_file(&only.path),
                [first, ..] => error.in_file(first.path.parent().unwrap_or(&first.path)),
                [] => error,
            });
        };
        let shard = &self.files[entry.file];
        let dtype = DType::from_safetensors(entry.dtype).ok_or_else(|| {
            Error::unsupported(format!("element type {:?}", entry.dtype))
                .in_tensor(name)
                .in_file(&shard.path)
        })?;
        RawTensor::new(dtype, entry.shape.clone(), shard.bytes.slice(entry.range.clone()))
            .in_tensor(name)
            .in_file(&shard.path)
    }

    /// The file that holds a tensor.
    #[must_use]
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|e| self.files[e.file].path.as_path())
    }

    /// Length of all files together.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes.len() as u64).sum()
    }

    /// Files, in the order they were opened.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// The `__metadata__` of each file, in the order of [`Checkpoint::files`].
    pub fn metadata(&self) -> impl Iterator<Item = &BTreeMap<String, String>> {
        self.files.iter().map(|f| &f.metadata)
    }

    /// Trees of compressed weights by weight name, from every file's `__metadata__["tensorpress"]`.
    ///
    /// # Errors
    /// `Corruption` if a description is no JSON object.
    pub fn trees(&self) -> Result<BTreeMap<String, Json>> {
        let mut trees = BTreeMap::new();
        for file in &self.files {
            let Some(text) = file.metadata.get("tensorpress") else { continue };
            let described: BTreeMap<String, Json> = serde_json::from_str(text).map_err(|e| {
                Error::corruption(format!("description of the compressed weights: {e}"))
                    .in_file(&file.path)
            })?;
            trees.extend(described);
        }
        Ok(trees)
    }

    /// Gives mapped pages back to the operating system, which bounds resident memory on a stream through a
    /// checkpoint. Tensors stay valid: pages are read again when touched.
    pub fn release(&self) {
        for map in self.files.iter().filter_map(|f| f.map.as_ref()) {
            map.release();
        }
    }
}

impl PartSource for Checkpoint {
    fn part(&self, name: &str) -> Result<RawTensor> {
        self.tensor(name)
    }
}
