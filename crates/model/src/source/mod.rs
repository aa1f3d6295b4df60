//! An opened model: its configuration, its checkpoint, and whatever can be loaded from them.

mod decoded;
mod edit;
mod files;
mod head;
mod images;
mod load;
mod loose;
mod names;
mod parts;
mod said;
mod tensors;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tensorpress_tensor::checkpoint::{Files, Folder, explain_missing, refuse_lfs_pointer};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Checkpoint, Context, Error, Registry, Result};

use crate::architecture::{Plan, RopePlan};
use crate::config::Config;
use crate::layers::Rope;
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use loose::Unknown;
use names::{check_named, named};

pub use tensorpress_tensor::rewrite::LinearSpec;

/// An opened model. Weights are mapped, or lie coded in a packed file, until they are asked for.
///
/// ```
/// use tensorpress_model::Source;
/// use tensorpress_tensor::Registry;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let source = Source::demo(&Registry::default())?;
/// let linears: usize = (0..source.blocks()).map(|block| source.linears(block).len()).sum();
/// assert_eq!(linears, 7 * source.blocks());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Source {
    config: Config,
    raw: Value,
    checkpoint: Checkpoint,
    folder: Option<PathBuf>,
    files: Option<Arc<dyn Files>>,
    trees: BTreeMap<String, Json>,
    registry: Registry,
    tokenizer: TokenizerFiles,
    /// With the names of this checkpoint.
    plan: Plan,
    /// Why nothing is known but the tensors, if that is so.
    unknown: Option<Unknown>,
    notes: Vec<String>,
    /// Rotations that were made, for all blocks that have the same.
    ropes: Mutex<Vec<(RopePlan, Arc<Rope>)>>,
}

const CONFIG: &str = "config.json";

impl Source {
    /// Opens a Hugging Face folder, compressed or not; `registry` reads the compressed weights.
    ///
    /// # Errors
    /// `Io` where `config.json` cannot be read; `InsufficientData` for a tensor that the model needs, that an index names
    /// and no file has, naming both; those of [`Config::from_json`] and [`Checkpoint::open`].
    pub fn open(path: impl AsRef<Path>, registry: &Registry) -> Result<Self> {
        let mut source = Self::open_in(Arc::new(Folder::new(&path)), registry)?;
        source.folder = Some(path.as_ref().to_path_buf());
        Ok(source)
    }

    /// [`Source::open`] of a folder that lies anywhere, such as inside a packed file.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_in(files: Arc<dyn Files>, registry: &Registry) -> Result<Self> {
        if !files.contains(CONFIG)
            && let Some(error) = explain_missing(&*files)
        {
            return Err(error);
        }
        let (raw, file) = parsed(&*files)?;
        // The config is judged before a weight is touched.
        Config::from_json(&raw, &file)?;
        let checkpoint = Checkpoint::open_in(&*files)?;
        let tokenizer = TokenizerFiles::Files(files.clone());
        Self::new(raw, checkpoint, Some(files), tokenizer, registry)
    }

    /// A model from its pieces: a parsed `config.json`, a checkpoint, and where there is one the text of
    /// `tokenizer.json` and of `tokenizer_config.json`.
    ///
    /// # Errors
    /// Those of [`Config::from_json`]; `Corruption` if trees of compressed weights are invalid.
    pub fn from_parts(
        config: Value,
        checkpoint: Checkpoint,
        tokenizer: Option<Vec<u8>>,
        tokenizer_config: Option<Vec<u8>>,
        registry: &Registry,
    ) -> Result<Self> {
        let files = TokenizerFiles::Memory { tokenizer, config: tokenizer_config };
        Self::new(config, checkpoint, None, files, registry)
    }

    fn new(
        raw: Value,
        checkpoint: Checkpoint,
        files: Option<Arc<dyn Files>>,
        tokenizer: TokenizerFiles,
        registry: &Registry,
    ) -> Result<Self> {
        let file = files.as_ref().map_or_else(|| CONFIG.into(), |f| f.path(CONFIG));
        let config = Config::from_json(&raw, &file)?;
        let trees = checkpoint.trees()?;
        let contains = |name: &str| checkpoint.contains(name) || trees.contains_key(name);
        let missing: BTreeSet<&str> = checkpoint.missing().collect();
        let (claims, alias) =
            (|name: &str| missing.contains(name), |name: &str| checkpoint.alias(name));
        let plan = named(config.plan(&raw, &file)?, &contains, &claims, &alias);
        check_named(&checkpoint, &plan)?;
        Ok(Self {
            config,
            raw,
            notes: checkpoint.notes().to_vec(),
            checkpoint,
            folder: None,
            files,
            trees,
            registry: registry.clone(),
            tokenizer,
            plan,
            unknown: None,
            ropes: Mutex::default(),
        })
    }

    /// Says which folder on disk the model lies in: where it was opened through a view of that folder.
    #[must_use]
    pub fn with_folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.folder = Some(path.into());
        self
    }

    /// The validated configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `config.json` as it stands.
    #[must_use]
    pub fn raw_config(&self) -> &Value {
        &self.raw
    }

    /// The stored tensors.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What a reader of this model should be told: of its files, see [`Checkpoint::notes`], and that it is taken as tensors
    /// alone.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where the model lies, if it is a folder on disk.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The files the model lies among, if it was not made from pieces.
    #[must_use]
    pub fn files(&self) -> Option<&dyn Files> {
        self.files.as_deref()
    }

    /// Number of transformer blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.config.blocks
    }

    /// Trees of the compressed weights, by weight name.
    #[must_use]
    pub fn trees(&self) -> &BTreeMap<String, Json> {
        &self.trees
    }

    /// How a model with this `config.json` and these tensors would compute otherwise than this one: nothing if it would not.
    /// What is said is where the two differ, for a person.
    ///
    /// # Errors
    /// Those of [`Config::from_json`].
    pub fn computes_otherwise(&self, config: &Value) -> Result<Option<String>> {
        let file = self.config_file();
        let other = Config::from_json(config, &file)?;
        let plan = named(
            other.plan(config, &file)?,
            &|name| self.checkpoint.contains(name) || self.trees.contains_key(name),
            &|_| false,
            &|name| self.checkpoint.alias(name),
        );
        // What is told of texts is not computed.
        let said = |config: &Config| {
            let mut json = serde_json::to_value(config).unwrap_or_default();
            [
                "architecture",
                "context",
                "bos",
                "eos",
                "tied",
                "qkv_bias",
                "output_bias",
                "mlp_bias",
            ]
            .iter()
            .for_each(|key| drop(json.as_object_mut().map(|json| json.remove(*key))));
            json
        };
        let (ours, theirs) = (said(&self.config), said(&other));
        let keys = ours.as_object().into_iter().flatten().map(|(key, _)| key);
        let differs = |key: &&String| {
            difference(&ours[*key].to_string(), &theirs[*key].to_string()).is_some()
        };
        if let Some(key) = keys.into_iter().find(differs) {
            return Ok(Some(format!("`{key}` is {}, there {}", ours[key], theirs[key])));
        }
        let found = difference(&format!("{:?}", self.plan), &format!("{plan:?}"));
        Ok(found.map(|(ours, theirs)| format!("`{ours}`, there `{theirs}`")))
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// `Io` if `tokenizer.json` is missing, `Corruption` if it is invalid; each names the file.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::load(&self.tokenizer, &self.config)
    }

    fn config_file(&self) -> PathBuf {
        self.files.as_ref().map_or_else(|| CONFIG.into(), |f| f.path(CONFIG))
    }
}

/// The first place where two texts differ by more than the rounding of a number, with a few words around it.
fn difference(ours: &str, theirs: &str) -> Option<(String, String)> {
    let is_break = |c: char| !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '+'));
    let (mut a, mut b) = (ours.split_inclusive(is_break), theirs.split_inclusive(is_break));
    let mut before = String::new();
    let same = |a: &str, b: &str| {
        let number = |text: &str| text.trim_end_matches(is_break).parse::<f64>();
        let close = |(a, b): (f64, f64)| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
        let ends = a.ends_with(is_break) == b.ends_with(is_break);
        a == b || ends && number(a).ok().zip(number(b).ok()).is_some_and(close)
    };
    loop {
        let (one, other) = match (a.next(), b.next()) {
            (None, None) => return None,
            (Some(one), Some(other)) if same(one, other) => {
                if one.ends_with([',', '{', '(', '[']) {
                    before.clear();
                } else {
                    before += one;
                }
                continue;
            }
            (one, other) => (one.unwrap_or_default(), other.unwrap_or_default()),
        };
        return Some((format!("{before}{one}"), format!("{before}{other}")));
    }
}

/// The contents of `config.json`, and what errors call it.
fn parsed(files: &dyn Files) -> Result<(Value, PathBuf)> {
    let file = files.path(CONFIG);
    let text = files.read(CONFIG)?;
    refuse_lfs_pointer(&text, text.len() as u64).in_file(&file)?;
    let raw = crate::config::text::parse(&text)
        .map_err(|e| Error::corruption(format!("invalid JSON: {e}")).in_file(&file))?;
    Ok((raw, file))
}

/// Names tensor and file in an error.
fn at<T>(result: Result<T>, tensor: &str, file: Option<&Path>) -> Result<T> {
    let result = result.in_tensor(tensor);
    match file {
        Some(file) => result.in_file(file),
        None => result,
    }
}
