//! What a folder of unfinished work belongs to, and how far it has come.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tensorpress_model::Source;
use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::stats::Supplied;
use tensorpress_tensor::{Error, Result};
use xxhash_rust::xxh3::Xxh3;

use super::calibration::Samples;
use super::mix::{Attempt, Decision, Measured};
use super::report::LayerReport;

/// Name of the state file.
pub(super) const STATE: &str = "tensorpress.state.json";
/// Layout of the state file.
const FORMAT: u32 = 3;
/// Contents of checkpoints up to this length are hashed in full.
const FULL: u64 = 256 << 20;
/// Of longer ones: the first bytes of each stride of each tensor, and the last of each tensor.
const STRIDE: usize = 1 << 20;
const SAMPLE: usize = 4096;

/// What decides the bytes of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    format: u32,
    version: String,
    /// Hash of config, tensor names, types, shapes and contents (sampled beyond 256 MiB).
    source: String,
    source_bytes: u64,
    recipe: String,
    /// Hash of the token ids and images.
    calibration: Option<String>,
    calibration_windows: usize,
    calibration_tokens: usize,
    /// Hash of what the caller supplies.
    supplied: Option<String>,
    seed: u64,
}

impl Identity {
    /// `recipe`: all of it, with every key spelled out.
    pub(super) fn new(
        source: &Source,
        recipe: String,
        samples: &Samples,
        supplied: Option<&dyn Supplied>,
        seed: u64,
    ) -> Result<Self> {
        let Samples { windows, images } = samples;
        let given = !windows.is_empty() || images.is_some();
        Ok(Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: hash_source(source)?,
            source_bytes: source.checkpoint().file_bytes(),
            recipe,
            calibration: given.then(|| hash_samples(samples)),
            calibration_windows: windows.len() + images.as_ref().map_or(0, |images| images.dim().0),
            calibration_tokens: windows.iter().map(Vec::len).sum(),
            supplied: supplied.map(hash_supplied).transpose()?,
            seed,
        })
    }

    /// Of nodes that were made elsewhere, known by their hash.
    pub(super) fn of_nodes(source: &Source, nodes: String) -> Result<Self> {
        Self::of_job(source, format!("(nodes made elsewhere, hash {nodes})"))
    }

    /// Of a job without calibration, all of which these words say.
    pub(super) fn of_job(source: &Source, job: String) -> Result<Self> {
        Ok(Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: hash_source(source)?,
            source_bytes: source.checkpoint().file_bytes(),
            recipe: job,
            calibration: None,
            calibration_windows: 0,
            calibration_tokens: 0,
            supplied: None,
            seed: 0,
        })
    }

    /// What was and what is, if that differs.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        let calibration = |id: &Self| match &id.calibration {
            None => "none".to_owned(),
            Some(hash) => format!(
                "{} windows, {} tokens, hash {hash}",
                id.calibration_windows, id.calibration_tokens
            ),
        };
        let supplied = |id: &Self| match &id.supplied {
            None => "nothing".to_owned(),
            Some(hash) => format!("hash {hash}"),
        };
        let source = |id: &Self| format!("{} bytes, hash {}", id.source_bytes, id.source);
        let differ = |what: &str, was: String, is: String| {
            (was != is).then(|| format!("the {what} was `{was}`, is `{is}`"))
        };
        let all = [
            differ("state format", self.format.to_string(), now.format.to_string()),
            differ("version", self.version.clone(), now.version.clone()),
            differ("source", source(self), source(now)),
            differ("recipe", self.recipe.clone(), now.recipe.clone()),
            differ("calibration", calibration(self), calibration(now)),
            differ("caller's supply", supplied(self), supplied(now)),
            differ("seed", self.seed.to_string(), now.seed.to_string()),
        ];
        let all: Vec<String> = all.into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// A shard that is finished: the embeddings, norms and head, or a block.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Unit {
    pub(super) bytes: u64,
    pub(super) layers: Vec<LayerReport>,
    /// What its matrices take in the file that the result becomes, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) in_file: Option<u64>,
    /// What was chosen for them, within a budget.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) decisions: Vec<Decision>,
    /// Of a conversion.
    #[cfg(feature = "formats")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) converted: Vec<super::Converted>,
}

/// A finished file of a rewrite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) bytes: u64,
    pub(super) hash: String,
}

/// How far a rewrite has come.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Steps {
    /// Blocks that are judged.
    pub(super) judged: Vec<Stored>,
    /// What was decided, once all are.
    pub(super) decisions: Option<Stored>,
    /// Blocks whose edits are made.
    pub(super) edits: Vec<Stored>,
    /// The edit of the head, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) head: Option<Stored>,
}

/// The state file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) identity: Identity,
    /// One a rewrite of the recipe, as far as they were begun.
    #[serde(default)]
    pub(super) rewrites: Vec<Steps>,
    /// What a backward pass found, by block, as far as blocks are done.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) gradients: BTreeMap<usize, Stored>,
    /// Bits of the matrices by the step, by block, of methods whose bits all matrices share.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) rates: BTreeMap<usize, BTreeMap<String, RateCurve>>,
    /// What matrices take and lose at levels of a mix, by block; the last has what lies outside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) measured: BTreeMap<usize, BTreeMap<String, Measured>>,
    /// Models that were made and judged, in search of the smallest that keeps a divergence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) attempts: Vec<Attempt>,
    /// The last of them is the result.
    #[serde(default)]
    pub(super) settled: bool,
    /// Bytes that the one which is being made is allowed, once a judgement has said that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    /// What there is to say of what was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
    pub(super) units: Vec<Unit>,
    /// Files of the model that go along as they are, once that is known.
    #[serde(default)]
    pub(super) copied: Vec<String>,
}

impl State {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io("read the state", path, e))?;
        serde_json::from_slice(&text).map_err(|e| {
            Error::corruption(format!("not a state of tensorpress: {e}")).in_file(path)
        })
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        use std::io::Write;
        let text = serde_json::to_vec_pretty(self).expect("a state is JSON");
        tensorpress_tensor::checkpoint::write_atomically(path, &mut |file| {
            file.write_all(&text).map_err(|e| Error::io("write the state", path, e))
        })
    }
}

fn hash_samples(samples: &Samples) -> String {
    let mut hash = Xxh3::new();
    for window in &samples.windows {
        hash.update(&(window.len() as u64).to_le_bytes());
        window.iter().for_each(|id| hash.update(&id.to_le_bytes()));
    }
    for image in samples.images.iter().flat_map(|images| images.outer_iter()) {
        hash.update(b"image");
        image.iter().for_each(|value| hash.update(&value.to_le_bytes()));
    }
    format!("{:032x}", hash.digest128())
}

fn hash_supplied(supplied: &dyn Supplied) -> Result<String> {
    let mut hash = Xxh3::new();
    supplied.identify(&mut hash)?;
    Ok(format!("{:032x}", hash.digest128()))
}

fn hash_source(source: &Source) -> Result<String> {
    let checkpoint = source.checkpoint();
    // As they are read: a view of others may be longer than these.
    let lengths = checkpoint.names().filter_map(|name| checkpoint.stored_bytes(name));
    let full = lengths.sum::<u64>() <= FULL;
    let mut hash = Xxh3::new();
    hash.update(source.raw_config().to_string().as_bytes());
    for name in checkpoint.names() {
        let stored = checkpoint.bytes(name)?;
        hash.update(name.as_bytes());
        let dtype = checkpoint.dtype_name(name).unwrap_or_default();
        hash.update(dtype.as_bytes());
        hash.update(format!("{:?}", checkpoint.shape(name).unwrap_or_default()).as_bytes());
        let bytes: &[u8] = &stored;
        if full {
            hash.update(bytes);
        } else {
            bytes.chunks(STRIDE).for_each(|part| hash.update(&part[..part.len().min(SAMPLE)]));
            hash.update(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
            checkpoint.release();
        }
    }
    checkpoint.release();
    Ok(format!("{:032x}", hash.digest128()))
}
