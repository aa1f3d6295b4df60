//! Compressing a model block by block, in bounded memory; stopped at any moment, it can be resumed.
//!
//! For each transformer block in turn: where the recipe needs statistics, the calibration's hidden states run through
//! the source block and are watched; each group of linear layers that share an input is compressed; the block's shard
//! is written; and the hidden states run through the *compressed* block, so that the next one is calibrated on what it
//! will really see. (Rewrites come before that, each in a pass of its own over the model it finds; the rest then works on
//! the model they leave.) Resident at a time are the hidden states and one group of weights, never a model.
//!
//! The work lies in `DIR.partial`, with a state file that says for which source, recipe, calibration and supplied
//! statistics. `DIR` appears by a rename when all is done. Whatever stops the work (a full disk, a kill) leaves a
//! folder that the same call resumes, with the same bytes in the end.

mod advance;
mod backward;
mod block;
mod calibration;
#[cfg(feature = "formats")]
mod convert;
mod error;
mod finish;
mod folder;
mod job;
mod listing;
mod mix;
#[cfg(feature = "report")]
mod page;
mod peak;
mod plan;
mod prepare;
mod progress;
#[cfg(feature = "formats")]
mod regroup;
mod report;
mod rewrite;
mod run;
mod shard;
mod share;
mod side;
mod state;
mod tables;
mod then;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tensorpress_model::Source;
use tensorpress_tensor::stage::{self, Knobs};
use tensorpress_tensor::stats::Supplied;
use tensorpress_tensor::{Context as _, Error, Node, Registry, Result, Rewrite, Storage};

pub use calibration::{CalibrationText, DEFAULT_CHARS, DEFAULT_LENGTH, DEFAULT_WINDOWS, Inputs};
#[cfg(feature = "formats")]
pub use convert::{ConversionReport, Convert, Converted, Importance, Target, float_type};
pub use folder::partial_of;
use mix::Outline;
pub use mix::{Budget, Decision, Mix, Outlook, Point, Points, Uniform};
pub use peak::peak_rss_bytes;
pub use progress::{Event, Progress};
pub use report::{BlockReport, Frontier, LayerReport, Report};
pub use write::write_model;

use crate::bill::Bill;
use crate::recipe::{Chain, Recipe};
use plan::Plan;
use rewrite::{Named, Rewritten};
use run::Done;
use state::Unit;
use then::{Publish, Then};

/// Compresses models by a recipe.
///
/// ```no_run
/// use tensorpress::pipeline::CalibrationText;
/// use tensorpress::prelude::*;
///
/// # fn main() -> Result<()> {
/// let source = Source::open("model", &registry())?;
/// let text = std::fs::read_to_string("text.txt").expect("a text");
/// let report = Compressor::new(Recipe::parse("w4")?)
///     .with_calibration(CalibrationText::new(text))
///     .run(&source, "model-w4".as_ref())?;
/// println!("{:.3} bits per weight", report.bits_per_weight);
/// # Ok(())
/// # }
/// ```
pub struct Compressor<'a> {
    recipe: Recipe,
    mix: Option<Mix>,
    rewrites: Vec<Named>,
    calibration: Option<CalibrationText>,
    supplied: Option<Arc<dyn Supplied>>,
    inputs: Inputs,
    seed: u64,
    force: bool,
    from_quantized: bool,
    then: Then,
    progress: Option<&'a mut dyn Progress>,
    cancel: Option<Arc<AtomicBool>>,
    registry: Option<Registry>,
    judged_on: Option<Vec<Vec<u32>>>,
}

impl std::fmt::Debug for Compressor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { recipe, mix, rewrites, calibration, inputs, seed, force, .. } = self;
        f.debug_struct("Compressor")
            .field("recipe", recipe)
            .field("mix", mix)
            .field("rewrites", rewrites)
            .field("calibration", calibration)
            .field("inputs", inputs)
            .field("seed", seed)
            .field("force", force)
            .finish_non_exhaustive()
    }
}

/// What the parts of a run share.
struct Context<'r> {
    /// The model to compress: the source, or what rewrites left of it.
    source: &'r Source,
    rewritten: Option<&'r Rewritten>,
    registry: Registry,
    plan: Plan,
    supplied: Option<Arc<dyn Supplied>>,
    inputs: Inputs,
    /// log2 of the step that the matrices of a method have in common, for the block that is worked on.
    steps: BTreeMap<usize, f64>,
    /// The same of single matrices, where each has its own.
    own_steps: BTreeMap<String, f64>,
    /// What it loses is judged by: the source, before any rewrites.
    original: &'r Source,
    /// What the result becomes, where that is counted in a budget.
    outline: Option<Outline>,
    seed: u64,
    cancel: Option<Arc<AtomicBool>>,
}

impl Context<'_> {
    /// `Interrupted`, if the caller asked to stop.
    fn check_cancelled(&self) -> Result<()> {
        check_cancelled(self.cancel.as_deref())
    }

    /// A shard, with what its matrices take in the result.
    fn sized(&self, mut unit: Unit, shard: &Path) -> Result<Unit> {
        if self.outline.is_some() {
            let mut nodes = shard::nodes(shard, &self.registry)?;
            // What was compressed already, and stays, is counted with the rest of the file.
            nodes.retain(|(name, _)| self.plan.index(name).is_some());
            let sizes = nodes.iter().map(|(name, node)| self.length_of(&**node).in_tensor(name));
            unit.in_file = Some(sizes.sum::<Result<u64>>()?);
        }
        Ok(unit)
    }

    /// A level has steps, of which each matrix gets one: codes of which no other format has.
    fn has_steps(&self, level: usize) -> bool {
        self.outline.is_none() && self.plan.shared_step(level)
    }

    /// What a matrix takes in the result.
    ///
    /// # Errors
    /// `Unsupported` where the result's format cannot hold it.
    fn length_of(&self, node: &dyn Node) -> Result<u64> {
        match &self.outline {
            Some(outline) => outline.filled(node),
            None => Ok(Storage::of(node)?.bytes()),
        }
    }
}

fn check_cancelled(cancel: Option<&AtomicBool>) -> Result<()> {
    match cancel {
        Some(cancel) if cancel.load(Ordering::Relaxed) => {
            Err(Error::interrupted("stopped as asked; the same call resumes"))
        }
        _ => Ok(()),
    }
}

impl<'a> Compressor<'a> {
    /// A compressor by this recipe.
    #[must_use]
    pub fn new(recipe: Recipe) -> Self {
        let rewrites = Vec::new();
        Self {
            recipe,
            mix: None,
            rewrites,
            calibration: None,
            supplied: None,
            inputs: Inputs::default(),
            seed: 0,
            force: false,
            from_quantized: false,
            then: Then::default(),
            progress: None,
            cancel: None,
            registry: None,
            judged_on: None,
        }
    }

    /// A compressor within a budget.
    #[must_use]
    pub fn within(mix: Mix) -> Self {
        Self { mix: Some(mix), ..Self::new(Recipe::default()) }
    }

    /// Sets the token ids, a list a segment, that [`Budget::Divergence`] is judged on.
    #[must_use]
    pub fn with_judged_on(mut self, segments: impl Into<Vec<Vec<u32>>>) -> Self {
        self.judged_on = Some(segments.into());
        self
    }

    /// Sets stages that change whole blocks and run before what a budget chooses: the mix is then one of the model that they
    /// leave, its divergence still that from the source. A recipe has its own ([`Compressor::new`]).
    ///
    /// # Errors
    /// `InvalidArgument` for a recipe that does more than that, and without a budget.
    pub fn with_rewrites_of(mut self, recipe: Recipe) -> Result<Self> {
        if self.mix.is_none() {
            return Err(Error::invalid(
                "a recipe has its own changes of blocks: there is no budget",
            ));
        }
        let compresses = recipe.chain().is_some_and(Chain::compresses);
        if compresses || !recipe.layers().is_empty() {
            let message = format!(
                "`{recipe}`: what matrices become is the budget's to choose: only stages that change whole blocks stand \
                 before it"
            );
            return Err(Error::invalid(message));
        }
        self.recipe = recipe;
        Ok(self)
    }

    /// Adds a rewrite of one's own, after those of the recipe and before its other stages. Its name and knobs say what
    /// it is in reports, and what a run is resumed by.
    ///
    /// # Errors
    /// `InvalidArgument` if its knobs do not go together.
    pub fn with_rewrite(mut self, mut rewrite: impl Rewrite + Knobs + 'static) -> Result<Self> {
        let text = stage::canonical(rewrite.id(), &mut rewrite)?;
        self.rewrites.push((text, Box::new(rewrite)));
        Ok(self)
    }

    /// Sets the text whose activations calibrate; methods that need none ignore it.
    #[must_use]
    pub fn with_calibration(mut self, text: CalibrationText) -> Self {
        self.calibration = Some(text);
        self
    }

    /// Sets whose inputs calibrate a block. Default: those of the compressed model.
    #[must_use]
    pub fn with_inputs(mut self, inputs: Inputs) -> Self {
        self.inputs = inputs;
        self
    }

    /// Hands methods what only the caller knows of the weights, such as gradients. A run is resumed only with what
    /// identifies itself as the same ([`Supplied::identify`]).
    #[must_use]
    pub fn with_supplied(mut self, by: Arc<dyn Supplied>) -> Self {
        self.supplied = Some(by);
        self
    }

    /// Sets the seed of everything random. Default 0.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Replaces the folder if it is there, and begins anew where `DIR.partial` belongs to other work. Default false.
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Compresses a model that is compressed already: what its weights decode to is taken for the original. Default false:
    /// that is an error, as the loss of both comes together.
    #[must_use]
    pub fn with_from_quantized(mut self, from_quantized: bool) -> Self {
        self.from_quantized = from_quantized;
        self
    }

    /// Writes the result in this format, as [`Convert`] does. Codes keep their values: what the format cannot hold is an
    /// error, found when the first block is compressed; but for [`Target::Gguf`] with a type, to which everything is rounded
    /// that is anything else, weighed by the calibration text if there is one, as a note of the report says. The result of
    /// the recipe lies in `OUT.partial` until then, and takes room beside that of the format.
    ///
    /// With a budget ([`Compressor::within`]) what the format takes is counted: [`Target::Gguf`] without a type, which mixes its
    /// types; the others hold matrices of one kind.
    #[cfg(feature = "formats")]
    #[must_use]
    pub fn with_format(mut self, format: Target) -> Self {
        self.then = Then::format(format);
        self
    }

    /// Tells `progress` what happens.
    #[must_use]
    pub fn with_progress(mut self, progress: &'a mut dyn Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Reads what was written with the nodes of this registry, for stages that make nodes of your own. Default:
    /// [`crate::registry`].
    #[must_use]
    pub fn with_registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Stops with `Interrupted` soon after `cancel` becomes true.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    fn tell(&mut self, event: Event<'_>) {
        if let Some(progress) = &mut self.progress {
            progress.event(event);
        }
    }

    /// Compresses `source` into the folder `out`.
    ///
    /// # Errors
    /// `Exists` if `out` is there and is not to be replaced, or `out.partial` belongs to other work; `InvalidArgument` if a
    /// rule of the recipe matches nothing; `MissingCalibration` if the recipe needs a text and there is none;
    /// `Unsupported` for a model that is compressed already (unless [`Compressor::with_from_quantized`]), and for links beside it that lead nowhere or into a loop (all
    /// files of its folder go along, but for weights in other forms and hidden ones); `Numerical` for NaN in a weight; those of the source, of the
    /// methods and of the rewrites; `Io`. Each names tensor and file where known.
    pub fn run(mut self, source: &Source, out: &Path) -> Result<Report> {
        let begun = Instant::now();
        if self.mix.as_ref().is_some_and(Mix::is_frontier) {
            return Err(Error::invalid("several sizes make a frontier, not a model"));
        }
        let decoded = self.decoded(source)?;
        let source = decoded.as_ref().unwrap_or(source);
        self.then.check(source, out, self.force)?;
        let (notes, mut work, done) = self.make(source, out)?;
        let Done { notes: found, layers, blocks, resumed, registry, outlook } = done;
        // What is compressed stays, whatever comes of the format.
        let said = self.then.publish(
            &mut work,
            out,
            Publish {
                force: self.force,
                registry: &registry,
                calibration: self.calibration.take(),
                cancel: self.cancel.clone(),
                progress: match &mut self.progress {
                    Some(progress) => Some(&mut **progress),
                    None => None,
                },
            },
        )?;
        self.tell(Event::Finished);
        let written = crate::open_model_with(out, &registry)?;
        let bill = Bill::of(&written)?;
        let mut report = Report::new(source, &written, bill, layers, begun.elapsed(), resumed);
        report.blocks = blocks;
        report.outlook = outlook;
        report.notes = notes.into_iter().chain(found).chain(said.notes).collect();
        #[cfg(feature = "formats")]
        {
            report.converted = said.converted;
        }
        Ok(report)
    }

    /// The curve of [`Mix::along`]: what `source` loses by size, of which the sizes say some are made and judged. Work lies
    /// in `out.partial`, and the same call takes it up again; at its end `publish` is called, and what was made is removed.
    /// `out` itself is what `publish` makes of it: until that has succeeded, the same call ends with it again.
    ///
    /// # Errors
    /// `Exists` if `out.partial` belongs to other work; `InvalidArgument` for a
    /// budget or a recipe in place of sizes; otherwise as [`Compressor::run`], and those of `publish`.
    pub fn frontier(
        mut self,
        source: &Source,
        out: &Path,
        publish: &mut dyn FnMut(&Frontier) -> Result<()>,
    ) -> Result<Frontier> {
        let begun = Instant::now();
        if !self.mix.as_ref().is_some_and(Mix::is_frontier) {
            return Err(Error::invalid("a frontier is of several sizes: Mix::along"));
        }
        let decoded = self.decoded(source)?;
        let source = decoded.as_ref().unwrap_or(source);
        if out.file_name().is_none() {
            return Err(Error::invalid("is no name for a folder").in_file(out));
        }
        let (notes, mut work, done) = self.make(source, out)?;
        let mut outlook = done.outlook.unwrap_or_default();
        let frontier = Frontier {
            bytes_before: source.checkpoint().file_bytes(),
            points: std::mem::take(&mut outlook.points),
            notes: notes.into_iter().chain(done.notes).collect(),
            seconds: begun.elapsed().as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            outlook,
        };
        publish(&frontier)?;
        work.discard()?;
        self.tell(Event::Finished);
        Ok(frontier)
    }
}
