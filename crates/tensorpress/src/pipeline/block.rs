//! One transformer block.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

use rayon::prelude::*;
use tensorpress_model::{Block, LinearSpec, SharedInput, Source};
use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::stats::{Calibration, Needs};

use super::Context;
use super::advance::Stream;
use super::calibration::Inputs;
use super::job::{Job, Output, Rows, Vector, readers};
use super::shard::{self, Item};
use super::state::Unit;

/// Jobs up to this size (in f32) are done in parallel; larger ones come one after another, each in parallel inside.
const SMALL: usize = 16 << 20;

/// Bytes of statistics up to which several inputs are watched in one pass, or as many as those of one of them take.
pub(super) const TOGETHER: u64 = 64 << 20;

/// Compresses a block and writes its shard.
///
/// Input after input, in the order in which a token meets them; those whose statistics have room side by side are
/// watched in one pass through the block. But what may fold scales into the matrix before it comes before that matrix. A
/// method that asks for it ([`Needs::true_sequential`]) is calibrated on what the layers before it have become, those of
/// this block included; all others see this block as it was.
pub(super) fn compress(
    context: &Context<'_>,
    index: usize,
    stream: Option<&Stream>,
    path: &Path,
) -> Result<Unit> {
    context.check_cancelled()?;
    let source = context.source;
    let original = source.block(index)?;
    let mut block = source.block(index)?;
    let mut layers = Vec::new();
    let mut vectors = Vec::new();
    let mut compressed = BTreeSet::new();
    let mut rows = Rows::new();
    let mut planned = VecDeque::from(planned(context, index, stream.is_some()));
    let largest = planned.iter().map(|(_, jobs)| context.bytes_of(jobs)).max();
    let room = TOGETHER.max(largest.unwrap_or_default());
    let mut calibrations = VecDeque::new();
    while let Some((input, jobs)) = planned.pop_front() {
        context.check_cancelled()?;
        if let Some(stream) = stream.filter(|_| calibrations.is_empty()) {
            let wanted = together(context, room, (input, &jobs), &planned, true);
            let behind = context.inputs == Inputs::Compressed && wanted[0].1.true_sequential;
            let block = if behind { &block } else { &original };
            calibrations = stream.calibrate(context, block, Some(&original), &wanted)?.into();
        }
        let none = || Calibration::none(jobs[0].specs[0].shape[1]);
        let calibration = calibrations.pop_front().unwrap_or_else(none);
        for output in run(context, &jobs, calibration, &rows)? {
            let Output { nodes, norms, rows: folded, biases, layers: reports } = output;
            layers.extend(reports);
            rows.extend(folded);
            for (name, node) in nodes {
                block.replace(&name, node)?;
                compressed.insert(name);
            }
            for (layer, bias) in biases {
                block.linear_mut(&layer)?.set_bias(Some(bias.values.clone()))?;
                vectors.push(bias);
            }
            for norm in norms {
                block.norm_mut(&norm.name)?.set_weight(norm.values.clone())?;
                vectors.push(norm);
            }
        }
    }
    let linears = source.linears(index);
    layers.sort_by_key(|layer| linears.iter().position(|spec| spec.name == layer.name));
    if let Some(rewritten) = context.rewritten {
        rewritten.report(index, &mut layers);
    }
    let items = items(source, index, &block, &compressed, vectors);
    Ok(shard::write(path, source, &items)?.unit(layers))
}

/// The inputs whose statistics have `room` in one pass, from the next on, and what is wanted of each. Where what is before
/// a layer in its block has to be compressed first, `in_turn`, it is only those that a token meets at once.
pub(super) fn together(
    context: &Context<'_>,
    room: u64,
    (input, jobs): (SharedInput, &[Job]),
    later: &VecDeque<(SharedInput, Vec<Job>)>,
    in_turn: bool,
) -> Vec<(SharedInput, Needs)> {
    let first = context.needs_of(jobs);
    let sequential = in_turn && first.true_sequential;
    let mut bytes = context.bytes_of(jobs);
    let mut wanted = vec![(input, first)];
    for (next, jobs) in later {
        let needs = context.needs_of(jobs);
        bytes += context.bytes_of(jobs);
        let apart = sequential && stage(*next) != stage(input);
        let unlike = in_turn && needs.true_sequential != sequential;
        if apart || unlike || bytes > room {
            break;
        }
        wanted.push((*next, needs));
    }
    wanted
}

/// The input that a token meets when it meets this one: experts stand side by side.
fn stage(input: SharedInput) -> SharedInput {
    match input {
        SharedInput::Expert(_) => SharedInput::Mlp,
        SharedInput::ExpertOutput(_) | SharedInput::SharedOutput => SharedInput::MlpOutput,
        input => input,
    }
}

/// The jobs of each input that there are any for, in the order in which they are done: that in which a token meets the
/// inputs, those that it meets at once side by side; but what may fold scales into the matrix before it comes before that.
pub(super) fn planned(
    context: &Context<'_>,
    index: usize,
    calibrated: bool,
) -> Vec<(SharedInput, Vec<Job>)> {
    let linears = context.source.linears(index);
    let mut stages: Vec<SharedInput> = Vec::new();
    let mut planned: Vec<(usize, (SharedInput, Vec<Job>))> = Vec::new();
    for (input, readers) in readers(context.source, index) {
        let at = stages.iter().position(|met| *met == stage(input)).unwrap_or(stages.len());
        if at == stages.len() {
            stages.push(stage(input));
        }
        let mut jobs = context.jobs(&readers, calibrated);
        if let [job] = jobs.as_mut_slice() {
            job.find_feeder(context, &linears);
        }
        // What feeds it reads the stage before.
        let turn =
            if jobs.iter().any(Job::is_fed) { (2 * at).saturating_sub(2) } else { 2 * at + 1 };
        if !jobs.is_empty() {
            planned.push((turn, (input, jobs)));
        }
    }
    planned.sort_by_key(|(turn, _)| *turn);
    planned.into_iter().map(|(_, planned)| planned).collect()
}

/// Does the jobs of one input.
fn run(
    context: &Context<'_>,
    jobs: &[Job],
    calibration: Calibration,
    rows: &Rows,
) -> Result<Vec<Output>> {
    let specs = jobs.iter().flat_map(|job| &job.specs);
    let weights: usize = specs.map(|spec| spec.shape[0] * spec.shape[1]).sum();
    if jobs.len() > 1 && weights * size_of::<f32>() <= SMALL {
        let jobs = jobs.par_iter();
        return jobs.map(|job| job.run(context, calibration.clone(), rows, Par::Seq)).collect();
    }
    let mut calibration = Some(calibration);
    let mut outputs = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        // The last one takes the statistics, so that it can factor a Gram matrix in place.
        let last = i + 1 == jobs.len();
        let mine = if last { calibration.take() } else { calibration.clone() };
        outputs.push(job.run(context, mine.expect("taken by the last"), rows, Par::Rayon)?);
        context.source.checkpoint().release();
    }
    Ok(outputs)
}

/// All tensors of a block's shard.
fn items<'a>(
    source: &Source,
    index: usize,
    block: &'a Block,
    compressed: &BTreeSet<String>,
    vectors: Vec<Vector>,
) -> Vec<Item<'a>> {
    let mut items = Vec::new();
    for linear in block.linears().filter(|linear| compressed.contains(linear.name())) {
        let node = linear.node().expect("replaced by a node");
        items.push(Item::Compressed { name: linear.name().to_owned(), node, announced: None });
    }
    let vectors = vectors.into_iter();
    items.extend(vectors.map(|Vector { name, dtype, values }| Item::Vector {
        name,
        dtype,
        values,
    }));
    let done: BTreeSet<String> = items.iter().map(|item| item.name().to_owned()).collect();
    let extras = source.extras().into_iter().filter(|name| source.block_of(name) == Some(index));
    // Of a stack of matrices that lost some, the others stand alone; a whole one stays.
    let specs: Vec<LinearSpec> =
        source.linears(index).into_iter().filter(|spec| !done.contains(&spec.name)).collect();
    let stack = |spec: &LinearSpec| spec.place.as_ref().map(|place| place.tensor.clone());
    let broken: BTreeSet<String> = source
        .linears(index)
        .iter()
        .filter(|spec| done.contains(&spec.name))
        .filter_map(stack)
        .collect();
    let mut copied: BTreeSet<String> = BTreeSet::new();
    for spec in specs {
        match stack(&spec).filter(|tensor| *tensor != spec.name) {
            Some(tensor) if broken.contains(&tensor) => items.push(Item::Alone(spec)),
            Some(tensor) => drop(copied.insert(tensor)),
            None => drop(copied.insert(spec.name)),
        }
    }
    copied.extend(extras.filter(|name| !done.contains(name)));
    items.extend(copied.into_iter().map(Item::Copied));
    items
}
