//! A budget in place of a recipe: of some levels, each matrix gets the one with which the model loses the least.
//!
//! What each matrix takes and loses at each level is measured before the first block, on the inputs of the model as it was
//! ([`measure`]): the loss is ½ E[Σ g² Δy²] over its outputs, g their gradients and Δy what rounding does to them, which is
//! what the KL divergence grows by as long as it is small. Then each block gets the levels at which it and those to come
//! lose the least within what is left of the budget ([`share`]).

mod divergence;
mod frontier;
mod measure;
mod menu;
mod offers;
mod outline;
mod outlook;
mod share;
mod token;
mod without;

use std::time::{Duration, Instant};

use tensorpress_model::Source;
use tensorpress_tensor::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

pub(super) use divergence::Attempt;
pub use frontier::Points;
pub(super) use measure::{Measured, Tried, cannot};
pub(super) use outline::Outline;
pub use outlook::{Decision, Outlook, Point, Uniform};
pub(super) use share::Sharing;
pub(super) use token::token_nanos;

use super::Context;
use super::calibration::Samples;
use super::folder::Work;
use super::plan::Plan;
use super::progress::Event;
use super::state::Unit;
use crate::recipe::{Chain, Recipe};

/// How much a model may take.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// Bytes of all files of the result that hold weights, headers and all.
    FileBytes(u64),
    /// Bits a weight of the linear layers of the blocks, as [`Report::bits_per_weight`](super::Report::bits_per_weight)
    /// counts them; embeddings and head stay as they are (and count there too, where the source had them compressed).
    BitsPerWeight(f64),
    /// Mean KL divergence, in nats a prediction, of the result from the source, on what
    /// [`Compressor::with_judged_on`](super::Compressor::with_judged_on) says: the smallest model that is found to keep it,
    /// in a few runs.
    Divergence(f64),
}

/// A budget, and the levels among which each matrix gets one.
///
/// ```no_run
/// use tensorpress::pipeline::{Budget, CalibrationText, Mix};
/// use tensorpress::prelude::*;
///
/// # fn main() -> Result<()> {
/// let source = Source::open("model", &registry())?;
/// let text = std::fs::read_to_string("text.txt").expect("a text");
/// let report = Compressor::within(Mix::new(Budget::FileBytes(60_000_000)))
///     .with_calibration(CalibrationText::new(text))
///     .run(&source, "model-60mb".as_ref())?;
/// assert!(report.bytes_after <= 60_000_000);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Mix {
    aim: Aim,
    levels: Vec<Chain>,
    measured: bool,
    max_time: Option<Duration>,
    token_time: Option<Duration>,
    begun: Instant,
    /// Hash of what the divergence is judged on.
    judged_on: u64,
}

/// What is looked for.
#[derive(Debug, Clone, PartialEq)]
enum Aim {
    /// A model.
    Budget(Budget),
    /// A curve.
    Points(Points),
}

impl Mix {
    /// The best mix known for a budget: coded grids with drift correction, each matrix at the step where a byte more of any
    /// of them gains the same; for a GGUF file, its types filled by feedback.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self::with_aim(Aim::Budget(budget))
    }

    /// The same at several sizes, for [`Compressor::frontier`](super::Compressor::frontier).
    #[must_use]
    pub fn along(points: Points) -> Self {
        Self::with_aim(Aim::Points(points))
    }

    fn with_aim(aim: Aim) -> Self {
        Self {
            aim,
            levels: Vec::new(),
            measured: false,
            max_time: None,
            token_time: None,
            begun: Instant::now(),
            judged_on: 0,
        }
    }

    /// Sets the levels: lines of stages without rewrites. One whose matrices share bits
    /// ([`Method::shared_bits`](tensorpress_tensor::Method::shared_bits), such as `watersic`) stands for all steps that it
    /// may have.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no recipe, one that changes whole blocks or has rules for some weights, and for two levels
    /// that leave nothing.
    pub fn with_levels<S: AsRef<str>>(self, levels: impl IntoIterator<Item = S>) -> Result<Self> {
        let recipes = levels.into_iter().map(|level| Recipe::parse(level.as_ref()));
        self.with_recipes(recipes.collect::<Result<Vec<_>>>()?)
    }

    /// The same with recipes that were read already, perhaps with stages of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn with_recipes(mut self, levels: impl IntoIterator<Item = Recipe>) -> Result<Self> {
        for recipe in levels {
            let chain = recipe.chain().filter(|chain| chain.compresses());
            let Some(chain) = chain.filter(|_| recipe.layers().is_empty()).cloned() else {
                return Err(Error::invalid("a level is a line of stages, without rules"));
            };
            if let Some((stage, _)) = chain.rewrites().first() {
                let message =
                    format!("`{stage}` changes whole blocks, and is no level of a matrix");
                return Err(Error::invalid(message));
            }
            if drops(&chain) && self.levels.iter().any(drops) {
                let message = format!("the level `{chain}`: another one leaves nothing either");
                return Err(Error::invalid(message));
            }
            if self.levels.iter().any(|level| level.canonical() == chain.canonical()) {
                return Err(Error::invalid(format!("the level `{chain}` is there twice")));
            }
            self.levels.push(chain);
        }
        Ok(self)
    }

    /// Sets that every level is tried on every matrix. Default: on the matrices of some blocks alone; what others lose then
    /// follows from what they lose by plain rounding, in proportion.
    #[must_use]
    pub fn with_measured(mut self, measured: bool) -> Self {
        self.measured = measured;
        self
    }

    /// Sets after how long a search begins nothing more: of [`Budget::Divergence`] and of a frontier no model, of
    /// [`Mix::with_measured`] no block after half of the time. The model that it is made of by then is finished, and the best
    /// that there is is taken. What comes of it then depends on the machine. Default: no end.
    #[must_use]
    pub fn with_max_time(mut self, max_time: Duration) -> Self {
        self.max_time = Some(max_time);
        self
    }

    /// Sets how long a token may take in all matrices of the mix together, on one thread of the machine that measures it, each
    /// laid out as for generation: a second limit beside the budget. What comes of it depends on the machine. Default: none.
    #[must_use]
    pub fn with_token_time(mut self, token_time: Duration) -> Self {
        self.token_time = Some(token_time);
        self
    }

    /// So much of the time is over, as a part of it, since the run began.
    fn is_past(&self, part: f64) -> bool {
        let past = self.begun.elapsed().as_secs_f64();
        self.max_time.is_some_and(|all| past > part * all.as_secs_f64())
    }

    fn is_late(&self) -> bool {
        self.is_past(1.0)
    }

    /// A curve is looked for, not a model.
    pub(super) fn is_frontier(&self) -> bool {
        matches!(self.aim, Aim::Points(_))
    }

    /// Sizes of a frontier, and what there is to say of them.
    fn sizes(&self, sharing: &Sharing) -> (Vec<u64>, Option<String>) {
        match &self.aim {
            Aim::Points(points) => points.sizes(sharing),
            Aim::Budget(_) => (Vec::new(), None),
        }
    }

    /// All that decides what comes of it.
    pub(super) fn canonical(&self) -> String {
        let levels: Vec<String> = self.levels.iter().map(Chain::canonical).collect();
        let how = match (self.measured, self.max_time) {
            (true, None) => ", all measured",
            // Which blocks are then depends on the clock.
            (true, Some(_)) => ", as many measured as time allows",
            (false, _) => "",
        };
        let within = |time: Duration| format!(", a token within {} ns", time.as_nanos());
        let how = format!("{how}{}", self.token_time.map(within).unwrap_or_default());
        let budget = match &self.aim {
            Aim::Budget(budget) => *budget,
            Aim::Points(points) => {
                let (points, on) = (points.canonical(), self.judged_on);
                return format!("{points} on {on:016x} of [{}]{how}", levels.join("; "));
            }
        };
        match budget {
            Budget::FileBytes(bytes) => format!("{bytes} bytes of [{}]{how}", levels.join("; ")),
            Budget::BitsPerWeight(bits) => {
                format!("{bits} bits a weight of [{}]{how}", levels.join("; "))
            }
            Budget::Divergence(limit) => {
                let on = self.judged_on;
                format!("a divergence of {limit} on {on:016x} of [{}]{how}", levels.join("; "))
            }
        }
    }

    /// The plan of its levels.
    pub(super) fn plan(&self, source: &Source) -> Result<Plan> {
        let tables = self.counts_files();
        Plan::of_levels(source, &self.levels, tables)
    }

    /// Files are counted, and not only the linear layers.
    fn counts_files(&self) -> bool {
        !matches!(self.aim, Aim::Budget(Budget::BitsPerWeight(_)))
    }

    /// What a size is kept by without: a table of embeddings that is no head loses what no statistic here says.
    pub(super) fn note(&self, source: &Source) -> Result<Option<String>> {
        if !self.counts_files() {
            return Ok(None);
        }
        let head = super::tables::head(source)?;
        let mut names = super::tables::names(source)?;
        names.retain(|name| Some(name) != head.as_ref());
        let left = "left as they are, as what their errors cost is not known";
        Ok((!names.is_empty()).then(|| format!("{left}: {}", names.join(", "))))
    }

    /// Finds what each matrix takes and loses, as far as an earlier run has not.
    pub(super) fn measure(
        &self,
        context: &Context<'_>,
        samples: &Samples,
        work: &mut Work,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let all = || self.measured && !self.is_past(0.5);
        measure::find(context, samples, &all, self.token_time.is_some(), work, tell)
    }

    /// With its levels, or the best for this model and budget; and checked.
    ///
    /// # Errors
    /// `InvalidArgument` for a budget that no model can have, or that this one keeps already.
    pub(super) fn for_model(
        mut self,
        source: &Source,
        judged_on: Option<&[Vec<u32>]>,
        in_file: bool,
    ) -> Result<Self> {
        let linears = (0..source.blocks()).flat_map(|block| source.linears(block));
        let mut weights: u64 = linears.map(|spec| (spec.shape[0] * spec.shape[1]) as u64).sum();
        self.begun = Instant::now();
        if self.token_time.is_some_and(|time| time.is_zero()) {
            return Err(Error::invalid("a token that takes no time: allowed are times above 0"));
        }
        let budget = match &self.aim {
            Aim::Budget(budget) => *budget,
            Aim::Points(points) if points.is_empty() => {
                return Err(Error::invalid("a frontier of no sizes"));
            }
            // Where grids are good for 2 to 8 bits.
            Aim::Points(_) => Budget::Divergence(0.1),
        };
        let bits = match budget {
            Budget::BitsPerWeight(bits) if !(bits > 0.0 && bits <= 32.0) => {
                let message = format!("{bits} bits a weight: allowed are those above 0 up to 32");
                return Err(Error::invalid(message));
            }
            Budget::BitsPerWeight(bits) => bits,
            Budget::Divergence(limit) if !(limit > 0.0 && limit.is_finite()) => {
                let message = format!("a divergence of {limit}: allowed are those above 0");
                return Err(Error::invalid(message));
            }
            Budget::Divergence(limit) => {
                let segments = judged_on.filter(|segments| segments.iter().any(|s| s.len() > 1));
                let Some(segments) = segments else {
                    return Err(Error::invalid("a divergence needs segments to be judged on"));
                };
                source.need_forward()?;
                source.need_head()?;
                self.judged_on = xxh3_64(&divergence::bytes(segments));
                divergence::first_bits(limit)
            }
            Budget::FileBytes(bytes) => {
                let has = source.checkpoint().file_bytes();
                if bytes >= has {
                    return Err(Error::invalid(format!(
                        "a target of {bytes} bytes: the model has only {has}"
                    )));
                }
                for name in super::tables::names(source)? {
                    let shape = source.checkpoint().shape(&name).unwrap_or_default();
                    weights += shape.iter().product::<usize>() as u64;
                }
                8.0 * bytes as f64 / weights.max(1) as f64
            }
        };
        if in_file && let Some(level) = self.levels.iter().find(|level| drops(level)) {
            let message = format!("`{level}`: a file of blocks has all matrices");
            return Err(Error::invalid(message));
        }
        if self.levels.is_empty() && in_file {
            self = self.with_levels(TYPES.map(|ty| format!("drift | yaqa | ggml(type={ty})")))?;
        } else if self.levels.is_empty() {
            // Where its curves are to be known best.
            let bits = bits.clamp(0.5, 12.0);
            let mut levels = vec![format!("drift | watersic(bits={bits:.2}) | coded(rans)")];
            if self.token_time.is_some() {
                levels.extend(MULTIPLIED.map(String::from));
            }
            self = self.with_levels(levels)?;
        }
        Ok(self)
    }
}

/// It leaves nothing of a matrix.
fn drops(chain: &Chain) -> bool {
    chain.build().is_ok_and(|method| method.drops())
}

/// What is multiplied as it is stored, beside coded grids that have to be decoded, where a token may take only so long.
const MULTIPLIED: [&str; 5] = [
    "drift | yaqa | qtip(bits=2)",
    "drift | yaqa | gptq(bits=3, group=64, clip=mse)",
    "drift | yaqa | gptq(bits=4, group=64, clip=mse)",
    "drift | yaqa | gptq(bits=6, group=64, clip=mse)",
    "drift | yaqa | gptq(bits=8, group=64, clip=mse)",
];

/// Types of GGUF files that a matrix may become: those that lose least for their bits, for rows that blocks of 256 divide and
/// for others.
const TYPES: [&str; 10] =
    ["Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q6_K", "Q8_0"];

/// Makes a shard; within a budget by levels that are chosen now, again with others where it takes too much.
///
/// # Errors
/// `InvalidArgument` where the budget cannot be kept; those of making it.
pub(super) fn settle(
    context: &mut Context<'_>,
    sharing: Option<&mut Sharing>,
    shard: usize,
    make: impl Fn(&Context<'_>) -> Result<Unit>,
) -> Result<Unit> {
    let Some(sharing) = sharing else { return make(context) };
    for _ in 0..TRIES {
        assign(context, sharing, shard)?;
        let mut unit = match make(context) {
            Ok(unit) => unit,
            // What other matrices of its kind could have, but not this one.
            Err(e) if cannot(e.kind()) => {
                let struck = e.tensor().and_then(|name| sharing.strike(shard, name));
                struck.ok_or(e)?;
                continue;
            }
            Err(e) => return Err(e),
        };
        if !sharing.exceeds(shard, &unit) {
            unit.decisions = sharing.decisions().to_vec();
            return Ok(unit);
        }
    }
    Err(Error::invalid(
        "the target is so near to the least that these levels make of the model that it cannot be kept: allow more",
    ))
}

/// How often a shard is made at most.
const TRIES: usize = 12;

/// A shard is done.
pub(super) fn settled(
    context: &mut Context<'_>,
    sharing: Option<&mut Sharing>,
    shard: usize,
    work: &Work,
) -> Result<()> {
    let Some(sharing) = sharing else { return Ok(()) };
    // What an earlier run has made: the same is chosen, so that what follows is.
    assign(context, sharing, shard)?;
    sharing.done(shard, &work.units()[shard]);
    Ok(())
}

fn assign(context: &mut Context<'_>, sharing: &mut Sharing, shard: usize) -> Result<()> {
    for chosen in sharing.choose(shard)? {
        context.plan.assign(&chosen.name, chosen.level);
        match chosen.step {
            Some(step) => context.own_steps.insert(chosen.name, step),
            None => context.own_steps.remove(&chosen.name),
        };
    }
    Ok(())
}
