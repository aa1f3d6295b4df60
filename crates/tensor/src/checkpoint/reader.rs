use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{ByteSource, Files, Folder};
use super::header::{Header, Placed};
use super::map::MappedFile;
use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::node::{Json, PartSource};
use crate::source::RawTensor;

/// One or more safetensors files seen as one set of named tensors, mapped or decoded when asked for rather than read.
///
/// The files must not be cut while they are mapped: [`survive_cut_files`](super::survive_cut_files) says what happens, and
/// [`Checkpoint::check_unmoved`] tells whether they were written to.
///
/// ```
/// use tensorpress_tensor::Checkpoint;
///
/// let error = Checkpoint::from_bytes("model.safetensors", vec![1, 2, 3]).unwrap_err();
/// assert!(error.to_string().contains("model.safetensors"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    files: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Shard {
    path: PathBuf,
    bytes: Arc<dyn ByteSource>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    range: Range<u64>,
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
        Self::open_in(&Folder::new(path))
    }

    /// [`Checkpoint::open`] of a folder, wherever it is.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_in(folder: &dyn Files) -> Result<Self> {
        if folder.contains(INDEX) {
            return Self::open_sharded(folder);
        }
        if folder.contains(SINGLE) {
            return Self::open_named(folder, &[SINGLE]);
        }
        let names = folder.names()?;
        let found: Vec<&str> =
            names.iter().map(String::as_str).filter(|n| n.ends_with(".safetensors")).collect();
        // The folder itself, for errors.
        let whole = folder.path(SINGLE).parent().map(Path::to_path_buf).unwrap_or_default();
        match found.len() {
            1 => Self::open_named(folder, &found),
            0 => {
                Err(Error::insufficient(format!("no {INDEX}, {SINGLE} or other .safetensors file"))
                    .in_file(whole))
            }
            n => Err(Error::insufficient(format!(
                "{n} .safetensors files but no {INDEX} that says which belong together"
            ))
            .in_file(whole)),
        }
    }

    fn open_sharded(folder: &dyn Files) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index = folder.path(INDEX);
        let text = folder.read(INDEX)?;
        let parsed: Index = serde_json::from_slice(&text)
            .map_err(|e| Error::corruption(format!("not a shard index: {e}")).in_file(&index))?;
        let names: BTreeSet<&str> = parsed.weight_map.values().map(String::as_str).collect();
        for name in &names {
            let plain = Path::new(name).file_name().is_some_and(|f| f == *name);
            if !plain {
                return Err(Error::corruption(format!(
                    "shard `{name}` is not in the index's folder"
                ))
                .in_file(index));
            }
            if !folder.contains(name) {
                return Err(Error::insufficient("missing shard, named in the index")
                    .in_file(folder.path(name)));
            }
        }
        let checkpoint = Self::open_named(folder, &names.into_iter().collect::<Vec<_>>())?;
        for (tensor, file) in &parsed.weight_map {
            if !checkpoint.contains(tensor) {
                return Err(Error::insufficient("in the index, but not in its shard")
                    .in_tensor(tensor)
                    .in_file(folder.path(file)));
            }
        }
        Ok(checkpoint)
    }

    fn open_named(folder: &dyn Files, names: &[&str]) -> Result<Self> {
        let mut checkpoint = Self::default();
        for name in names {
            let path = folder.path(name);
            checkpoint.add(path.clone(), folder.open(name)?).in_file(&path)?;
        }
        Ok(checkpoint)
    }

    /// Opens the given safetensors files as one checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; `Corruption` if two files hold the same tensor.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self> {
        let mut checkpoint = Self::default();
        for path in paths {
            checkpoint.add(path.clone(), Arc::new(MappedFile::open(path)?)).in_file(path)?;
        }
        Ok(checkpoint)
    }

    /// A checkpoint over the bytes of one safetensors file; `name` stands for the file in errors.
    ///
    /// # Errors
    /// `Corruption` for invalid bytes.
    pub fn from_bytes(name: &str, bytes: impl Into<Bytes>) -> Result<Self> {
        Self::from_source(name.into(), Arc::new(bytes.into()))
    }

    /// A checkpoint over one safetensors file, wherever its bytes come from; `path` stands for the file in errors.
    ///
    /// # Errors
    /// `Corruption` for invalid bytes, and those of reading the header.
    pub fn from_source(path: PathBuf, bytes: Arc<dyn ByteSource>) -> Result<Self> {
        let mut checkpoint = Self::default();
        checkpoint.add(path.clone(), bytes).in_file(&path)?;
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf, bytes: Arc<dyn ByteSource>) -> Result<()> {
        let header = Header::read(&*bytes)?;
        if header.end() != bytes.size() {
            return Err(Error::insufficient(format!(
                "invalid safetensors file: {} bytes long, its header describes {}",
                bytes.size(),
                header.end(),
            )));
        }
        header.check_whole()?;
        let metadata = header.metadata()?;
        for Placed { name, dtype, shape, range } in header.into_tensors() {
            let shape = to_usize(&shape).in_tensor(&name)?;
            let entry = Entry { file: self.files.len(), dtype, shape, range };
            entry.check().in_tensor(&name)?;
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(Error::corruption("stored in two files").in_tensor(name));
            }
        }
        self.files.push(Shard { path, bytes, metadata });
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
        self.tensors.get(name).map(|e| e.range.end - e.range.start)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| {
            let error = Error::insufficient("no such tensor").in_tensor(name);
            match self.files.as_slice() {
                [only] => error.in_file(&only.path),
                [first, ..] => error.in_file(first.path.parent().unwrap_or(&first.path)),
                [] => error,
            }
        })
    }

    /// Element type of a tensor; its bytes are not touched.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let entry = self.entry(name)?;
        DType::from_name(&entry.dtype).ok_or_else(|| {
            Error::unsupported(format!("element type {}", entry.dtype))
                .in_tensor(name)
                .in_file(&self.files[entry.file].path)
        })
    }

    /// The tensor of this name; nothing is copied out of a mapped file, and what a container holds is decoded.
    ///
    /// # Errors
    /// `InsufficientData` if there is none, `Unsupported` if its element type is unknown here; those of decoding.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let (dtype, entry) = (self.dtype(name)?, self.entry(name)?);
        let shard = &self.files[entry.file];
        let bytes = shard.bytes.read(entry.range.clone());
        bytes
            .and_then(|bytes| RawTensor::new(dtype, entry.shape.clone(), bytes))
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
        self.files.iter().map(|f| f.bytes.size()).sum()
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
        for file in &self.files {
            file.bytes.release();
        }
    }

    /// That nobody has written to the files since they were opened.
    ///
    /// # Errors
    /// `Io`, naming the file, if somebody has.
    pub fn check_unmoved(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.bytes.check_unmoved().in_file(&file.path))
    }
}

impl Entry {
    /// Bytes and shape agree.
    fn check(&self) -> Result<()> {
        let invalid = |why| Error::corruption(format!("invalid safetensors file: {why}"));
        let bits = element_bits(&self.dtype)
            .ok_or_else(|| invalid(format!("element type {}", self.dtype)))?;
        let bits = self.shape.iter().try_fold(bits, |n, d| n.checked_mul(*d));
        let bytes = self.range.end - self.range.start;
        if bits.is_some_and(|bits| bits.is_multiple_of(8) && (bits / 8) as u64 == bytes) {
            return Ok(());
        }
        Err(invalid(format!("{bytes} bytes for {} {:?}", self.dtype, self.shape)))
    }
}

/// Bits of an element, also of types that are not read as numbers here.
fn element_bits(dtype: &str) -> Option<usize> {
    match DType::from_name(dtype) {
        Some(dtype) => Some(8 * dtype.size()),
        None if dtype.starts_with("F8_") => Some(8),
        None if dtype.starts_with("F6_") => Some(6),
        None if dtype == "F4" => Some(4),
        None if dtype == "C64" => Some(64),
        None => None,
    }
}

fn to_usize(shape: &[u64]) -> Result<Vec<usize>> {
    let sizes = shape.iter().map(|n| usize::try_from(*n)).collect::<Result<_, _>>();
    sizes.map_err(|_| Error::corruption(format!("invalid safetensors file: shape {shape:?}")))
}

impl PartSource for Checkpoint {
    fn part(&self, name: &str) -> Result<RawTensor> {
        self.tensor(name)
    }
}
