use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tensorpress_model::{BlockShape, Source};

use super::mix::{Outlook, Point};
use super::peak::peak_rss_bytes;
use crate::bill::Bill;

/// What became of one matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name of the weight.
    pub name: String,
    /// The stages that compressed it.
    pub method: String,
    /// 8 x bytes of all its parts over the number of its weights.
    pub bits_per_weight: f64,
    /// Relative error. Of a calibrated run: of the output on up to 256 sampled inputs, ‖X(W-Ŵ)ᵀ‖ / ‖XWᵀ‖; else of the
    /// weight, ‖W-Ŵ‖ / ‖W‖. Nothing where that is not finite, and for a matrix that only lost rows or columns.
    pub error: Option<f64>,
    /// Why the method did less than asked, if it did.
    pub fallback: Option<String>,
}

/// What rewrites left of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlockReport {
    /// Its number in the source, from 0.
    pub block: usize,
    /// Heads and channels it had.
    pub before: BlockShape,
    /// Heads and channels it has; all 0 if the block went.
    pub after: BlockShape,
}

/// What became of a model.
///
/// ```
/// use tensorpress::prelude::*;
///
/// # fn main() -> Result<()> {
/// let folder = tempfile::tempdir().expect("a folder");
/// let source = Source::demo(&registry())?;
/// let report = Compressor::new(Recipe::parse("rtn(bits=4, group=64)")?)
///     .run(&source, &folder.path().join("w4"))?;
/// assert!(report.bits_per_weight < 5.0 && report.layers.iter().all(|layer| layer.fallback.is_none()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
#[must_use]
pub struct Report {
    /// Length of the weight files before.
    pub bytes_before: u64,
    /// Length of the weight files after.
    pub bytes_after: u64,
    /// 8 x bytes of all parts of the compressed matrices over the number of their weights.
    pub bits_per_weight: f64,
    /// Wall-clock time of this run.
    pub seconds: f64,
    /// The largest memory the process had at a time, where the system says so.
    pub peak_rss_bytes: Option<u64>,
    /// The compressed matrices; if the recipe has rewrites, all matrices of the blocks.
    pub layers: Vec<LayerReport>,
    /// What is left of the blocks of the source, if the recipe has rewrites.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<BlockReport>,
    /// What of the source's folder did not go along, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What became of tensors when the result was written in another format
    /// ([`Compressor::with_format`](super::Compressor::with_format)).
    #[cfg(feature = "formats")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub converted: Vec<super::Converted>,
    /// What a mix chose among.
    #[serde(skip)]
    pub outlook: Option<Outlook>,
    /// Bytes of layers that the result holds as floats.
    #[serde(skip)]
    #[cfg_attr(not(feature = "report"), allow(dead_code))]
    pub(super) floats: BTreeMap<String, u64>,
    /// What the result is made of.
    #[serde(skip)]
    pub bill: Bill,
    /// Blocks that an earlier run had finished.
    #[serde(skip)]
    pub resumed_blocks: usize,
}

/// What a model loses by size.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
#[must_use]
pub struct Frontier {
    /// Length of the weight files of the source.
    pub bytes_before: u64,
    /// The sizes that were asked for, ascending; those that were made say what they took.
    pub points: Vec<Point>,
    /// What there is to say of the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall-clock time of this run.
    pub seconds: f64,
    /// The largest memory the process had at a time, where the system says so.
    pub peak_rss_bytes: Option<u64>,
    /// All that is known of other sizes, and of one level for all.
    pub outlook: Outlook,
}

impl Report {
    pub(super) fn new(
        source: &Source,
        written: &Source,
        bill: Bill,
        mut layers: Vec<LayerReport>,
        elapsed: Duration,
        resumed_units: usize,
    ) -> Self {
        // Another format may store the same codes in other bytes, or floats.
        let mut stored_as_floats = BTreeMap::new();
        for layer in &mut layers {
            let (name, stored) = (&layer.name, written.checkpoint());
            let compressed = bill.layers.iter().find(|compressed| compressed.name == *name);
            let floats = || {
                let weights = stored.shape(name)?.iter().product::<usize>();
                let bytes = stored.stored_bytes(name)?;
                stored_as_floats.insert(name.clone(), bytes);
                Some(8.0 * bytes as f64 / weights.max(1) as f64)
            };
            if let Some(bits) = compressed.map(|layer| layer.bits_per_weight).or_else(floats) {
                layer.bits_per_weight = bits;
            }
        }
        Self {
            bytes_before: source.checkpoint().file_bytes(),
            bytes_after: bill.file_bytes,
            bits_per_weight: bill.bits_per_weight,
            seconds: elapsed.as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            layers,
            blocks: Vec::new(),
            notes: Vec::new(),
            #[cfg(feature = "formats")]
            converted: Vec::new(),
            outlook: None,
            floats: stored_as_floats,
            bill,
            resumed_blocks: resumed_units.saturating_sub(1),
        }
    }
}
