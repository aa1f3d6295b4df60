//! Importance matrices from the activations of a calibration text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tensorpress_formats::gguf::model::Arch;
use tensorpress_formats::imatrix::{Imatrix, Squares};
use tensorpress_model::Source;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Context as _, Error, Result};

use super::super::advance::Stream;
use super::super::{CalibrationText, Event, Progress, check_cancelled};

/// Makes an importance matrix: runs a text through the model and sums the squares of what each matrix of its blocks reads,
/// as llama.cpp's `imatrix` does (embedding and head are left out, as there by default).
///
/// One block is in memory at a time, beside the hidden states of the text.
///
/// ```no_run
/// use tensorpress::pipeline::{CalibrationText, Convert, Importance};
/// use tensorpress::prelude::*;
///
/// # fn main() -> Result<()> {
/// let source = open_model("model")?;
/// let text = std::fs::read_to_string("text.txt").expect("a text");
/// let importance = Importance::new(CalibrationText::new(text)).run(&source)?;
/// std::fs::write("model.imatrix.gguf", importance.write()?).expect("a file");
/// Convert::new("gguf(IQ2_XS)".parse()?).with_importance(importance).run(&source, "model.gguf".as_ref())?;
/// # Ok(())
/// # }
/// ```
pub struct Importance<'a> {
    text: CalibrationText,
    progress: Option<&'a mut dyn Progress>,
    cancel: Option<Arc<AtomicBool>>,
}

impl std::fmt::Debug for Importance<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Importance").field("text", &self.text).finish_non_exhaustive()
    }
}

/// Sums and counts of the experts of one tensor, by number.
type Parts = BTreeMap<usize, (Vec<f32>, f32)>;

impl<'a> Importance<'a> {
    /// Of what this text makes of activations.
    #[must_use]
    pub fn new(text: CalibrationText) -> Self {
        Self { text, progress: None, cancel: None }
    }

    /// Tells `progress` what happens.
    #[must_use]
    pub fn with_progress(mut self, progress: &'a mut dyn Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Stops with `Interrupted` soon after `cancel` becomes true.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Runs the text through `source`.
    ///
    /// # Errors
    /// `Unsupported` for an architecture that has no names in GGUF files, or cannot be run; `Numerical` where activations
    /// overflow, naming the matrix; those of the source and of the text; `Interrupted`.
    pub fn run(mut self, source: &Source) -> Result<Imatrix> {
        source.need_forward()?;
        let kind = source.raw_config()["model_type"].as_str().unwrap_or_default();
        let Some(arch) = Arch::of_folder(kind) else {
            let what = format!("`model_type` = {kind}: no architecture with names in GGUF files");
            return Err(Error::unsupported(what));
        };
        let samples = self.text.samples(source)?;
        let blocks = source.blocks();
        let mut found: BTreeMap<String, Parts> = BTreeMap::new();
        if let Some(progress) = &mut self.progress {
            progress.event(Event::Begun { blocks, resumed: 0 });
        }
        for (stack, (range, _)) in source.config().stacks().iter().enumerate() {
            let mut stream = Stream::begin(source, stack, &samples, None, false)?;
            for block in range.clone() {
                check_cancelled(self.cancel.as_deref())?;
                if let Some(progress) = &mut self.progress {
                    let stage = "importance";
                    progress.event(Event::Judged { stage, block, blocks });
                }
                let inputs = stream.watch(&source.block(block)?, &|_| Needs::MOMENTS)?;
                for spec in source.linears(block) {
                    let Some((place, expert)) = arch.to_file(&spec.name) else { continue };
                    let Some(seen) = inputs.get(&spec.input) else { continue };
                    let moments = seen.moments().in_tensor(&spec.name)?;
                    let sums = moments.sum_of_squares().iter().map(|sum| *sum as f32).collect();
                    let parts = found.entry(place.name).or_default();
                    parts.insert(expert.unwrap_or(0), (sums, moments.tokens() as f32));
                }
                source.checkpoint().release();
            }
        }
        let mut made = Imatrix::default();
        made.chunks = samples.windows.len() as u32;
        made.chunk_size = samples.windows.iter().map(Vec::len).max().unwrap_or(0) as u32;
        made.datasets =
            self.text.text.file().map(|path| path.display().to_string()).into_iter().collect();
        for (name, parts) in found {
            let squares = squares(parts).in_tensor(&name)?;
            made.matrices.insert(name, squares);
        }
        Ok(made)
    }
}

/// One tensor's, an expert after the other; those that no token came to are 0 of 0.
fn squares(parts: Parts) -> Result<Squares> {
    let experts = parts.keys().last().map_or(0, |last| last + 1);
    let inputs = parts.values().map(|(sums, _)| sums.len()).max().unwrap_or(0);
    let (mut sums, mut counts) = (vec![0.0; experts * inputs], vec![0.0; experts]);
    for (expert, (own, count)) in parts {
        sums[expert * inputs..][..own.len()].copy_from_slice(&own);
        counts[expert] = count;
    }
    Squares::new(sums, counts)
}
