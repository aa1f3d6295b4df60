//! What each matrix takes and loses at each level.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tensorpress_model::{LinearSpec, Reference, SharedInput};
use tensorpress_quant::Rtn;
use tensorpress_tensor::grid::GridSpec;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::stats::{Calibration, Needs};
use tensorpress_tensor::{ErrorKind, Result};

use super::super::advance::Stream;
use super::super::block::TOGETHER;
use super::super::calibration::Samples;
use super::super::folder::Work;
use super::super::job::{Job, readers};
use super::super::progress::Event;
use super::super::{Context, tables};
use super::without::{self, Whole};

/// What is known of a matrix.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::pipeline) struct Measured {
    pub(in crate::pipeline) weights: u64,
    /// What it loses by plain rounding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::pipeline) probe: Option<f64>,
    /// What the model loses without the sublayer whose output it makes, where that may go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::pipeline) without: Option<f64>,
    /// Levels that were tried.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::pipeline) tried: BTreeMap<usize, Tried>,
    /// Bits by the step, at levels that have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::pipeline) curves: BTreeMap<usize, RateCurve>,
}

/// What a matrix takes and loses at a level.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(in crate::pipeline) struct Tried {
    pub(in crate::pipeline) bytes: u64,
    pub(in crate::pipeline) loss: f64,
    /// What a token takes in it, where that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::pipeline) nanos: Option<u64>,
}

/// The numbers between the points of a name are left out: what is alike in all blocks, and among all experts, but not what
/// Mixtral calls `w1` and `w2`.
pub(super) fn kind(name: &str) -> String {
    let is_word = |part: &&str| !part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').filter(is_word).collect::<Vec<_>>().join(".")
}

/// Blocks in which everything is tried: two, and those that have what these have not.
fn tried(context: &Context<'_>) -> BTreeSet<usize> {
    let blocks = context.source.blocks();
    let mut chosen: BTreeSet<usize> = [blocks / 4, 3 * blocks / 4].into();
    chosen.retain(|block| *block < blocks);
    let kinds = |block: usize| -> BTreeSet<(String, [usize; 2])> {
        let linears = context.source.linears(block).into_iter();
        linears.map(|spec| (kind(&spec.name), spec.shape)).collect()
    };
    let mut known: BTreeSet<_> = chosen.iter().flat_map(|block| kinds(*block)).collect();
    for block in 0..blocks {
        let has = kinds(block);
        if !has.is_subset(&known) {
            chosen.insert(block);
            known.extend(has);
        }
    }
    chosen
}

/// Finds what is not known yet, block by block.
///
/// # Errors
/// `Interrupted` if the caller asked to stop; those of reading the model, and those of methods but for levels that a matrix
/// cannot have.
pub(in crate::pipeline) fn find(
    context: &Context<'_>,
    samples: &Samples,
    all: &dyn Fn() -> bool,
    timed: bool,
    work: &mut Work,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    let source = context.source;
    let blocks = source.blocks();
    let of_tables = blocks;
    if !work.measured().contains_key(&of_tables) {
        let found = tables::measure(context, timed)?;
        work.found_measured(of_tables, found)?;
    }
    let chosen = tried(context);
    let probed = (0..context.plan.levels()).any(|level| !context.has_steps(level));
    let missing = |work: &Work, block: usize| !work.measured().contains_key(&block);
    let mut whole = match (0..blocks).any(|block| missing(work, block)) {
        true => Whole::of(context, samples)?,
        false => None,
    };
    let mut without = match &mut whole {
        Some(Whole { model, head, segments }) => {
            Some((Reference::with_head(model, head, segments, &|_, _| {})?, model))
        }
        None => None,
    };
    let dropped = (0..context.plan.levels()).find(|level| context.plan.drops(*level));
    for (stack, (range, _)) in source.config().stacks().iter().enumerate() {
        let Some(last) = range.clone().rev().find(|block| missing(work, *block)) else { continue };
        let seen = !samples.windows.is_empty() || samples.images.is_some();
        let mut stream = match seen {
            true => Some(Stream::begin(source, stack, samples, None, false)?),
            false => None,
        };
        for index in range.start..=last {
            context.check_cancelled()?;
            if missing(work, index) {
                tell(Event::Rated { block: index, blocks });
                let all = all();
                let how = How { everything: all || chosen.contains(&index), probed, timed };
                let mut found = of_block(context, index, stream.as_ref(), how)?;
                if let Some(((reference, model), dropped)) = without.as_mut().zip(dropped) {
                    without::find(context, reference, model, index, &mut found, dropped)?;
                }
                work.found_measured(index, found)?;
            }
            if let Some(stream) = stream.as_mut().filter(|_| index < last) {
                stream.pass(&source.block(index)?)?;
            }
            source.checkpoint().release();
        }
    }
    Ok(())
}

/// What is to be found of a block.
#[derive(Clone, Copy)]
struct How {
    /// All levels are tried, not only those with steps looked at.
    everything: bool,
    /// By plain rounding too, from which what is not tried elsewhere follows.
    probed: bool,
    /// What a token takes too.
    timed: bool,
}

impl How {
    /// What a whole matrix loses follows from no other's rounding.
    fn tries(self, context: &Context<'_>, level: usize) -> bool {
        self.everything || context.plan.drops(level)
    }
}

/// What is found of a block.
fn of_block(
    context: &Context<'_>,
    index: usize,
    stream: Option<&Stream>,
    how: How,
) -> Result<BTreeMap<String, Measured>> {
    let block = context.source.block(index)?;
    let inputs = readers(context.source, index);
    let seen = stream.is_some();
    let mut found: BTreeMap<String, Measured> = BTreeMap::new();
    for spec in inputs.iter().flat_map(|(_, specs)| specs) {
        let weights = (spec.shape[0] * spec.shape[1]) as u64;
        found.insert(spec.name.clone(), Measured { weights, ..Measured::default() });
    }
    let levels: Vec<usize> = (0..context.plan.levels())
        .filter(|level| how.tries(context, *level) || context.has_steps(*level))
        .collect();
    let needs: Vec<Needs> = inputs
        .iter()
        .map(|(_, specs)| {
            let mut needs = Needs::samples(super::super::error::INPUTS);
            for level in &levels {
                needs = needs.union(context.needs_of(&context.jobs_at(specs, *level, seen)));
            }
            needs
        })
        .collect();
    let mut at = 0;
    while at < inputs.len() {
        context.check_cancelled()?;
        // As many inputs as have room side by side are seen in one pass.
        let (mut end, mut bytes) = (at, 0);
        while end < inputs.len() && (end == at || bytes <= TOGETHER) {
            bytes += needs[end].bytes(block.channels(inputs[end].0));
            end += 1;
        }
        let calibrations: Vec<Calibration> = match stream {
            None => (at..end).map(|at| Calibration::none(block.channels(inputs[at].0))).collect(),
            Some(stream) => {
                let wanted: Vec<(SharedInput, Needs)> =
                    (at..end).map(|at| (inputs[at].0, needs[at].clone())).collect();
                stream.calibrate(context, &block, None, &wanted)?
            }
        };
        for ((_, specs), calibration) in inputs[at..end].iter().zip(calibrations) {
            if how.probed {
                probe(context, specs, &calibration, &mut found)?;
            }
            for level in &levels {
                for job in context.jobs_at(specs, *level, seen) {
                    of_job(context, &job, *level, how, &calibration, &mut found)?;
                }
            }
        }
        at = end;
    }
    Ok(found)
}

/// What matrices lose by plain rounding: of groups where they divide the rows, else of whole rows.
fn probe(
    context: &Context<'_>,
    specs: &[LinearSpec],
    calibration: &Calibration,
    found: &mut BTreeMap<String, Measured>,
) -> Result<()> {
    for spec in specs {
        let group = if spec.shape[1] % GROUP == 0 { GROUP } else { 0 };
        let rounding = Rtn::new(GridSpec::new(4, group));
        let job = Job::alone(spec.clone(), 0);
        let losses = job.make(context, calibration.clone(), &rounding, Par::Rayon)?;
        for (name, _, loss) in losses {
            found.entry(name).or_default().probe = loss.is_finite().then_some(loss);
        }
    }
    Ok(())
}

/// Weights of a group of plain rounding.
const GROUP: usize = 64;

fn of_job(
    context: &Context<'_>,
    job: &Job,
    level: usize,
    how: How,
    calibration: &Calibration,
    found: &mut BTreeMap<String, Measured>,
) -> Result<()> {
    if context.has_steps(level) {
        for (name, curve) in job.rates(context, calibration.clone(), Par::Rayon)? {
            found.entry(name).or_default().curves.insert(level, curve);
        }
    }
    // Of one family of steps all lose in the same proportion to them.
    let one = context.plan.levels() == 1 && context.has_steps(level);
    if !how.tries(context, level) || (one && !how.timed) {
        return Ok(());
    }
    let tried = match job.measure(context, calibration.clone(), how.timed, Par::Rayon) {
        Ok(tried) => tried,
        // A level that a matrix cannot have, such as groups that do not divide it, is none for it.
        Err(e) if cannot(e.kind()) => return Ok(()),
        Err(e) => return Err(e),
    };
    for (name, tried) in tried {
        if tried.loss.is_finite() {
            found.entry(name).or_default().tried.insert(level, tried);
        }
    }
    Ok(())
}

pub(in crate::pipeline) fn cannot(kind: ErrorKind) -> bool {
    [ErrorKind::InvalidArgument, ErrorKind::Unsupported, ErrorKind::ShapeMismatch].contains(&kind)
}
