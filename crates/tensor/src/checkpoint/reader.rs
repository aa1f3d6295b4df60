use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::advice::{TELLS, refuse_lfs_pointer};
use super::files::{ByteSource, Files, Folder};
use super::header::{CUT, Header, Placed};
use super::index::Index;
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
    /// What said which files belong together.
    pub(super) index: Option<Index>,
    pub(super) notes: Vec<String>,
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

impl Checkpoint {
    /// Opens a safetensors file, or a folder with `model.safetensors`, `model.safetensors.index.json` or one other
    /// `.safetensors` file; the first of these that is there decides. What an index says and does not hold is no error as
    /// long as something of it holds: [`Checkpoint::notes`] tell it, and to ask for a tensor that is missing is one.
    ///
    /// # Errors
    /// `Io` or `InsufficientData` for missing files (naming the shard), files that are cut and git-lfs pointers;
    /// `Unsupported` for a folder of an adapter or of weights in another format, saying what to do about it; `Corruption`
    /// for invalid files.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::open_files(&[path.to_path_buf()]);
        }
        Self::open_in(&Folder::new(path))
    }

    /// These files of a folder.
    pub(super) fn open_named(
        folder: &dyn Files,
        names: &[&str],
        index: Option<Index>,
    ) -> Result<Self> {
        let mut checkpoint = Self { index, ..Self::default() };
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
        refuse_lfs_pointer(&bytes.read(0..bytes.size().min(TELLS))?, bytes.size())?;
        let header = Header::read(&*bytes)?;
        let (is, says) = (bytes.size(), header.end());
        if is != says {
            let cut = if is < says { CUT } else { "" };
            return Err(Error::insufficient(format!(
                "invalid safetensors file: {is} bytes long, its header describes {says}{cut}"
            )));
        }
        header.check_whole()?;
        let metadata = header.metadata()?;
        let name_of =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let here = name_of(&path);
        for Placed { name, dtype, shape, range } in header.into_tensors() {
            let shape = to_usize(&shape).in_tensor(&name)?;
            let entry = Entry { file: self.files.len(), dtype, shape, range };
            entry.check().in_tensor(&name)?;
            let Some(other) = self.tensors.get(&name) else {
                self.tensors.insert(name, entry);
                continue;
            };
            // Of two, the index says which one is meant.
            let other = name_of(&self.files[other.file].path);
            match self.index.as_ref().and_then(|index| index.map.get(&name)) {
                Some(meant) if *meant == other => {}
                Some(meant) if *meant == here => drop(self.tensors.insert(name.clone(), entry)),
                _ => return Err(Error::corruption("stored in two files").in_tensor(name)),
            }
            self.notes.push(format!(
                "tensor `{name}` is stored in {other} and in {here}: read as the index says"
            ));
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
            if let Some(index) = &self.index {
                return index.missing(name);
            }
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

    /// Element type of a tensor by its name in safetensors, where there is such a tensor: also a type that no [`DType`]
    /// is.
    #[must_use]
    pub fn dtype_name(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|e| e.dtype.as_str())
    }

    /// The bytes of a tensor as stored, of whatever element type.
    ///
    /// # Errors
    /// `InsufficientData` if there is no such tensor; those of decoding.
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        let entry = self.entry(name)?;
        let shard = &self.files[entry.file];
        shard.bytes.read(entry.range.clone()).in_tensor(name).in_file(&shard.path)
    }

    /// What a reader of this checkpoint should be told: which of several sets of files is read, what an index says and
    /// does not hold. Sentences, each naming its file.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Tensors that the index names and no file has, sorted.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        let named = self.index.iter().flat_map(|index| index.map.keys());
        named.map(String::as_str).filter(|name| !self.contains(name))
    }

    /// The name under which a tensor is stored that was left out as it shares its memory with another one: so the metadata
    /// says that safetensors' `save_model` writes.
    #[must_use]
    pub fn alias(&self, name: &str) -> Option<&str> {
        self.files.iter().find_map(|file| file.metadata.get(name)).map(String::as_str)
    }

    /// The file that holds a tensor.
    #[must_use]
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|e| self.files[e.file].path.as_path())
    }

    /// Length of all files together, as they are stored.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes.stored()).sum()
    }

    /// Files, in the order they were opened.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// The bytes of each file, in the order of [`Checkpoint::files`].
    pub fn sources(&self) -> impl Iterator<Item = &Arc<dyn ByteSource>> {
        self.files.iter().map(|f| &f.bytes)
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
