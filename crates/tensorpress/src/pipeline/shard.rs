//! What goes into a shard.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::{DType, Node, Part, PartKind, Result, Tensor};

/// One tensor, or the parts of a compressed one.
pub(super) enum Item<'a> {
    /// As it is in the source.
    Copied(String),
    /// New values of a vector.
    Vector { name: String, dtype: DType, values: Vec<f32> },
    /// A compressed matrix.
    Compressed { name: String, node: &'a dyn Node },
}

impl Item<'_> {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Copied(name) | Self::Vector { name, .. } | Self::Compressed { name, .. } => name,
        }
    }
}

/// Writes a shard whole or not at all.
pub(super) fn write(path: &Path, source: &Source, items: &[Item<'_>]) -> Result<u64> {
    let mut trees = serde_json::Map::new();
    for item in items {
        if let Item::Compressed { name, node } = item {
            trees.insert(name.clone(), node.describe());
        }
    }
    // Other readers ask for the format.
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    if !trees.is_empty() {
        metadata.insert("tensorpress".to_owned(), serde_json::Value::Object(trees).to_string());
    }
    write_shard(path, &metadata, &mut |sink| {
        for item in items {
            match item {
                Item::Compressed { name, node } => node.parts(name, sink)?,
                Item::Vector { name, dtype, values } => {
                    let mut bytes = Vec::new();
                    dtype.write_f32(values, &mut bytes)?;
                    sink.part(part(name, *dtype, vec![values.len()], Cow::Owned(bytes)))?;
                }
                Item::Copied(name) => {
                    let tensor = source.checkpoint().tensor(name)?;
                    let bytes = Cow::Borrowed(&**tensor.bytes());
                    sink.part(part(name, tensor.dtype(), tensor.shape().to_vec(), bytes))?;
                    if tensor.bytes().len() > RELEASE {
                        source.checkpoint().release();
                    }
                }
            }
        }
        Ok(())
    })
}

/// Pages of tensors beyond this size are given back once they are copied.
const RELEASE: usize = 1 << 22;

fn part<'a>(name: &str, dtype: DType, shape: Vec<usize>, bytes: Cow<'a, [u8]>) -> Part<'a> {
    Part { name: name.to_owned(), kind: PartKind::Values, dtype, shape, bytes }
}
