//! One transformer block.

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;
use tensorpress_model::{Calibrations, LinearSpec, SharedInput, Source};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stats::{Calibration, Needs};
use tensorpress_tensor::{
    Compressed, Context as _, DType, Error, Fold, Group, Result, Storage, Target, Tensor,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Context;
use super::advance::Stream;
use super::error::{self, Around};
use super::report::LayerReport;
use super::shard::{self, Item};
use super::state::Unit;
use crate::bill;

/// Blocks up to this size (in f32) have their groups compressed in parallel; the groups of larger ones come one
/// after another, each in parallel inside.
const SMALL: usize = 64 << 20;

/// What all names of a block begin with.
pub(super) fn prefix(source: &Source, block: usize) -> String {
    let names = source.linears(block);
    let name = &names[0].name;
    let number = format!(".{block}.");
    let at = name.find(&number).expect("names of a block have its number");
    name[..at + number.len()].to_owned()
}

/// Linear layers that share an input and a method.
struct Job {
    specs: Vec<LinearSpec>,
    method: usize,
    input: SharedInput,
    /// The norm that feeds these layers and no others.
    norm: Option<String>,
}

impl Context<'_> {
    /// Different layers draw different random numbers.
    pub(super) fn seed_of(&self, name: &str) -> u64 {
        xxh3_64_with_seed(name.as_bytes(), self.seed)
    }

    fn located(&self, error: Error, name: &str) -> Error {
        match self.source.checkpoint().file_of(name) {
            Some(file) => error.in_tensor(name).in_file(file),
            None => error.in_tensor(name),
        }
    }

    fn jobs(&self, block: usize, calibrated: bool) -> Vec<Job> {
        let all = self.source.linears(block);
        let mut jobs: Vec<Job> = Vec::new();
        for spec in &all {
            let Some(method) = self.plan.index(&spec.name) else { continue };
            // What needs no statistics gains nothing from company, and one weight at a time is less memory.
            let alone = !calibrated || self.plan.method(method).method.needs().is_none();
            let company = |job: &&mut Job| job.input == spec.input && job.method == method;
            match jobs.iter_mut().find(company).filter(|_| !alone) {
                Some(job) => job.specs.push(spec.clone()),
                None => {
                    let (input, specs) = (spec.input, vec![spec.clone()]);
                    jobs.push(Job { specs, method, input, norm: None });
                }
            }
        }
        for job in &mut jobs {
            let readers = all.iter().filter(|spec| spec.input == job.input).count();
            job.norm = job.specs[0].norm.clone().filter(|_| readers == job.specs.len());
        }
        jobs
    }
}

/// Compresses a block and writes its shard.
pub(super) fn compress(
    context: &Context<'_>,
    block: usize,
    stream: Option<&Stream>,
    path: &Path,
) -> Result<Unit> {
    let source = context.source;
    let jobs = context.jobs(block, stream.is_some());
    let calibrations = match stream {
        Some(stream) => {
            stream.calibrate(context, block, &|input| needs_of(context, &jobs, input))?
        }
        None => Calibrations::new(),
    };
    let weights: usize = jobs.iter().flat_map(|j| &j.specs).map(|s| s.shape[0] * s.shape[1]).sum();
    let outputs: Vec<Output> = if weights * size_of::<f32>() <= SMALL {
        let ready: Vec<(&Job, Calibration)> = prepare(&jobs, calibrations).collect();
        ready
            .into_par_iter()
            .map(|(job, calibration)| run(context, job, calibration, Par::Seq))
            .collect::<Result<_>>()?
    } else {
        prepare(&jobs, calibrations)
            .map(|(job, calibration)| {
                context.check_cancelled()?;
                let output = run(context, job, calibration, Par::Rayon)?;
                source.checkpoint().release();
                Ok(output)
            })
            .collect::<Result<_>>()?
    };
    let (items, layers) = assemble(source, block, outputs)?;
    Ok(Unit { bytes: shard::write(path, source, &items)?, layers })
}

/// What the methods of a block's layers need of each input; a few samples where a layer is compressed at all, so that
/// its error can be measured.
fn needs_of(context: &Context<'_>, jobs: &[Job], input: SharedInput) -> Needs {
    let of_input = jobs.iter().filter(|job| job.input == input);
    let needs = of_input.map(|job| context.plan.method(job.method).method.needs());
    needs.map(|needs| needs | Needs::samples(error::INPUTS)).fold(Needs::NONE, Needs::union)
}

/// Each job with its statistics; the last job of an input takes them, so that one Gram matrix is there once.
fn prepare(
    jobs: &[Job],
    mut calibrations: Calibrations,
) -> impl Iterator<Item = (&Job, Calibration)> {
    jobs.iter().enumerate().map(move |(i, job)| {
        let again = jobs[i + 1..].iter().any(|later| later.input == job.input);
        let calibration = match again {
            true => calibrations.get(&job.input).cloned(),
            false => calibrations.remove(&job.input),
        };
        (job, calibration.unwrap_or_else(|| Calibration::none(job.specs[0].shape[1])))
    })
}

/// What became of a job.
struct Output {
    items: Vec<Item>,
    layers: Vec<LayerReport>,
}

fn run(context: &Context<'_>, job: &Job, calibration: Calibration, par: Par) -> Result<Output> {
    let source = context.source;
    let planned = context.plan.method(job.method);
    let load = |spec: &LinearSpec| -> Result<Array2<f32>> {
        let read = || source.checkpoint().tensor(&spec.name)?.to_matrix();
        read().map_err(|e| context.located(e, &spec.name))
    };
    let weights = job.specs.iter().map(load).collect::<Result<Vec<_>>>()?;
    let inputs = calibration.samples().ok().map(error::spread);
    let norm = job.norm.as_ref().map(|name| norm_of(source, name)).transpose()?;
    let names: Vec<&str> = job.specs.iter().map(|spec| spec.name.as_str()).collect();
    let targets = names.iter().zip(&weights).map(|(name, w)| Target::new(name, w.view()));
    let group = Group {
        targets: targets.collect(),
        calibration,
        fold: norm.as_ref().map(|(values, dtype)| Fold { values, dtype: *dtype }),
        seed: context.seed_of(names[0]),
        par,
    };
    let result = planned.method.compress_group_dyn(group);
    let result = result.map_err(|e| {
        let name = e.tensor().unwrap_or(names[0]).to_owned();
        context.located(e, &name)
    })?;
    let mut output = Output { items: Vec::new(), layers: Vec::new() };
    let mut ratio = None;
    if let (Some(folded), Some((values, dtype)), Some(name)) = (result.folded, norm, &job.norm) {
        let over = |(new, old): (&f32, &f32)| if *old == 0.0 { 0.0 } else { new / old };
        ratio = Some(folded.iter().zip(&values).map(over).collect::<Vec<f32>>());
        output.items.push(Item::Vector { name: name.clone(), dtype, values: folded });
    }
    for ((spec, weight), layer) in job.specs.iter().zip(&weights).zip(result.layers) {
        let around = Around { ratio: ratio.as_deref(), bias: layer.bias.as_deref() };
        let inputs = inputs.as_ref().map(|x| x.view());
        output.layers.push(layer_report(
            &spec.name,
            &planned.text,
            weight.view(),
            &layer,
            around,
            inputs,
            par,
        )?);
        if let Some(correction) = &layer.bias {
            output.items.push(corrected_bias(source, spec, correction)?);
        }
        output.items.push(Item::Compressed { name: spec.name.clone(), node: layer.node });
    }
    Ok(output)
}

fn norm_of(source: &Source, name: &str) -> Result<(Vec<f32>, DType)> {
    let tensor = source.checkpoint().tensor(name)?;
    let values = tensor.to_matrix().in_tensor(name)?.into_raw_vec_and_offset().0;
    Ok((values, tensor.dtype()))
}

fn corrected_bias(source: &Source, spec: &LinearSpec, correction: &[f32]) -> Result<Item> {
    let (mut values, dtype) = if source.checkpoint().contains(&spec.bias) {
        norm_of(source, &spec.bias)?
    } else {
        (vec![0.0; correction.len()], source.checkpoint().tensor(&spec.name)?.dtype())
    };
    values.iter_mut().zip(correction).for_each(|(v, c)| *v += c);
    Ok(Item::Vector { name: spec.bias.clone(), dtype, values })
}

/// The line of a report on one matrix.
pub(super) fn layer_report(
    name: &str,
    method: &str,
    weight: ArrayView2<'_, f32>,
    layer: &Compressed,
    around: Around<'_>,
    inputs: Option<ArrayView2<'_, f32>>,
    par: Par,
) -> Result<LayerReport> {
    let error =
        error::relative(weight, layer.node.as_ref(), around, inputs, par).in_tensor(name)?;
    let storage = Storage::of(layer.node.as_ref()).in_tensor(name)?;
    Ok(LayerReport {
        name: name.to_owned(),
        method: method.to_owned(),
        bits_per_weight: bill::bits_per_weight(&storage, layer.node.shape()),
        error,
        fallback: layer.fallback.clone(),
    })
}

/// All tensors of a block's shard, and the reports in the order of the layers.
fn assemble(
    source: &Source,
    block: usize,
    outputs: Vec<Output>,
) -> Result<(Vec<Item>, Vec<LayerReport>)> {
    let mut items = Vec::new();
    let mut layers = Vec::new();
    for output in outputs {
        items.extend(output.items);
        layers.extend(output.layers);
    }
    let specs = source.linears(block);
    let place = |layer: &LayerReport| specs.iter().position(|spec| spec.name == layer.name);
    layers.sort_by_key(place);
    let done: BTreeSet<String> = items.iter().map(|item| item.name().to_owned()).collect();
    let prefix = prefix(source, block);
    let extras = source.extras().into_iter().filter(|name| name.starts_with(&prefix));
    let linears = specs.iter().map(|spec| spec.name.clone());
    items.extend(linears.chain(extras).filter(|name| !done.contains(name)).map(Item::Copied));
    Ok((items, layers))
}
