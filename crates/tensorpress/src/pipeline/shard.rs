//! What goes into a shard.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tensorpress_model::{LinearSpec, Source};
#[cfg(feature = "formats")]
use tensorpress_tensor::RawTensor;
use tensorpress_tensor::checkpoint::{Announced, write_announced};
use tensorpress_tensor::{
    Checkpoint, Context as _, DType, Node, Part, PartKind, PartSink, Registry, Result, Storage,
    Tensor,
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
    /// A tensor that was made.
    #[cfg(feature = "formats")]
    Made { name: String, tensor: RawTensor },
    /// A compressed matrix, and its parts if somebody has asked for them before.
    Compressed { name: String, node: &'a dyn Node, announced: Option<&'a Announced> },
}

impl Item<'_> {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Copied(name) | Self::Vector { name, .. } | Self::Compressed { name, .. } => name,
            Self::Alone(spec) => &spec.name,
            #[cfg(feature = "formats")]
            Self::Made { name, .. } => name,
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
        Unit {
            bytes: self.bytes,
            layers,
            in_file: None,
            decisions: Vec::new(),
            #[cfg(feature = "formats")]
            converted: Vec::new(),
        }
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
    let mut metadata = aliases(source, items);
    // Other readers ask for the format.
    metadata.insert("format".to_owned(), "pt".to_owned());
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
                #[cfg(feature = "formats")]
                Item::Made { name, tensor } => {
                    let bytes = Cow::Borrowed(&**tensor.bytes());
                    sink.part(part(name, tensor.dtype(), tensor.shape().to_vec(), bytes))?;
                }
                Item::Copied(name) => {
                    // Made on demand where the source is packed or edited. Its type was announced.
                    let stored = source.checkpoint().bytes(name)?;
                    let (shape, bytes) = (vec![stored.len()], Cow::Borrowed(&*stored));
                    sink.part(part(name, DType::U8, shape, bytes))?;
                    if stored.len() > RELEASE {
                        source.checkpoint().release();
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(Written { bytes, bits })
}

/// What the source's metadata says of tensors that were left out, as one of these stands for them.
fn aliases(source: &Source, items: &[Item<'_>]) -> BTreeMap<String, String> {
    let checkpoint = source.checkpoint();
    let names: BTreeSet<&str> = items.iter().map(Item::name).collect();
    let all = checkpoint.metadata().flatten();
    let here =
        all.filter(|(alias, name)| names.contains(name.as_str()) && !checkpoint.contains(alias));
    here.map(|(alias, name)| (alias.clone(), name.clone())).collect()
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
            #[cfg(feature = "formats")]
            Item::Made { name, tensor } => {
                all.announce(name.clone(), tensor.dtype(), tensor.shape().to_vec())?;
            }
            Item::Copied(name) => {
                let checkpoint = source.checkpoint();
                let dtype = match checkpoint.dtype_name(name) {
                    Some(dtype) => dtype,
                    None => checkpoint.dtype(name)?.name(),
                };
                let shape = checkpoint.shape(name).unwrap_or_default().to_vec();
                let bytes = checkpoint.stored_bytes(name).unwrap_or(0);
                all.announce_stored(name.clone(), dtype, shape, bytes)?;
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

/// The compressed matrices of a shard, by name.
pub(super) fn nodes(shard: &Path, registry: &Registry) -> Result<Vec<(String, Box<dyn Node>)>> {
    let shard = Checkpoint::open(shard)?;
    let trees = shard.trees()?.into_iter();
    trees
        .map(|(name, tree)| {
            let node = registry.read(&tree, &name, &shard)?;
            Ok((name, node))
        })
        .collect()
}
