//! Headers of safetensors files, read and written here alone: where each tensor lies, and the metadata beside them.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::ByteSource;
use crate::error::{Error, Result};

/// Longest header that is read.
const MAX_HEADER: u64 = 100_000_000;

/// What is said of files that end too early.
pub(super) const CUT: &str = "; its download or copy was broken off: fetch it again";

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placed {
    /// Its name.
    pub name: String,
    /// Element type, by its name in safetensors: also one that no [`DType`](crate::DType) is.
    pub dtype: String,
    /// Shape in elements.
    pub shape: Vec<u64>,
    /// Bytes of the file.
    pub range: Range<u64>,
}

/// The header of a safetensors file: JSON behind its length as a u64, in front of the tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Where the tensors begin.
    start: u64,
    /// In order of place and name; none overlaps another.
    tensors: Vec<Placed>,
    metadata: Value,
}

#[derive(Deserialize)]
struct Json {
    #[serde(rename = "__metadata__", default)]
    metadata: Value,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::corruption(format!("invalid safetensors file: {why}"))
}

impl Header {
    /// Reads the header of a file. Tensors may have any element type, and the file may have bytes that belong to none of
    /// them, or end before [`Header::end`]: that is for the caller to judge.
    ///
    /// # Errors
    /// `Corruption` if the file does not begin with a header, or tensors overlap; those of reading it.
    pub fn read(file: &dyn ByteSource) -> Result<Self> {
        if file.size() < 8 {
            return Err(invalid("too short for a header"));
        }
        let length = file.read(0..8)?;
        let length = u64::from_le_bytes(length[..].try_into().expect("8 bytes"));
        if length > MAX_HEADER || 8 + length > file.size() {
            let what = format!("a header of {length} bytes in a file of {}", file.size());
            let cut = if length <= MAX_HEADER { CUT } else { "" };
            return Err(invalid(what + cut));
        }
        let start = 8 + length;
        let text = file.read(8..start)?;
        // Anything else could be JSON by chance only with great effort.
        if text.first() != Some(&b'{') {
            return Err(invalid("its header is no JSON object"));
        }
        let json: Json = serde_json::from_slice(&text).map_err(invalid)?;
        let mut tensors = Vec::with_capacity(json.tensors.len());
        for (name, Entry { dtype, shape, data_offsets }) in json.tensors {
            let [from, to] = data_offsets.map(|offset| start.checked_add(offset));
            let range = from.zip(to).filter(|(from, to)| from <= to);
            let Some((from, to)) = range else {
                return Err(invalid(format!("offsets {data_offsets:?}")).in_tensor(name));
            };
            tensors.push(Placed { name, dtype, shape, range: from..to });
        }
        tensors.sort_by(|a, b| {
            let place = |t: &Placed| (t.range.start, t.range.end);
            place(a).cmp(&place(b)).then_with(|| a.name.cmp(&b.name))
        });
        if let Some(pair) = tensors.windows(2).find(|two| two[1].range.start < two[0].range.end) {
            return Err(invalid("overlaps another tensor").in_tensor(&pair[1].name));
        }
        Ok(Self { start, tensors, metadata: json.metadata })
    }

    /// Where the tensors begin: the length of the header and of the number before it.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Where the last tensor ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.tensors.last().map_or(self.start, |last| last.range.end)
    }

    /// The tensors, in order of place.
    #[must_use]
    pub fn tensors(&self) -> &[Placed] {
        &self.tensors
    }

    /// The tensors, to be kept.
    #[must_use]
    pub fn into_tensors(self) -> Vec<Placed> {
        self.tensors
    }

    /// The texts of `__metadata__`.
    ///
    /// # Errors
    /// `Corruption` if they are no texts.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let texts: Option<_> = Deserialize::deserialize(&self.metadata)
            .map_err(|e| invalid(format!("metadata: {e}")))?;
        Ok(texts.unwrap_or_default())
    }

    /// Whether the tensors cover the file behind the header without a gap, as the format wants it.
    ///
    /// # Errors
    /// `Corruption` names the tensor behind a gap.
    pub(super) fn check_whole(&self) -> Result<()> {
        let mut at = self.start;
        for tensor in &self.tensors {
            if tensor.range.start != at {
                return Err(invalid(format!("a gap of {} bytes", tensor.range.start - at))
                    .in_tensor(&tensor.name));
            }
            at = tensor.range.end;
        }
        Ok(())
    }
}

/// A tensor that is to be written: element type, shape, and where it lies behind the header.
#[derive(Debug)]
pub struct Place<'a, D = crate::DType> {
    /// Type of its elements; its name, if it is one that no [`DType`](crate::DType) is.
    pub dtype: D,
    /// Shape in elements.
    pub shape: &'a [usize],
    /// Bytes behind the header.
    pub range: Range<u64>,
}

/// The bytes in front of the tensors: a length, and JSON that is filled up so that tensors begin at a multiple of 8.
#[must_use]
pub fn write_header<'a, D: Serialize>(
    metadata: &BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = (&'a str, Place<'a, D>)>,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    for (name, Place { dtype, shape, range }) in tensors {
        let offsets = [range.start, range.end];
        let described = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.to_owned(), described);
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}
