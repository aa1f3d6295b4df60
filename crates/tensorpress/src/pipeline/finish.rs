//! From the folder of finished shards to the model folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::{name_folder, write_atomically};
use tensorpress_tensor::{Checkpoint, Error, Result};

use super::folder::{LOCK, Work, lock as lock_of};
use super::listing::{LIST, Listing, owned};
use super::side::Side;

const INDEX: &str = "model.safetensors.index.json";

/// Writes what makes the shards a model; the folder has its name yet to come.
pub(super) fn assemble(
    work: &mut Work,
    source: &Source,
    out: &Path,
    config: &serde_json::Value,
) -> Result<()> {
    let folder = work.folder().to_path_buf();
    write_index(work, &folder)?;
    write_json(&folder.join("config.json"), config)?;
    let side = Side::of(source, out)?;
    work.copies(side.names())?;
    side.copy(&folder)?;
    Listing::of(&folder, &side.names())?.write(&folder)
}

/// Gives an [assembled](assemble) folder its name.
pub(super) fn publish(work: &mut Work, out: &Path, force: bool) -> Result<()> {
    let folder = work.folder().to_path_buf();
    // What is there now is looked at now.
    let had = force && fs::symlink_metadata(out).is_ok();
    let replaced = had.then(|| owned(out)).transpose()?;
    let (leftovers, lock) = work.close();
    // Nobody takes the old folder for unfinished work as it goes.
    let old_lock = (had && lock.is_some()).then(|| lock_of(out)).transpose()?;
    let replaced = replaced.map(|mut list| {
        // What says of the others that they are ours goes last.
        list.sort_by_key(|name| name == LIST);
        list.push(LOCK.to_owned());
        list
    });
    name_folder(&folder, out, replaced.as_deref())?;
    for name in leftovers {
        // The model is there and whole; a leftover state file harms nobody.
        let _ = fs::remove_file(out.join(name));
    }
    drop((lock, old_lock));
    Ok(())
}

fn write_index(work: &Work, folder: &Path) -> Result<()> {
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    for index in 0..work.shards() {
        let path = work.shard(index);
        let shard = Checkpoint::open(&path)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for name in shard.names() {
            total += shard.stored_bytes(name).unwrap_or(0);
            weight_map.insert(name.to_owned(), file.clone());
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&folder.join(INDEX), &index)
}

/// The source's config, and the note that weights are ours.
pub(super) fn config(source: &Source) -> Result<serde_json::Value> {
    let mut config = source.raw_config().clone();
    // The shapes of blocks may stand there already.
    config["quantization_config"]["quant_method"] = json!("tensorpress");
    config["quantization_config"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    // A node has two axes; what it was made of may have had more.
    let shapes: BTreeMap<String, &[usize]> = (0..source.blocks())
        .flat_map(|block| source.linears(block).into_iter().map(|spec| spec.name))
        .chain(super::tables::names(source)?)
        .filter_map(|name| Some((source.checkpoint().shape(&name)?, name)))
        .filter(|(shape, _)| shape.len() > 2)
        .map(|(shape, name)| (name, shape))
        .collect();
    if !shapes.is_empty() {
        config["quantization_config"]["shapes"] = json!(shapes);
    }
    Ok(config)
}

fn write_json(path: &Path, json: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(json).expect("a value is JSON");
    write_atomically(path, &mut |file| {
        file.write_all(&text).map_err(|e| Error::io("write the file", path, e))
    })
}
