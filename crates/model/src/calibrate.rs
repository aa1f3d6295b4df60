//! Collecting the statistics of a block's inputs, in a stream.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ndarray::{ArrayView2, Axis, Slice};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::stats::{Calibration, Collector, ExpertActivity, Needs};
use tensorpress_tensor::{Result, Scratch};

use crate::block::{Block, Observer, SharedInput, chunks};
use crate::layers::Routing;

/// Statistics by input.
pub type Calibrations = BTreeMap<SharedInput, Calibration>;

/// Runs whole sequences that lie one after the other in `hidden` `[sum of lengths, hidden]` through a block, and
/// collects what `needs` asks for of every input; the block's outputs are dropped, and `hidden` stays as it is. Beside
/// the statistics, memory is bounded. The same bytes for any `par`.
///
/// # Errors
/// As [`Block::forward_sequences`].
///
/// # Panics
/// As [`Block::forward_sequences`].
pub fn calibrate(
    block: &Block,
    hidden: ArrayView2<'_, f32>,
    lengths: &[usize],
    needs: &dyn Fn(SharedInput) -> Needs,
    seed: u64,
    par: Par,
) -> Result<Calibrations> {
    let mut collecting = Collecting::new(block, needs, seed, par);
    let mut scratch = Scratch::new(par);
    for (sequences, rows) in chunks(lengths) {
        let mut copy = hidden.slice_axis(Axis(0), Slice::from(rows)).to_owned();
        let lengths = &lengths[sequences];
        block.forward_sequences(copy.view_mut(), lengths, Some(&mut collecting), &mut scratch)?;
    }
    Ok(collecting.finish())
}

/// An observer that collects statistics of every input of a block.
#[derive(Debug)]
pub struct Collecting {
    collectors: BTreeMap<SharedInput, Collector>,
    channels: BTreeMap<SharedInput, usize>,
    experts: Option<ExpertActivity>,
    /// The expert that tokens go through, their factors, and whether these are on what it reads.
    sent: (usize, Vec<f32>, bool),
    par: Par,
}

impl Collecting {
    /// Collects what `needs` asks for; `seed` chooses sampled rows.
    #[must_use]
    pub fn new(block: &Block, needs: &dyn Fn(SharedInput) -> Needs, seed: u64, par: Par) -> Self {
        let channels: BTreeMap<_, _> =
            block.inputs().into_iter().map(|input| (input, block.channels(input))).collect();
        let wanted = channels.iter().filter(|(input, _)| !needs(**input).is_none());
        let collectors = wanted
            .map(|(input, channels)| (*input, Collector::new(*channels, needs(*input), seed)))
            .collect();
        Self { collectors, channels, experts: None, sent: (0, Vec::new(), false), par }
    }

    /// Watches so many experts too.
    #[must_use]
    pub fn with_experts(mut self, experts: usize) -> Self {
        self.experts = Some(ExpertActivity::new(experts));
        self
    }

    /// What experts did so far, where they are watched.
    #[must_use]
    pub fn experts(&self) -> Option<&ExpertActivity> {
        self.experts.as_ref()
    }

    /// The statistics; those of inputs that nothing was asked of are empty.
    #[must_use]
    pub fn finish(mut self) -> Calibrations {
        let mut finish = |(input, channels)| {
            let collected = self.collectors.remove(&input).map(Collector::finish);
            (input, collected.unwrap_or_else(|| Calibration::none(channels)))
        };
        self.channels.into_iter().map(&mut finish).collect()
    }
}

impl Observer for Collecting {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        if let Some(collector) = self.collectors.get_mut(&input) {
            collector.update(x, self.par);
        }
        if let (Some(experts), SharedInput::ExpertOutput(index)) = (&mut self.experts, input) {
            let (sent, factors, weighed) = &self.sent;
            debug_assert_eq!(*sent, index, "the expert that tokens were sent to");
            experts.inside(index, factors, *weighed, x);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn routed(&mut self, routing: &Routing) {
        if let Some(experts) = &mut self.experts {
            experts.route(routing.chosen, &routing.experts);
        }
    }

    fn watches_experts(&self) -> bool {
        self.experts.is_some()
    }

    fn sent(&mut self, index: usize, factors: &[f32], weighed: bool) {
        self.sent = (index, factors.to_vec(), weighed);
    }

    fn expert(&mut self, index: usize, outputs: ArrayView2<'_, f32>) {
        if let Some(experts) = &mut self.experts {
            let (_, factors, weighed) = &self.sent;
            experts.made(index, factors, *weighed, outputs);
        }
    }
}
