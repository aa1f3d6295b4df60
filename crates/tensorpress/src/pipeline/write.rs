//! A model folder from a model and nodes that were made elsewhere.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_model::{LinearSpec, Source};
use tensorpress_tensor::checkpoint::Announced;
use tensorpress_tensor::{Context as _, Error, Node, Part, PartSink, Result};
use xxhash_rust::xxh3::Xxh3;

use super::finish;
use super::folder::{self, Work, partial_of};
use super::shard::{self, Item};
use super::side::Side;
use super::state::Identity;
use super::tables;

/// Writes the model `source` into the folder `out` with these nodes, by weight name, in place of the weights they stand
/// for; everything else is as it was. What appears is a compressed folder that [`open_model`](crate::open_model) reads.
///
/// The folder appears whole or not at all. Work lies in `out.partial` meanwhile, and the same call takes it up again.
///
/// ```no_run
/// use std::collections::BTreeMap;
/// use tensorpress::prelude::*;
/// use tensorpress::pipeline::write_model;
/// use tensorpress::tensor::stats::Calibration;
/// use tensorpress::tensor::Tensor;
///
/// # fn main() -> Result<()> {
/// let source = open_model("model")?;
/// let mut nodes = BTreeMap::new();
/// for spec in (0..source.blocks()).flat_map(|block| source.linears(block)) {
///     let weight = source.checkpoint().tensor(&spec.name)?.to_matrix()?;
///     let blind = Calibration::none(weight.ncols());
///     let rounded = Rtn::new(GridSpec::new(4, 128)).compress(weight.view(), &blind)?;
///     nodes.insert(spec.name, rounded.node.boxed());
/// }
/// write_model(&source, &nodes, "model-w4".as_ref())
/// # }
/// ```
///
/// # Errors
/// `Exists` if `out` is there, or `out.partial` belongs to other work; `InvalidArgument` for a name that is no matrix of
/// the model, `ShapeMismatch` for a node of another shape; those of the source and of the nodes; `Io`. Each names tensor
/// and file where known.
pub fn write_model(
    source: &Source,
    nodes: &BTreeMap<String, Box<dyn Node>>,
    out: &Path,
) -> Result<()> {
    folder::check_target(out, source, false)?;
    check(source, nodes)?;
    // What cannot go along is better said before the work.
    Side::of(source, out)?;
    let (hash, announced) = hash(nodes)?;
    let identity = Identity::of_nodes(source, hash)?;
    let mut work = Work::open(partial_of(out), identity, source.checkpoint(), false)?;
    let done = write_shards(source, nodes, &announced, out, &mut work);
    work.ended(done)
}

fn write_shards(
    source: &Source,
    nodes: &BTreeMap<String, Box<dyn Node>>,
    announced: &BTreeMap<&str, Announced>,
    out: &Path,
    work: &mut Work,
) -> Result<()> {
    work.begin(source.blocks())?;
    // Number 0 has what lies outside the blocks.
    let shard_of = |name: &str| source.block_of(name).map_or(0, |block| block + 1);
    for index in work.units().len()..work.shards() {
        let here = |name: &&String| shard_of(name) == index;
        let mut kept: BTreeMap<&String, Box<dyn Node>> = BTreeMap::new();
        for name in source.trees().keys().filter(here).filter(|name| !nodes.contains_key(*name)) {
            kept.insert(name, source.weight(name)?);
        }
        let given = nodes.iter().filter(|(name, _)| here(name));
        let all = given.chain(kept.iter().map(|(name, node)| (*name, node)));
        let compressed: BTreeMap<&String, &dyn Node> =
            all.map(|(name, node)| (name, &**node)).collect();
        let replaced = |name: &str| {
            compressed.keys().any(|weight| {
                let rest = name.strip_prefix(weight.as_str());
                let part = source.trees().contains_key(*weight);
                rest.is_some_and(|rest| rest.is_empty() || part && rest.starts_with('.'))
            })
        };
        let mut items: Vec<Item<'_>> = Vec::new();
        for (name, node) in &compressed {
            let announced = announced.get(name.as_str());
            items.push(Item::Compressed { name: (*name).clone(), node: *node, announced });
        }
        let names = source.checkpoint().names();
        let copied = names.filter(|name| shard_of(name) == index && !replaced(name));
        items.extend(copied.map(|name| Item::Copied(name.to_owned())));
        let written = shard::write(&work.shard(index), source, &items)?;
        work.finished(written.unit(Vec::new()))?;
        source.checkpoint().release();
    }
    let plain = nodes.is_empty() && source.trees().is_empty();
    let config = if plain { source.raw_config().clone() } else { finish::config(source)? };
    finish::assemble(work, source, out, &config)?;
    finish::publish(work, out, false)
}

/// Every node stands for a matrix of its shape.
fn check(source: &Source, nodes: &BTreeMap<String, Box<dyn Node>>) -> Result<()> {
    let blocks = (0..source.blocks()).flat_map(|block| source.linears(block));
    let specs: Vec<_> = blocks.collect();
    let in_stack =
        |spec: &&LinearSpec| spec.place.as_ref().is_some_and(|place| place.tensor != spec.name);
    let stacked: Vec<&String> = specs.iter().filter(in_stack).map(|spec| &spec.name).collect();
    let mut matrices: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    matrices.extend(tables::names(source)?);
    for (name, node) in nodes {
        if !matrices.contains(name) {
            return Err(Error::invalid("is no matrix of the model").in_tensor(name));
        }
        if stacked.contains(&name) {
            let message = "lies in a stack of matrices: nodes cannot take the place of one of them";
            return Err(Error::unsupported(message).in_tensor(name));
        }
        let (is, was) = (node.shape(), source.weight(name)?.shape());
        if is != was {
            return Err(Error::shape(format!("a node of {is:?} for {was:?}")).in_tensor(name));
        }
    }
    Ok(())
}

/// A hash of all nodes, descriptions and parts, and what parts each has. That a node is asked once more when its shard
/// is written cannot be helped: the hash decides whether there is anything to write, and nobody holds the bytes
/// meanwhile.
fn hash(nodes: &BTreeMap<String, Box<dyn Node>>) -> Result<(String, BTreeMap<&str, Announced>)> {
    struct Hash {
        sum: Xxh3,
        announced: Announced,
    }
    impl PartSink for Hash {
        fn part(&mut self, part: Part<'_>) -> Result<()> {
            self.sum.update(part.name.as_bytes());
            self.sum.update(&part.bytes);
            self.announced.part(part)
        }
    }
    let mut hash = Hash { sum: Xxh3::new(), announced: Announced::default() };
    let mut announced = BTreeMap::new();
    for (name, node) in nodes {
        hash.sum.update(node.describe().to_string().as_bytes());
        node.parts(name, &mut hash).in_tensor(name)?;
        announced.insert(name.as_str(), std::mem::take(&mut hash.announced));
    }
    Ok((format!("{:032x}", hash.sum.digest128()), announced))
}
