//! One step for all matrices of a method, at which they take the bits asked for together.
//!
//! Before the first block a pass over the model as it was finds about how many bits each matrix takes by the step
//! ([`RateCurve`]). Then each block gets the step at which it and those to come take what is left, as the curves have it
//! after what the blocks before have shown of their error: the step hardly moves from block to block, and the sum comes out.

use std::collections::{BTreeMap, VecDeque};

use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::rate::{OCTAVE, RateCurve, common_step};
use tensorpress_tensor::stats::Calibration;

use super::Context;
use super::advance::Stream;
use super::block::{TOGETHER, planned, together};
use super::calibration::Samples;
use super::folder::Work;
use super::progress::Event;
use super::state::Unit;

/// Windows of the calibration that the pass is of, the first ones.
const WINDOWS: usize = 24;

/// Blocks whose curves are taken for right, beside those that are done, when their error is judged.
const TRUSTED: f64 = 2.0;

/// Finds the curves of all matrices whose methods share bits, as far as an earlier run has not.
///
/// # Errors
/// `Interrupted` if the caller asked to stop; those of reading the model and of the methods.
pub(super) fn find(
    context: &Context<'_>,
    samples: &Samples,
    work: &mut Work,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    let source = context.source;
    let shares = |block: usize| {
        let mut methods =
            source.linears(block).into_iter().filter_map(|spec| context.plan.index(&spec.name));
        methods.any(|method| context.plan.shared_bits(method).is_some())
    };
    let missing = |work: &Work, block: usize| shares(block) && !work.rates().contains_key(&block);
    let samples = Samples {
        windows: samples.windows.iter().take(WINDOWS).cloned().collect(),
        images: samples.images.as_ref().map(|images| {
            let count = images.dim().0.min(WINDOWS);
            images.slice(tensorpress_tensor::ndarray::s![..count, .., .., ..]).to_owned()
        }),
    };
    for (stack, (blocks, _)) in source.config().stacks().iter().enumerate() {
        let Some(last) = blocks.clone().rev().find(|block| missing(work, *block)) else { continue };
        let mut stream = Stream::begin(source, stack, &samples, None, false)?;
        for index in blocks.start..=last {
            context.check_cancelled()?;
            let block = source.block(index)?;
            if missing(work, index) {
                tell(Event::Rated { block: index, blocks: source.blocks() });
                let rates = of_block(context, index, &stream)?;
                work.found_rates(index, rates)?;
            }
            if index < last {
                stream.pass(&block)?;
            }
            source.checkpoint().release();
        }
    }
    Ok(())
}

/// The curves of a block.
fn of_block(
    context: &Context<'_>,
    index: usize,
    stream: &Stream,
) -> Result<BTreeMap<String, RateCurve>> {
    let block = context.source.block(index)?;
    let mut planned = VecDeque::from(planned(context, index, true));
    for (_, jobs) in &mut planned {
        jobs.retain(|job| context.plan.shared_bits(job.method()).is_some());
    }
    planned.retain(|(_, jobs)| !jobs.is_empty());
    let largest = planned.iter().map(|(_, jobs)| context.bytes_of(jobs)).max();
    let room = TOGETHER.max(largest.unwrap_or_default());
    let mut rates = BTreeMap::new();
    let mut calibrations: VecDeque<Calibration> = VecDeque::new();
    while let Some((input, jobs)) = planned.pop_front() {
        context.check_cancelled()?;
        if calibrations.is_empty() {
            let wanted = together(context, room, (input, &jobs), &planned, false);
            calibrations = stream.calibrate(context, &block, None, &wanted)?.into();
        }
        let none = || Calibration::none(block.channels(input));
        let calibration = calibrations.pop_front().unwrap_or_else(none);
        for job in &jobs {
            rates.extend(job.rates(context, calibration.clone(), Par::Rayon)?);
        }
    }
    Ok(rates)
}

/// What is shared out over the blocks, one after another.
pub(super) struct Shares(BTreeMap<usize, Share>);

/// What the matrices of a method share.
struct Share {
    /// Bits of all.
    bits: f64,
    /// Curves by block and name.
    blocks: BTreeMap<usize, BTreeMap<String, RateCurve>>,
    /// What those that are done were expected to take, and took.
    expected: f64,
    spent: f64,
    /// The step of the block that is worked on.
    step: i32,
}

impl Shares {
    /// Nothing is spent yet.
    pub(super) fn new(context: &Context<'_>, work: &Work) -> Self {
        let mut shares = BTreeMap::new();
        for (block, curves) in work.rates() {
            for (name, curve) in curves {
                let Some(method) = context.plan.index(name) else { continue };
                let Some(bits) = context.plan.shared_bits(method) else { continue };
                let blocks = BTreeMap::new();
                let new = Share { bits: 0.0, blocks, expected: 0.0, spent: 0.0, step: 0 };
                let share = shares.entry(method).or_insert(new);
                share.bits += bits * curve.weights() as f64;
                share.blocks.entry(*block).or_default().insert(name.clone(), curve.clone());
            }
        }
        Self(shares)
    }

    /// log2 of the step of each method, for the next block.
    pub(super) fn steps(&mut self, block: usize) -> BTreeMap<usize, f64> {
        let step = |(method, share): (&usize, &mut Share)| {
            let left = share.left();
            let to_come = share.blocks.range(block..).flat_map(|(_, curves)| curves.values());
            share.step = common_step(to_come, left);
            (*method, f64::from(share.step) / f64::from(OCTAVE))
        };
        self.0.iter_mut().map(step).collect()
    }

    /// The block is done. Whether it was just now or by an earlier run, steps come out the same.
    pub(super) fn done(&mut self, block: usize, unit: &Unit) {
        for share in self.0.values_mut() {
            let Some(curves) = share.blocks.get(&block) else { continue };
            for (name, curve) in curves {
                let Some(layer) = unit.layers.iter().find(|layer| layer.name == *name) else {
                    continue;
                };
                share.expected += curve.bits(share.step);
                share.spent += (layer.bits_per_weight * curve.weights() as f64).round();
            }
        }
    }
}

impl Share {
    /// What is left, in bits as the curves count them.
    fn left(&self) -> f64 {
        let trusted = self.bits * TRUSTED / self.blocks.len().max(1) as f64;
        (self.bits - self.spent) * (self.expected + trusted) / (self.spent + trusted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::LayerReport;

    /// Matrices that take `error` times what their curves say.
    fn shared(error: impl Fn(usize) -> f64) -> (f64, Vec<i32>) {
        let curve = |block: usize| {
            let finest = 400 - 7 * (block as u64 % 5);
            RateCurve::new(100, vec![(0, finest), (64, finest - 90), (128, finest - 160)])
        };
        let blocks: BTreeMap<_, _> = (0..30)
            .map(|block| (block, BTreeMap::from([(format!("w{block}"), curve(block))])))
            .collect();
        let share = Share { bits: 9000.0, blocks, expected: 0.0, spent: 0.0, step: 0 };
        let mut shares = Shares(BTreeMap::from([(0, share)]));
        let mut steps = Vec::new();
        for block in 0..30 {
            shares.steps(block);
            let step = shares.0[&0].step;
            steps.push(step);
            let layer = LayerReport {
                name: format!("w{block}"),
                method: String::new(),
                bits_per_weight: curve(block).bits(step) * error(block) / 100.0,
                error: None,
                fallback: None,
            };
            let unit = Unit { bytes: 0, layers: vec![layer], ..Unit::default() };
            shares.done(block, &unit);
        }
        (shares.0[&0].spent / 9000.0, steps)
    }

    #[test]
    fn the_sum_comes_out_whatever_the_curves_err_by() {
        for error in [1.0, 1.05, 0.93] {
            let (spent, steps) = shared(|_| error);
            assert!((spent - 1.0).abs() < 2e-3, "{spent} of what there is at an error of {error}");
            let (first, last) = (steps[6], steps[29]);
            // No more than an eighth of an octave, in which steps are stored.
            assert!((first - last).abs() <= OCTAVE / 8, "the step goes from {first} to {last}");
        }
        let (spent, _) = shared(|block| if block % 2 == 0 { 1.04 } else { 0.97 });
        assert!((spent - 1.0).abs() < 5e-3, "{spent} of what there is");
    }
}
