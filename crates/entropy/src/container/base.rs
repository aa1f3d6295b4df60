//! The base that a delta is the difference from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tensorpress_tensor::checkpoint::{ByteSource, FileReader};
use tensorpress_tensor::{Bytes, Error, Result};
use xxhash_rust::xxh3::Xxh3;

use super::format::TensorInfo;
use super::layout;
use super::paths;
use super::preamble::MAGIC;
use super::reader::PackedFile;

/// A checkpoint that others are packed against: a safetensors file, a folder of such files, or a packed file.
#[derive(Debug)]
pub struct Base {
    given: PathBuf,
    sources: Vec<Arc<dyn ByteSource>>,
    tensors: BTreeMap<String, Vec<BaseTensor>>,
}

/// A tensor of the base.
#[derive(Debug)]
pub(super) struct BaseTensor {
    file: String,
    dtype: String,
    shape: Vec<u64>,
    range: Range<u64>,
    source: Arc<dyn ByteSource>,
    /// xxh3-128 of its bytes, once it was asked for.
    hash: OnceLock<u128>,
}

/// Bytes hashed at a time.
const PIECE: u64 = 4 << 20;

impl Base {
    fn empty(given: PathBuf) -> Self {
        Self { given, sources: Vec::new(), tensors: BTreeMap::new() }
    }

    /// Opens a base. A file that holds no tensors is an empty one.
    ///
    /// # Errors
    /// `Io`; `Corruption` for a damaged packed file; `Unsupported` for one that is a delta itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let given = path.as_ref();
        let mut base = Self::empty(given.to_path_buf());
        if given.is_dir() {
            for (name, file) in paths::list(given)? {
                base.add(&name, Arc::new(FileReader::open(file)?))?;
            }
            return Ok(base);
        }
        let file = FileReader::open(given)?;
        if *file.read(0..file.size().min(MAGIC.len() as u64))? == MAGIC {
            return Self::from_packed(PackedFile::open(given)?);
        }
        let name = given.file_name().unwrap_or_default().to_string_lossy().into_owned();
        base.add(&name, Arc::new(file))?;
        Ok(base)
    }

    /// A base over the bytes of a safetensors file; `name` stands for the file.
    ///
    /// # Errors
    /// None for bytes in memory.
    pub fn from_bytes(name: &str, bytes: impl Into<Bytes>) -> Result<Self> {
        let mut base = Self::empty(name.into());
        base.add(name, Arc::new(bytes.into()))?;
        Ok(base)
    }

    /// A packed file as a base.
    ///
    /// # Errors
    /// `Unsupported` if it is a delta itself.
    pub fn from_packed(packed: PackedFile) -> Result<Self> {
        let given = packed.path().to_path_buf();
        if packed.index().base.is_some() {
            let what = "is packed against a base itself: unpack it first";
            return Err(Error::unsupported(what).in_file(given));
        }
        let mut base = Self::empty(given);
        for (number, file) in packed.index().files.iter().enumerate() {
            let source: Arc<dyn ByteSource> = Arc::new(packed.file_at(number));
            base.sources.push(source.clone());
            for segment in &packed.index().segments[file.segments.clone()] {
                let Some(tensor) = &segment.tensor else { continue };
                let range = segment.offset..segment.offset + segment.len;
                let hash = OnceLock::from(segment.hash);
                base.insert(tensor.clone(), &file.path, range, source.clone(), hash);
            }
        }
        Ok(base)
    }

    fn add(&mut self, file: &str, source: Arc<dyn ByteSource>) -> Result<()> {
        for part in layout::parts(&*source)? {
            if let Some(tensor) = part.tensor {
                self.insert(tensor, file, part.range, source.clone(), OnceLock::new());
            }
        }
        self.sources.push(source);
        Ok(())
    }

    fn insert(
        &mut self,
        tensor: TensorInfo,
        file: &str,
        range: Range<u64>,
        source: Arc<dyn ByteSource>,
        hash: OnceLock<u128>,
    ) {
        let TensorInfo { name, dtype, shape } = tensor;
        let found = BaseTensor { file: file.to_owned(), dtype, shape, range, source, hash };
        self.tensors.entry(name).or_default().push(found);
    }

    /// Where it was opened, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.given
    }

    /// That nobody has written to it since it was opened.
    pub(super) fn check_unmoved(&self) -> Result<()> {
        self.sources.iter().try_for_each(|source| source.check_unmoved())
    }

    /// The tensors that could stand for one: same name, element type and shape.
    fn like(&self, tensor: &TensorInfo) -> Vec<&BaseTensor> {
        let named = self.tensors.get(&tensor.name).into_iter().flatten();
        named.filter(|found| found.dtype == tensor.dtype && found.shape == tensor.shape).collect()
    }

    /// The tensor to pack one against: the one of the same file, or else the first.
    pub(super) fn find(&self, tensor: &TensorInfo, file: &str) -> Option<&BaseTensor> {
        let like = self.like(tensor);
        like.iter().find(|found| found.file == file).or(like.first()).copied()
    }

    /// The tensor that one was packed against.
    pub(super) fn wanted(&self, tensor: &TensorInfo, hash: u128) -> Result<&BaseTensor> {
        let mut seen = Vec::new();
        for found in self.like(tensor) {
            match found.hash()? {
                same if same == hash => return Ok(found),
                other => seen.push(format!("{other:032x}")),
            }
        }
        let has =
            if seen.is_empty() { "none of its type and shape".into() } else { seen.join(", ") };
        Err(Error::invalid(format!(
            "this is not the base it was packed against: wanted is a tensor with xxh3-128 {hash:032x}, {} has {has}",
            self.given.display()
        ))
        .in_tensor(&tensor.name))
    }
}

impl BaseTensor {
    /// xxh3-128 of the tensor, read once.
    pub(super) fn hash(&self) -> Result<u128> {
        if let Some(hash) = self.hash.get() {
            return Ok(*hash);
        }
        let mut hasher = Xxh3::new();
        let mut at = self.range.start;
        while at < self.range.end {
            let to = self.range.end.min(at + PIECE);
            hasher.update(&self.source.read(at..to)?);
            at = to;
        }
        Ok(*self.hash.get_or_init(|| hasher.digest128()))
    }

    /// Bytes of the tensor.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.source.read(self.range.start + range.start..self.range.start + range.end)
    }
}
