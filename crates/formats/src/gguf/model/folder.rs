//! The folder that a GGUF file would be if tensorpress had made it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tensorpress_tensor::checkpoint::{ByteSource, Content, Files, Made, View};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Bytes, Context as _, DType, Error, Result};

use super::arch::{Arch, Paired, Place, pairs};
use super::config::{Factors, Said, config};
use super::parts::open_parts;
use crate::ggml::Type;
use crate::gguf::tokenizer;
use crate::gguf::{Gguf, Header, TensorInfo, Value};

/// The file of a folder that keeps what a GGUF file says, so that the same file can be made of it again.
pub const HEADER: &str = "gguf.header";

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// A model in a GGUF file, or in several that are one, as a folder: `config.json`, the tokenizer's files, and weights under
/// the names that Hugging Face folders have, blocks of ggml's types as nodes straight over the mapped file.
///
/// Models of an architecture that is not known are their tensors, under the file's names.
#[derive(Debug)]
pub struct GgufFolder {
    path: PathBuf,
    /// Contents of small files; an error is that of making it.
    files: BTreeMap<&'static str, Result<Bytes>>,
    weights: Arc<dyn ByteSource>,
}

impl GgufFolder {
    /// Opens a file, and the other parts of a split one.
    ///
    /// # Errors
    /// Those of [`open_parts`]; `InsufficientData`, `Corruption` or `Unsupported`, naming the key or the tensor, for
    /// metadata that does not say what its architecture needs. What is wrong with a tokenizer is an error of its files.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::of(path, open_parts(path)?).in_file(path)
    }

    /// A file that lies anywhere; `path` stands for it in errors.
    ///
    /// # Errors
    /// As [`GgufFolder::open`].
    pub fn of_file(path: &Path, file: Gguf) -> Result<Self> {
        Self::of(path, vec![(path.to_path_buf(), file)]).in_file(path)
    }

    fn of(path: &Path, parts: Vec<(PathBuf, Gguf)>) -> Result<Self> {
        let Some((_, first)) = parts.first() else {
            return Err(Error::insufficient("no GGUF file"));
        };
        let header = first.header();
        let name = header.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
        let experts = Said { header, arch: name }.number("expert_count")?.unwrap_or(0) > 0;
        let arch = Arch::of_file(name, experts);
        let mut files: BTreeMap<&'static str, Result<Bytes>> = BTreeMap::new();
        let json = |json: &Json| Bytes::from(serde_json::to_vec_pretty(json).expect("is JSON"));
        let said = match arch {
            Some(arch) => config(header, arch, &factors(&parts)?)?,
            // Readers say that it is unknown.
            None => json!({"model_type": name}),
        };
        files.insert(CONFIG, Ok(json(&said)));
        if parts.len() == 1 {
            // With the file's length, which may have something behind the last tensor or not.
            let mut bytes = header.bytes();
            bytes.extend(first.source().size().to_le_bytes());
            files.insert(HEADER, Ok(bytes.into()));
        }
        let kind = header.get("tokenizer.ggml.model").and_then(Value::as_str);
        if kind.is_some_and(|kind| kind != "no_vocab") {
            match tokenizer::to_hugging_face(header) {
                Ok(made) => {
                    files.insert(TOKENIZER, Ok(made.tokenizer.into()));
                    files.insert(TOKENIZER_CONFIG, Ok(made.config.into()));
                }
                Err(e) => drop(files.insert(TOKENIZER, Err(e))),
            }
        }
        let weights = weights(&parts, arch)?;
        Ok(Self { path: path.to_path_buf(), files, weights })
    }
}

/// `config.json` of a file with this header, and with these stretches of wavelengths in tensors: name and values.
///
/// # Errors
/// As [`GgufFolder::open`].
pub fn config_of(header: &Header, made: &BTreeMap<String, Vec<f32>>) -> Result<Json> {
    let name = header.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let experts = Said { header, arch: name }.number("expert_count")?.unwrap_or(0) > 0;
    let Some(arch) = Arch::of_file(name, experts) else {
        return Err(Error::unsupported(format!("`general.architecture` = `{name}`")));
    };
    let get = |name: &str| made.get(name).cloned();
    let short_long = get("rope_factors_short.weight").zip(get("rope_factors_long.weight"));
    let factors =
        Factors { all: get("rope_freqs.weight"), short_long: short_long.map(|(s, l)| [s, l]) };
    config(header, arch, &factors)
}

/// The stretches of wavelengths that lie in tensors.
fn factors(parts: &[(PathBuf, Gguf)]) -> Result<Factors> {
    let read = |name: &str| -> Result<Option<Vec<f32>>> {
        let holds = |(_, file): &&(PathBuf, Gguf)| file.header().tensor(name).is_some();
        let Some((path, file)) = parts.iter().find(holds) else { return Ok(None) };
        let info = file.header().tensor(name).map(|info| info.type_id);
        if info != Some(0) {
            return Err(Error::unsupported("is not in f32").in_tensor(name).in_file(path));
        }
        let bytes = file.bytes(name).in_file(path)?;
        let mut values = vec![0.0; bytes.len() / 4];
        DType::F32.read_f32(&bytes, &mut values)?;
        Ok(Some(values))
    };
    let [short, long] = ["rope_factors_short.weight", "rope_factors_long.weight"].map(read);
    Ok(Factors {
        all: read("rope_freqs.weight")?,
        short_long: short?.zip(long?).map(|(s, l)| [s, l]),
    })
}

/// Where a part of a tensor comes from.
#[derive(Debug)]
struct Cut {
    source: Arc<dyn ByteSource>,
    start: u64,
    len: u64,
    how: How,
}

#[derive(Debug)]
enum How {
    Whole,
    /// Row `i` is row `rows[i]` of the file.
    Rows(Arc<Vec<usize>>),
    /// F32 less one.
    MinusOne,
}

impl Content for Cut {
    fn bytes(&self) -> Result<Bytes> {
        let stored = self.source.read(self.start..self.start + self.len)?;
        Ok(match &self.how {
            How::Whole => stored,
            How::Rows(rows) => {
                let width = stored.len() / rows.len().max(1);
                let row = |row: &usize| &stored[row * width..(row + 1) * width];
                rows.iter().flat_map(row).copied().collect::<Vec<u8>>().into()
            }
            How::MinusOne => {
                let values = stored.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) - 1.0);
                values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()
            }
        })
    }
}

/// The name in safetensors of a type whose elements stand alone.
fn plain(id: u32) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        30 => "BF16",
        _ => return None,
    })
}

/// All tensors, under the names of a folder.
fn weights(parts: &[(PathBuf, Gguf)], arch: Option<&Arch>) -> Result<Arc<dyn ByteSource>> {
    let mut tensors: BTreeMap<String, Made> = BTreeMap::new();
    let mut trees = serde_json::Map::new();
    let header = parts[0].1.header();
    let heads = |paired: Paired| -> Result<usize> {
        let said = Said { header, arch: arch.map_or("", |arch| arch.gguf) };
        let queries = said.needed("attention.head_count")?;
        Ok(match paired {
            Paired::Queries => queries,
            Paired::Keys => said.number("attention.head_count_kv")?.unwrap_or(queries),
        } as usize)
    };
    for (path, file) in parts {
        for info in file.header().tensors() {
            let place = arch.and_then(|arch| arch.to_folder(&info.name));
            let place = place.unwrap_or_else(|| Place::same(&info.name));
            let made = Tensor { file, info, place: &place, heads: &heads };
            made.add(&mut tensors, &mut trees).in_tensor(&info.name).in_file(path)?;
        }
    }
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    if !trees.is_empty() {
        metadata.insert("tensorpress".into(), Json::Object(trees).to_string());
    }
    let behind = parts.iter().map(|(_, file)| file.source().clone()).collect();
    Ok(Arc::new(View::new(&metadata, tensors, behind).whole()))
}

/// A tensor of a file, on its way.
struct Tensor<'a> {
    file: &'a Gguf,
    info: &'a TensorInfo,
    place: &'a Place,
    heads: &'a dyn Fn(Paired) -> Result<usize>,
}

impl Tensor<'_> {
    fn add(
        &self,
        tensors: &mut BTreeMap<String, Made>,
        trees: &mut serde_json::Map<String, Json>,
    ) -> Result<()> {
        let Self { info, place, .. } = self;
        let sizes = info.dims.iter().rev().map(|dim| usize::try_from(*dim));
        let shape: Vec<usize> =
            sizes.collect::<Result<_, _>>().map_err(|_| Error::unsupported("is too large here"))?;
        // Lengths beside one of 0 are backed by nothing.
        let all = shape.iter().try_fold(1usize, |all, length| all.checked_mul((*length).max(1)));
        if all.is_none() || info.bytes == 0 && all > Some(1 << 16) {
            return Err(Error::corruption(format!("shape {shape:?}")));
        }
        if !place.experts {
            return self.one(&place.name, shape, 0, info.bytes, tensors, trees);
        }
        let [experts, rest @ ..] = &shape[..] else {
            return Err(Error::shape(format!("shape {shape:?} of experts' matrices")));
        };
        let each = info.bytes / (*experts as u64).max(1);
        for expert in 0..*experts {
            let name = place.name.replace("{}", &expert.to_string());
            self.one(&name, rest.to_vec(), expert as u64 * each, each, tensors, trees)?;
        }
        Ok(())
    }

    /// One matrix, which lies at a place of the tensor.
    fn one(
        &self,
        name: &str,
        shape: Vec<usize>,
        at: u64,
        len: u64,
        tensors: &mut BTreeMap<String, Made>,
        trees: &mut serde_json::Map<String, Json>,
    ) -> Result<()> {
        let Self { file, info, place, .. } = self;
        let how = match place.paired {
            Some(paired) => {
                let (heads, rows) = ((self.heads)(paired)?, shape.first().copied().unwrap_or(0));
                let pair = heads.checked_mul(2).filter(|pair| *pair > 0);
                if pair.is_none_or(|pair| !rows.is_multiple_of(pair)) {
                    let what = format!("{rows} rows of {heads} heads, which are not in pairs");
                    return Err(Error::shape(what));
                }
                How::Rows(Arc::new(pairs(rows, heads)))
            }
            None if place.plus_one && info.type_id == 0 => How::MinusOne,
            None if place.plus_one => {
                return Err(Error::unsupported("a norm that is not in f32"));
            }
            None => How::Whole,
        };
        let start = file.header().range(info).start + at;
        let content = Arc::new(Cut { source: file.source().clone(), start, len, how });
        let (dtype, part) = match (plain(info.type_id), Type::from_id(info.type_id)) {
            (Some(dtype), _) => (dtype, None),
            (None, Some(ty)) => (DType::U8.name(), Some(ty)),
            (None, None) => {
                return Err(Error::unsupported(format!("type {} of ggml", info.type_id)));
            }
        };
        let Some(ty) = part else {
            let made = Made { dtype: dtype.into(), shape, len, content };
            tensors.insert(name.to_owned(), made);
            return Ok(());
        };
        let [rows, cols] = tensorpress_tensor::source::matrix_shape(&shape);
        // A matrix with more axes has the same rows.
        let (rows, cols) = match &shape[..] {
            [.., last] if shape.len() > 2 => (rows * cols / (*last).max(1), *last),
            _ => (rows, cols),
        };
        let bytes = (cols / ty.block_len()).saturating_mul(ty.block_bytes());
        trees.insert(
            name.to_owned(),
            json!({
                "node": "ggml.v1",
                "shape": [rows, cols],
                "type": ty.name(),
                "codes": {"plane": "packed.v1", "bits": 8, "shape": [rows, bytes]},
            }),
        );
        let made = Made { dtype: dtype.into(), shape: vec![len as usize], len, content };
        tensors.insert(format!("{name}.codes"), made);
        Ok(())
    }
}

impl Files for GgufFolder {
    fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.files.keys().map(|name| (*name).to_owned()).collect();
        names.push(WEIGHTS.to_owned());
        names.sort();
        Ok(names)
    }

    fn contains(&self, name: &str) -> bool {
        name == WEIGHTS || self.files.contains_key(name)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>> {
        if name == WEIGHTS {
            return Ok(self.weights.clone());
        }
        match self.files.get(name) {
            Some(Ok(bytes)) => Ok(Arc::new(bytes.clone())),
            Some(Err(e)) => Err(Error::new(e.kind(), e.message()).in_file(&self.path)),
            None => Err(Error::insufficient(format!("has no `{name}`")).in_file(&self.path)),
        }
    }

    /// Everything lies in the one file.
    fn path(&self, name: &str) -> PathBuf {
        match name {
            WEIGHTS => self.path.clone(),
            name => self.path.join(name),
        }
    }
}
