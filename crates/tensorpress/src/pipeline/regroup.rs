//! Finished shards written anew as files of a given length.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};
use tensorpress_tensor::checkpoint::{Announced, write_announced};
use tensorpress_tensor::{Checkpoint, Context as _, DType, Part, PartKind, Result};

use super::folder::Work;

/// Tensors that stay together: a matrix with all its parts, or one tensor.
struct Piece {
    shard: usize,
    /// What the shard's description says of the matrix, under its name.
    tree: Option<(String, Value)>,
    tensors: Vec<String>,
    /// Bytes that it takes of a file at most, of the header too.
    bytes: u64,
}

/// What a header says of one tensor beside its name and lengths: type, offsets, brackets and marks.
const ENTRY: u64 = 96;
/// What begins a header: its length and format, and padding.
const BEGIN: u64 = 64;

/// Writes the finished shards of a work anew as files of at most `most` bytes, and gives their length together. A piece that
/// is longer by itself has a file of its own. `begun` hears of each file, and how many there are; its error leaves work that
/// is resumed.
pub(super) fn regroup(
    work: &mut Work,
    most: u64,
    begun: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<u64> {
    let shards: Vec<Checkpoint> = (0..work.shards())
        .map(|index| Checkpoint::open(work.shard(index)))
        .collect::<Result<_>>()?;
    let mut files: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for (index, shard) in shards.iter().enumerate() {
        for piece in pieces(index, shard)? {
            match files.last_mut().filter(|_| piece.bytes <= room) {
                Some(file) => {
                    room -= piece.bytes;
                    file.push(piece);
                }
                None => {
                    room = most.saturating_sub(BEGIN).saturating_sub(piece.bytes);
                    files.push(vec![piece]);
                }
            }
        }
    }
    let mut bytes = 0;
    for (index, pieces) in files.iter().enumerate() {
        begun(index, files.len())?;
        bytes += write(work.regrouped(index), &shards, pieces)?;
    }
    drop(shards);
    work.regroup(files.len())?;
    Ok(bytes)
}

/// The pieces of a shard, in the order of its names.
fn pieces(index: usize, shard: &Checkpoint) -> Result<Vec<Piece>> {
    let trees = shard.trees()?;
    let mut matrices: BTreeMap<&str, Piece> = BTreeMap::new();
    let mut alone = Vec::new();
    for name in shard.names() {
        let matrix = trees.get_key_value(name).or_else(|| {
            let prefixes = name.match_indices('.').map(|(at, _)| &name[..at]);
            prefixes.rev().find_map(|prefix| trees.get_key_value(prefix))
        });
        let lengths = 21 * shard.shape(name).map_or(0, <[usize]>::len) as u64;
        let own = 6 * name.len() as u64 + lengths + ENTRY;
        let bytes = own + shard.stored_bytes(name).unwrap_or(0);
        let Some((matrix, tree)) = matrix else {
            alone.push(Piece { shard: index, tree: None, tensors: vec![name.to_owned()], bytes });
            continue;
        };
        let piece = matrices.entry(matrix).or_insert_with(|| {
            let tree = (matrix.clone(), tree.clone());
            // Marks are escaped in a text within a text.
            let said = 2 * (tree.0.len() + tree.1.to_string().len()) as u64 + ENTRY;
            Piece { shard: index, tree: Some(tree), tensors: Vec::new(), bytes: said }
        });
        piece.tensors.push(name.to_owned());
        piece.bytes += bytes;
    }
    let mut all: Vec<Piece> = matrices.into_values().chain(alone).collect();
    for piece in &mut all {
        let said =
            piece.aliases(shard).map(|(alias, name)| 6 * (alias.len() + name.len()) as u64 + ENTRY);
        piece.bytes += said.sum::<u64>();
    }
    Ok(all)
}

impl Piece {
    /// What a shard's metadata says of tensors that this piece stands for.
    fn aliases<'a>(
        &'a self,
        shard: &'a Checkpoint,
    ) -> impl Iterator<Item = (&'a String, &'a String)> {
        let matrix = self.tree.as_ref().map(|(name, _)| name);
        let here = move |name: &String| matrix == Some(name) || self.tensors.contains(name);
        shard.metadata().flatten().filter(move |(_, name)| here(name))
    }
}

fn write(path: PathBuf, shards: &[Checkpoint], pieces: &[Piece]) -> Result<u64> {
    let mut trees = Map::new();
    let mut metadata = BTreeMap::new();
    let mut announced = Announced::default();
    let mut tensors: Vec<(&Checkpoint, &str)> = Vec::new();
    for piece in pieces {
        let shard = &shards[piece.shard];
        trees.extend(piece.tree.clone());
        tensors.extend(piece.tensors.iter().map(|name| (shard, name.as_str())));
        let format = shard.metadata().flatten().filter(|(key, _)| *key == "format");
        let said = format.chain(piece.aliases(shard));
        metadata.extend(said.map(|(key, name)| (key.clone(), name.clone())));
    }
    if !trees.is_empty() {
        metadata.insert("tensorpress".to_owned(), Value::Object(trees).to_string());
    }
    for (shard, name) in &tensors {
        let dtype = match shard.dtype_name(name) {
            Some(dtype) => dtype,
            None => shard.dtype(name)?.name(),
        };
        let shape = shard.shape(name).unwrap_or_default().to_vec();
        let bytes = shard.stored_bytes(name).unwrap_or(0);
        announced.announce_stored((*name).to_owned(), dtype, shape, bytes)?;
    }
    let bytes = write_announced(&path, &metadata, announced, &mut |sink| {
        for (shard, name) in &tensors {
            let stored = shard.bytes(name).in_tensor(name)?;
            let (shape, kind) = (vec![stored.len()], PartKind::Values);
            let bytes = Cow::Borrowed(&*stored);
            sink.part(Part { name: (*name).to_owned(), kind, dtype: DType::U8, shape, bytes })?;
            shard.release();
        }
        Ok(())
    })?;
    Ok(bytes)
}
