//! From the folder of finished shards to the model folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::json;
use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::write_atomically;
use tensorpress_tensor::{Checkpoint, Context, Error, Result};

use super::folder::{Work, with_suffix};

const INDEX: &str = "model.safetensors.index.json";

/// Writes what makes the shards a model, and gives the folder its name. `plain`: nothing is compressed, and the source's
/// config is that of the result.
pub(super) fn finish(
    work: Work,
    source: &Source,
    out: &Path,
    plain: bool,
    force: bool,
) -> Result<()> {
    let folder = work.folder().to_path_buf();
    write_index(&work, &folder)?;
    let config = if plain { source.raw_config().clone() } else { config(source) };
    write_json(&folder.join("config.json"), &config)?;
    copy_others(source, &folder)?;
    let leftovers = work.close();
    let old = with_suffix(out, ".replaced");
    let had = out.exists();
    if had && !force {
        return Err(Error::exists("exists already").in_file(out));
    }
    if had {
        // Two renames: a crash between them leaves both models, each whole, and the same call ends what is left.
        if old.exists() {
            fs::remove_dir_all(&old).map_err(|e| Error::io("remove the folder", &old, e))?;
        }
        fs::rename(out, &old).map_err(|e| Error::io("move the old folder away", out, e))?;
    }
    fs::rename(&folder, out).map_err(|e| Error::io("give the finished folder its name", out, e))?;
    sync_folder(out.parent());
    for name in leftovers {
        // The model is there and whole; a leftover state file harms nobody.
        let _ = fs::remove_file(out.join(name));
    }
    if old.exists() {
        fs::remove_dir_all(&old).map_err(|e| Error::io("remove the replaced folder", &old, e))?;
    }
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
fn config(source: &Source) -> serde_json::Value {
    let mut config = source.raw_config().clone();
    // The shapes of blocks may stand there already.
    config["quantization_config"]["quant_method"] = json!("tensorpress");
    config["quantization_config"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    config
}

fn write_json(path: &Path, json: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(json).expect("a value is JSON");
    write_file(path, &text)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, &mut |file| {
        file.write_all(bytes).map_err(|e| Error::io("write the file", path, e))
    })
}

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// Tokenizer, generation settings, licence: whatever is small and holds no weights.
fn copy_others(source: &Source, folder: &Path) -> Result<()> {
    let Some(from) = source.files() else {
        return source
            .tokenizer_files()
            .into_iter()
            .try_for_each(|(name, bytes)| write_file(&folder.join(name), bytes));
    };
    for name in from.names()? {
        let kind = Path::new(&name).extension().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = matches!(kind.as_str(), "json" | "txt" | "model" | "jinja" | "tiktoken")
            || name.starts_with("LICENSE")
            || name.starts_with("NOTICE");
        let ours = name == "config.json"
            || name.ends_with(".index.json")
            || name.starts_with("tensorpress.");
        if wanted && !ours {
            let file = from.open(&name)?;
            let to = folder.join(&name);
            write_atomically(&to, &mut |out| {
                for at in (0..file.size()).step_by(PIECE) {
                    let piece = file.read(at..file.size().min(at + PIECE as u64));
                    let piece = piece.in_file(&from.path(&name))?;
                    out.write_all(&piece).map_err(|e| Error::io("copy the file", &to, e))?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Makes a rename durable where the system can.
fn sync_folder(folder: Option<&Path>) {
    let folder = folder.filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
