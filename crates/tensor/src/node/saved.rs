//! One node as bytes, and back.
//!
//! The bytes are a safetensors file of one weight: its parts, its tree in `__metadata__["tensorpress"]` as in a compressed
//! model, and a checksum of everything, so that every changed bit is found. See docs/format.md.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::{Node, Registry};
use crate::bytes::Bytes;
use crate::checkpoint::{Checkpoint, Header, MappedFile, shard_bytes, write_atomically};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::storage::Storage;

/// The name of the weight in a saved node.
pub const SAVED: &str = "weight";

/// The metadata key of the checksum.
const SUM: &str = "tensorpress.xxh3";

/// 128 bits as hexadecimal digits; zeros stand for them where they are computed.
const NO_SUM: &str = "00000000000000000000000000000000";

/// The checksum of a file whose header, with zeros for the checksum, is `header`.
fn sum(header: &[u8], data: &[u8]) -> String {
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(data);
    format!("{:032x}", hash.digest128())
}

/// Where the digits of a checksum stand in a header.
fn place(header: &[u8], digits: &str) -> Option<usize> {
    let text = format!("\"{SUM}\":\"{digits}\"");
    let at = header.windows(text.len()).position(|window| window == text.as_bytes())?;
    Some(at + text.len() - 1 - digits.len())
}

/// A node as bytes: [`from_bytes`] reads them.
///
/// ```
/// use tensorpress_tensor::ndarray::Array2;
/// use tensorpress_tensor::node::{Dense, decode, from_bytes, to_bytes};
/// use tensorpress_tensor::{DType, Registry};
///
/// let weight = Array2::from_shape_fn((4, 8), |(r, c)| (r * 8 + c) as f32);
/// let node = Dense::from_f32(weight.view(), DType::BF16)?;
/// let bytes = to_bytes(&node)?;
/// let back = from_bytes(&bytes[..], &Registry::default())?;
/// assert_eq!(decode(&*back)?, weight);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// As [`Node::parts`].
pub fn to_bytes(node: &dyn Node) -> Result<Vec<u8>> {
    let tree = serde_json::json!({ SAVED: node.describe() });
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("tensorpress".to_owned(), tree.to_string()),
        (SUM.to_owned(), NO_SUM.to_owned()),
    ]);
    let mut bytes = shard_bytes(&metadata, &mut |sink| node.parts(SAVED, sink))?;
    let header = Header::read(&Bytes::from(&bytes[..]))?.start() as usize;
    let at = place(&bytes[..header], NO_SUM).expect("just written");
    let digits = sum(&bytes[..header], &bytes[header..]);
    bytes[at..at + digits.len()].copy_from_slice(digits.as_bytes());
    Ok(bytes)
}

/// Reads what [`to_bytes`] made; `registry` knows the nodes. [`Bytes`] are shared with the node, others are copied.
///
/// # Errors
/// `Corruption` or `InsufficientData` for every changed, missing or added byte; `Version` for a node that the registry
/// does not know.
pub fn from_bytes(bytes: impl Into<Bytes>, registry: &Registry) -> Result<Box<dyn Node>> {
    read(Path::new("node"), bytes.into(), registry)
}

fn read(path: &Path, bytes: Bytes, registry: &Registry) -> Result<Box<dyn Node>> {
    let file = Checkpoint::from_source(path.to_path_buf(), Arc::new(bytes.clone()))?;
    let wrong = || {
        Error::corruption("the checksum of a saved node is missing or does not match").in_file(path)
    };
    let digits = file.metadata().next().and_then(|m| m.get(SUM)).ok_or_else(wrong)?;
    let start = Header::read(&bytes)?.start() as usize;
    let (header, data) = bytes.split_at(start);
    let at = place(header, digits).filter(|_| digits.len() == NO_SUM.len()).ok_or_else(wrong)?;
    let mut zeroed = header.to_vec();
    zeroed[at..at + NO_SUM.len()].copy_from_slice(NO_SUM.as_bytes());
    if sum(&zeroed, data) != *digits {
        return Err(wrong());
    }
    let trees = file.trees()?;
    let tree = trees.get(SAVED).ok_or_else(|| {
        Error::corruption(format!("no node `{SAVED}` is saved here")).in_file(path)
    })?;
    registry.read(tree, SAVED, &file).in_file(path)
}

/// Writes [`to_bytes`] to a file, which is replaced whole or not at all.
///
/// # Errors
/// As [`Node::parts`]; `Io`.
pub fn save(node: &dyn Node, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let bytes = to_bytes(node).in_file(path)?;
    write_atomically(path, &mut |file| {
        file.write_all(&bytes).map_err(|e| Error::io("write the file", path, e))
    })
}

/// Reads a node that was saved; its parts stay in a memory map, so the file must not be truncated meanwhile.
///
/// # Errors
/// `Io`, and as [`from_bytes`]; names the file.
pub fn load(path: impl AsRef<Path>, registry: &Registry) -> Result<Box<dyn Node>> {
    let path = path.as_ref();
    read(path, MappedFile::open(path)?.bytes(), registry)
}

/// Writes [`to_bytes`] to a stream.
///
/// # Errors
/// As [`Node::parts`]; `Io`.
pub fn write_to(node: &dyn Node, sink: &mut dyn Write) -> Result<()> {
    sink.write_all(&to_bytes(node)?)
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot write the node: {e}")))
}

/// Reads a node from all of a stream.
///
/// # Errors
/// `Io`, and as [`from_bytes`].
pub fn read_from(source: &mut dyn Read, registry: &Registry) -> Result<Box<dyn Node>> {
    let mut bytes = Vec::new();
    source
        .read_to_end(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot read the node: {e}")))?;
    from_bytes(bytes, registry)
}

/// 8 x bytes of all parts of a node over the number of its weights.
///
/// # Errors
/// As [`Node::parts`].
pub fn bits_per_weight(node: &dyn Node) -> Result<f64> {
    Ok(Storage::of(node)?.bits_per_weight(node.shape()))
}
