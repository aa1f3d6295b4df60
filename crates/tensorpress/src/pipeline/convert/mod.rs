//! From everybody's formats to everybody's: codes move over where the target can hold them.

mod folder;
mod gguf;
mod importance;
mod layers;
mod target;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tensorpress_formats::export::fitting;
use tensorpress_formats::imatrix::Imatrix;
use tensorpress_model::Source;
use tensorpress_tensor::{Context as _, DType, Error, Node, Result};
use xxhash_rust::xxh3::xxh3_128;

use super::mix::Outline;
use super::{CalibrationText, Event, Progress, check_cancelled, partial_of};

pub use importance::Importance;
pub use target::{Target, float_type};

/// Converts models.
///
/// Every weight keeps its values, or the call says why it cannot; with [`Convert::with_requantize`] what the target cannot
/// hold is rounded anew, and the report says how far that is. Memory is bounded by a block of the model.
///
/// ```no_run
/// use tensorpress::pipeline::{Convert, Target};
/// use tensorpress::prelude::*;
///
/// # fn main() -> Result<()> {
/// let source = open_model("model.gguf")?;
/// let report = Convert::new(Target::Tensorpress).run(&source, "model".as_ref())?;
/// assert!(report.tensors.iter().all(|tensor| tensor.lossless));
/// # Ok(())
/// # }
/// ```
pub struct Convert<'a> {
    target: Target,
    dtype: Option<DType>,
    requantize: bool,
    importance: Option<Imatrix>,
    calibration: Option<CalibrationText>,
    shard_size: Option<u64>,
    /// Where the work lies, if not beside the target.
    folder: Option<PathBuf>,
    force: bool,
    progress: Option<&'a mut dyn Progress>,
    cancel: Option<Arc<AtomicBool>>,
}

impl std::fmt::Debug for Convert<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { target, dtype, requantize, force, .. } = self;
        f.debug_struct("Convert")
            .field("target", target)
            .field("dtype", dtype)
            .field("requantize", requantize)
            .field("force", force)
            .finish_non_exhaustive()
    }
}

/// Whether a model that is yet to be compressed may go to `out` in this format, as far as is known before.
pub(super) fn check(target: Target, source: &Source, out: &Path, force: bool) -> Result<()> {
    if !target.is_file() {
        return super::folder::check_target(out, source, force);
    }
    gguf::check_target(out, source, force)?;
    gguf::check(source, out)
}

/// The file that the model becomes at `out`, for budgets.
///
/// # Errors
/// `Unsupported` for formats whose matrices are all of one kind.
pub(super) fn outline(target: Target, source: &Source, out: &Path) -> Result<Outline> {
    match target {
        Target::Gguf(None) => gguf::outline(source, out),
        Target::Gguf(Some(_)) => Err(Error::unsupported(format!(
            "a budget with {}, which is one type for all: of gguf, levels name the types, such as ggml(type=Q4_K)",
            target.name()
        ))),
        _ => Err(Error::unsupported(format!(
            "a budget with {}: its matrices are all of one kind; gguf and our own folders hold a mix",
            target.name()
        ))),
    }
}

/// Whether a format holds what a recipe has made of some matrices, by name.
///
/// # Errors
/// `Unsupported`, naming the first that it does not hold.
pub(super) fn check_nodes(target: Target, nodes: &[(String, Box<dyn Node>)]) -> Result<()> {
    match target {
        Target::Gguf(Some(_)) | Target::Tensorpress | Target::Safetensors => return Ok(()),
        Target::Gguf(None) => {
            let fits =
                |(name, node): &(String, Box<dyn Node>)| fitting(&**node).map(drop).in_tensor(name);
            return nodes.iter().try_for_each(fits);
        }
        _ => {}
    }
    let kinds = nodes
        .iter()
        .map(|(name, node)| Ok((name.clone(), layers::kind(target, &**node).in_tensor(name)?)));
    let kinds = kinds.collect::<Result<Vec<_>>>()?;
    // Widths are for what is rounded anew.
    let scheme = layers::scheme(target, &kinds, &[], false)?;
    nodes.iter().try_for_each(|(name, node)| {
        layers::tensors(target, scheme, name, &**node).map(drop).in_tensor(name)
    })
}

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Converted {
    /// Its name in the source.
    pub name: String,
    /// What it was: the node's kind, or the element type.
    pub from: String,
    /// What it is.
    pub to: String,
    /// All values are what they were.
    pub lossless: bool,
    /// `‖W - Ŵ‖ / ‖W‖`, where they are not.
    pub error: Option<f64>,
}

/// What came of a conversion.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ConversionReport {
    /// What the model was converted to.
    pub target: String,
    /// Length of the source's weight files.
    pub bytes_before: u64,
    /// Length of the result's.
    pub bytes_after: u64,
    /// Matrices, and all tensors whose type or values changed.
    pub tensors: Vec<Converted>,
    /// What a reader of the result should be told.
    pub notes: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
    /// The most memory that was resident, where the system tells it.
    pub peak_rss_bytes: Option<u64>,
}

impl<'a> Convert<'a> {
    /// A conversion to this target.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            dtype: None,
            requantize: false,
            importance: None,
            calibration: None,
            shard_size: None,
            folder: None,
            force: false,
            progress: None,
            cancel: None,
        }
    }

    /// Sets the type of floats: of all tensors of [`Target::Safetensors`], of what no integers hold of others. Default: the
    /// type that a tensor has, or the narrowest that holds a decoded one exactly.
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Rounds anew what the target cannot hold. Default false: that is an error.
    #[must_use]
    pub fn with_requantize(mut self, requantize: bool) -> Self {
        self.requantize = requantize;
        self
    }

    /// Weighs the inputs of matrices that are quantised to [`Target::Gguf`] with a type, by their names in the file; ggml's
    /// quantisers are other ones then, and IQ1_S, IQ2_XXS and IQ2_XS are made with it alone. Matrices that it does not know
    /// are quantised without.
    #[must_use]
    pub fn with_importance(mut self, importance: Imatrix) -> Self {
        self.importance = Some(importance);
        self
    }

    /// Makes the importance of [`Convert::with_importance`] of this text, unless it is given: see [`Importance`].
    #[must_use]
    pub fn with_calibration(mut self, text: CalibrationText) -> Self {
        self.calibration = Some(text);
        self
    }

    /// Sets how long a file of a folder may be, in bytes, its header included. A tensor (of our own folders: a matrix with
    /// all its parts) that is longer by itself has a file of its own. Default: a file for each block. Takes as much room
    /// again on the disk, until the folder is done.
    #[must_use]
    pub fn with_shard_size(mut self, bytes: u64) -> Self {
        self.shard_size = Some(bytes);
        self
    }

    /// Puts the work into this folder.
    pub(super) fn with_folder(mut self, folder: PathBuf) -> Self {
        self.folder = Some(folder);
        self
    }

    /// Where the work on `out` lies.
    fn folder(&self, out: &Path) -> PathBuf {
        self.folder.clone().unwrap_or_else(|| partial_of(out))
    }

    /// Replaces the target if it is there and ours, and begins anew where `OUT.partial` belongs to other work.
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
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

    /// Converts `source` to `out`, a folder or a file as the target is. It appears whole or not at all; work lies in
    /// `OUT.partial` meanwhile, and the same call takes it up again.
    ///
    /// # Errors
    /// `Exists` if `out` is there and is not to be replaced, or `OUT.partial` belongs to other work; `Unsupported`, naming
    /// the tensor, for what the target cannot hold, with what would do; `InvalidArgument` for importance where [`Target::Gguf`] has no type; those of the source; `Io`.
    pub fn run(mut self, source: &Source, out: &Path) -> Result<ConversionReport> {
        let begun = Instant::now();
        source.checkpoint().check_unmoved()?;
        let typed = matches!(self.target, Target::Gguf(Some(_)));
        if !typed && (self.importance.is_some() || self.calibration.is_some()) {
            let name = self.target.name();
            let what =
                format!("importance weighs what gguf(TYPE) quantises: {name} has no use for it");
            return Err(Error::invalid(what));
        }
        if let (None, Some(text)) = (&self.importance, self.calibration.take()) {
            let mut job = Importance::new(text);
            if let Some(cancel) = &self.cancel {
                job = job.with_cancel(cancel.clone());
            }
            if let Some(progress) = self.progress.as_deref_mut() {
                job = job.with_progress(progress);
            }
            self.importance = Some(job.run(source)?);
        }
        let mut report = match self.target {
            Target::Gguf(ty) => gguf::convert(&mut self, source, out, ty)?,
            _ => folder::convert(&mut self, source, out)?,
        };
        report.seconds = begun.elapsed().as_secs_f64();
        report.peak_rss_bytes = super::peak_rss_bytes();
        self.tell(Event::Finished);
        Ok(report)
    }

    fn tell(&mut self, event: Event<'_>) {
        if let Some(progress) = &mut self.progress {
            progress.event(event);
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        check_cancelled(self.cancel.as_deref())
    }

    /// All that decides what the conversion does.
    fn identity(&self) -> Result<String> {
        let dtype = self.dtype.map_or("kept", DType::name);
        let name = self.target.name();
        let hash = |imatrix: &Imatrix| imatrix.write().map(|bytes| xxh3_128(&bytes));
        let importance = match &self.importance {
            None => String::new(),
            Some(imatrix) => format!(", importance {:032x}", hash(imatrix)?),
        };
        let requantize = self.requantize;
        let shards = self.shard_size.map_or(String::new(), |most| format!(", shards of {most}"));
        Ok(format!(
            "(convert to {name}, floats {dtype}, requantize {requantize}{importance}{shards})"
        ))
    }

    fn report(&self, source: &Source) -> ConversionReport {
        ConversionReport {
            target: self.target.name(),
            bytes_before: source.checkpoint().file_bytes(),
            bytes_after: 0,
            tensors: Vec::new(),
            notes: Vec::new(),
            seconds: 0.0,
            peak_rss_bytes: None,
        }
    }
}
