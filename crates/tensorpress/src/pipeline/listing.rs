//! Which files are ours: what a finished folder lists, and what unfinished work makes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tensorpress_tensor::checkpoint::{find_foreign, is_temporary, stays_inside, write_atomically};
use tensorpress_tensor::{Error, Result};

use super::folder::{BACKWARD, LOCK, REGROUPED, REWRITE};
use super::rewrite::stored;
use super::state::{STATE, Stored};

/// A GGUF file before it has its name.
pub(super) const UNFINISHED_GGUF: &str = "model.gguf.unfinished";

/// Name of the list in a finished folder.
pub(super) const LIST: &str = "tensorpress-files.json";
/// Layout of the list.
const FORMAT: u32 = 1;

/// What a finished folder consists of, but for the list itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listing {
    format: u32,
    version: String,
    /// Paths relative to the folder.
    files: BTreeMap<String, Stored>,
}

impl Listing {
    /// Of all files of the folder that are made or, by these paths, copied. What else is there is nothing of ours.
    pub(super) fn of(folder: &Path, copied: &[String]) -> Result<Self> {
        let mut files = BTreeMap::new();
        let all = &mut |name: &str| {
            let ours = is_of_model(name) || copied.iter().any(|copied| copied == name);
            if name != LIST && ours && !is_of_work(name) {
                files.insert(name.to_owned(), stored(&folder.join(name))?);
            }
            Ok(true)
        };
        if let Some(name) = find_foreign(folder, all)? {
            return Err(Error::exists("is not ours, and in the way").in_file(folder.join(name)));
        }
        Ok(Self { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned(), files })
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(LIST);
        let text = serde_json::to_vec_pretty(self).expect("names and hashes are JSON");
        write_atomically(&path, &mut |file| {
            file.write_all(&text).map_err(|e| Error::io("write the list of files", &path, e))
        })
    }

    /// The list of a folder, if it has one.
    fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(LIST);
        let list = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        let leads_out = |name: &&String| !stays_inside(name);
        match list.as_ref().and_then(|list| list.files.keys().find(leads_out)) {
            Some(name) => {
                let what = format!("names `{name}`, which leads out of its folder");
                Err(Error::invalid(what).in_file(path))
            }
            None => Ok(list),
        }
    }
}

/// Whether a file is one that only unfinished work has.
pub(super) fn is_of_work(name: &str) -> bool {
    // What a killed writer of the version before left.
    let before = || {
        let (target, number) = name.strip_suffix(".tmp")?.rsplit_once('.')?;
        let digits = number.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        (digits && (target == STATE || is_of_model(target))).then_some(())
    };
    name == STATE
        || name == LOCK
        || name == UNFINISHED_GGUF
        || name.starts_with(REWRITE)
        || name.starts_with(BACKWARD)
        || name.starts_with(REGROUPED)
        || is_temporary(name)
        || before().is_some()
}

/// Whether a file is one that the pipeline makes of a model.
pub(super) fn is_of_model(name: &str) -> bool {
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let numbers = shard.and_then(|rest| rest.split_once("-of-"));
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(index, count)| digits(index) && digits(count))
        || matches!(name, "config.json" | "model.safetensors.index.json" | LIST)
}

/// Files that stand beside the weights of models, which version 0.1.0 copied and did not list.
const SIDE: [&str; 18] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "LICENSE",
    "LICENSE.txt",
];

/// The files of a folder, if all of them are ours: as its list says, byte for byte; or, where there is no list, of the
/// names that the version before lists wrote.
///
/// # Errors
/// `InvalidArgument`, naming the first that is not; `Io`.
pub(super) fn owned(folder: &Path) -> Result<Vec<String>> {
    let list = Listing::read(folder)?;
    let before_lists = list.is_none() && says_ours(folder);
    let mut owned = Vec::new();
    let mut changed = false;
    let foreign = find_foreign(folder, &mut |name| {
        let listed = list.as_ref().and_then(|list| list.files.get(name));
        let ours = match listed {
            _ if is_of_work(name) || name == LIST => true,
            Some(listed) => {
                let same = stored(&folder.join(name))? == *listed;
                changed = !same;
                same
            }
            None => before_lists && (is_of_model(name) || SIDE.contains(&name)),
        };
        owned.push(name.to_owned());
        Ok(ours)
    })?;
    match foreign {
        None => Ok(owned),
        Some(name) => {
            let what = if changed { "was changed since" } else { "is not what we wrote there" };
            let message = format!("holds `{name}`, which {what}; not replaced");
            Err(Error::invalid(message).in_file(folder))
        }
    }
}

/// Whether the config of the folder says that its weights are ours.
fn says_ours(folder: &Path) -> bool {
    let text = fs::read(folder.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    config["quantization_config"]["quant_method"] == "tensorpress"
}
