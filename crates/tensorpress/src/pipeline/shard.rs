//! What goes into a shard.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_model::{LinearSpec, Source};
use tensorpress_tensor::checkpoint::{Announced, write_announced};
use tensorpress_tensor::{
    Context as _, DType, Node, Part, PartKind, PartSink, Result, Storage, Tensor,
};

use super::report::LayerReport;
use super::state::Unit;

/// One tensor, or the parts of a compressed one.
pub(super) enum Item<'a> {
    /// As it is in the source.
    Copied(String),
    /// A matrix of a stack in the source, under its own name.
    Alone(LinearSpec),
    /// New values of a vector.
    Vector { name: String, dtype: DType, values: Vec<f32> },
    /// A compressed matrix, and its parts if somebody has asked for them before.
    Compressed { name: String, node: &'a dyn Node, announced: Option<&'a Announced> },
}

impl Item<'_> {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Copied(name) | Self::Vector { name, .. } | Self::Compressed { name, .. } => name,
            Self::Alone(spec) => &spec.name,
        }
    }
}

/// A shard that is written.
pub(super) struct Written {
    /// Its length.
    pub(super) bytes: u64,
    /// Bits per weight of each compressed matrix.
    bits: BTreeMap<String, f64>,
}

impl Written {
    /// The unit of a shard, its lines completed by what was written.
    pub(super) fn unit(self, mut layers: Vec<LayerReport>) -> Unit {
        for layer in &mut layers {
            if let Some(bits) = self.bits.get(&layer.name) {
                layer.bits_per_weight = *bits;
            }
        }
        Unit { bytes: self.bytes, layers }
    }
}

/// Counts the parts that pass on their way to another sink.
struct Counted<'a> {
    storage: Storage,
    sink: &'a mut dyn PartSink,
}

impl PartSink for Counted<'_> {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        self.storage.count(&part);
        self.sink.part(part)
    }
}

/// Writes a shard whole or not at all.
pub(super) fn write(path: &Path, source: &Source, items: &[Item<'_>]) -> Result<Written> {
    let mut trees = serde_json::Map::new();
    for item in items {
        if let Item::Compressed { name, node, .. } = item {
            trees.insert(name.clone(), node.describe());
        }
    }
    // Other readers ask for the format.
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    if !trees.is_empty() {
        metadata.insert("tensorpress".to_owned(), serde_json::Value::Object(trees).to_string());
    }
    let mut bits = BTreeMap::new();
    let announced = announce(source, items)?;
    let bytes = write_announced(path, &metadata, announced, &mut |sink| {
        for item in items {
            match item {
                Item::Compressed { name, node, .. } => {
                    let mut counted = Counted { storage: Storage::default(), sink };
                    node.parts(name, &mut counted).in_tensor(name)?;
                    bits.insert(name.clone(), counted.storage.bits_per_weight(node.shape()));
                }
                Item::Vector { name, dtype, values } => {
                    let mut bytes = Vec::new();
                    dtype.write_f32(values, &mut bytes)?;
                    sink.part(part(name, *dtype, vec![values.len()], Cow::Owned(bytes)))?;
                }
                Item::Alone(spec) => {
                    let tensor = source.stored(spec)?;
                    let bytes = Cow::Borrowed(&**tensor.bytes());
                    let shape = tensor.shape().to_vec();
                    sink.part(part(&spec.name, tensor.dtype(), shape, bytes))?;
                }
                Item::Copied(name) => {
                    // Made on demand where the source is packed or edited.
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
    })?;
    Ok(Written { bytes, bits })
}

/// What a shard will hold, as its header must say before any byte is written. Nodes alone are asked for their parts:
/// only they know them.
fn announce(source: &Source, items: &[Item<'_>]) -> Result<Announced> {
    let mut all = Announced::default();
    for item in items {
        match item {
            Item::Compressed { announced: Some(announced), .. } => all.append(announced)?,
            Item::Compressed { name, node, .. } => node.parts(name, &mut all).in_tensor(name)?,
            Item::Vector { name, dtype, values } => {
                all.announce(name.clone(), *dtype, vec![values.len()])?;
            }
            Item::Alone(spec) => {
                all.announce(spec.name.clone(), source.dtype_of(spec)?, spec.shape.to_vec())?;
            }
            Item::Copied(name) => {
                let checkpoint = source.checkpoint();
                let shape = checkpoint.shape(name).unwrap_or_default().to_vec();
                all.announce(name.clone(), checkpoint.dtype(name)?, shape)?;
            }
        }
    }
    Ok(all)
}

/// Pages of tensors beyond this size are given back once they are copied.
const RELEASE: usize = 1 << 22;

fn part<'a>(name: &str, dtype: DType, shape: Vec<usize>, bytes: Cow<'a, [u8]>) -> Part<'a> {
    Part { name: name.to_owned(), kind: PartKind::Values, dtype, shape, bytes }
}
