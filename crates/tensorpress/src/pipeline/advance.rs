//! Hidden states of the calibration windows on their way through the compressed model.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;

use tensorpress_model::{
    Block, Calibrations, Collecting, Observer, Reads, Routing, SharedInput, Source, chunks,
};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, Slice, concatenate};
use tensorpress_tensor::stats::{self, Batch, Calibration, Collector, ExpertActivity, Needs};
use tensorpress_tensor::{Checkpoint, Context as _, ErrorKind, Node, Result, Scratch, Tensor};

use super::Context;
use super::calibration::{Inputs, Samples};

/// What the next block reads.
pub(super) struct Stream {
    hidden: Array2<f32>,
    /// The same in the model as it was, where a statistic compares both.
    original: Option<Array2<f32>>,
    lengths: Vec<usize>,
}

/// Sees some inputs, and ends the forward pass behind the last of them.
struct Watch<'a> {
    inputs: &'a [SharedInput],
    unseen: usize,
    see: &'a mut dyn FnMut(usize, ArrayView2<'_, f32>),
    routings: &'a mut VecDeque<Routing>,
    /// Tokens go where they went when these were recorded.
    follows: bool,
}

impl Observer for Watch<'_> {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        if let Some(at) = self.inputs.iter().position(|wanted| *wanted == input) {
            (self.see)(at, x);
            self.unseen -= 1;
        }
        Ok(if self.unseen == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn routed(&mut self, routing: &Routing) {
        if !self.follows {
            self.routings.push_back(routing.clone());
        }
    }

    fn route(&mut self) -> Option<Routing> {
        if self.follows { self.routings.pop_front() } else { None }
    }
}

impl Context<'_> {
    /// The table of embeddings as it was compressed; `outer` is the shard that has it.
    pub(super) fn compressed_table(&self, outer: &Path) -> Result<Option<Box<dyn Node>>> {
        if !self.source.config().architecture.is_decoder() {
            return Ok(None);
        }
        let name = self.source.embedding()?.table().name().to_owned();
        if self.plan.index(&name).is_none() {
            return Ok(None);
        }
        let shard = Checkpoint::open(outer)?;
        let trees = shard.trees()?;
        trees.get(&name).map(|tree| self.registry.read(tree, &name, &shard)).transpose()
    }
}

impl Stream {
    /// What the first block of a stack reads in a run; `outer` is the shard of the table of embeddings.
    pub(super) fn of(
        context: &Context<'_>,
        stack: usize,
        samples: &Samples,
        outer: &Path,
    ) -> Result<Self> {
        let (table, beside) = match context.inputs {
            Inputs::Compressed => {
                (context.compressed_table(outer)?, context.plan.reads(stats::Stream::Original))
            }
            Inputs::Original => (None, false),
        };
        Self::begin(context.source, stack, samples, table, beside)
    }

    /// What the first block of a stack reads: the embeddings of the windows, out of another table if one is given, or those
    /// of the images; those of the model as it was beside them, if asked for.
    pub(super) fn begin(
        source: &Source,
        stack: usize,
        samples: &Samples,
        table: Option<Box<dyn Node>>,
        original: bool,
    ) -> Result<Self> {
        let original = match original {
            true => Some(Self::begin(source, stack, samples, None, false)?.hidden),
            false => None,
        };
        let mut scratch = Scratch::new(Par::Rayon);
        let windows = samples.windows.iter();
        if source.config().architecture.is_decoder() {
            let mut embedding = source.embedding()?;
            if let Some(table) = table {
                embedding.replace(table)?;
            }
            let hidden = embedding.embed_sequences(&samples.windows, 0, &mut scratch)?;
            source.checkpoint().release();
            return Ok(Self { hidden, original, lengths: windows.map(Vec::len).collect() });
        }
        let parts: Vec<Array2<f32>> = {
            let encoder = source.stack(stack)?;
            match (source.config().stacks()[stack].1, &samples.images) {
                (Reads::Images, None) => Vec::new(),
                (Reads::Images, Some(images)) => {
                    let embed = |image| encoder.image_embeddings(image, &mut scratch);
                    images.outer_iter().map(embed).collect::<Result<_>>()?
                }
                (Reads::Tokens, _) => {
                    let types = |ids: &Vec<u32>| vec![0; ids.len()];
                    let embed = |ids: &Vec<u32>| encoder.embeddings(ids, &types(ids), &mut scratch);
                    windows.map(embed).collect::<Result<_>>()?
                }
            }
        };
        source.checkpoint().release();
        let lengths = parts.iter().map(Array2::nrows).collect();
        let none = Array2::zeros((0, source.config().stack(stack).hidden));
        let views = std::iter::once(none.view()).chain(parts.iter().map(|part| part.view()));
        let hidden = concatenate(Axis(0), &views.collect::<Vec<_>>()).expect("parts of one width");
        Ok(Self { hidden, original, lengths })
    }

    /// The hidden states `[tokens, hidden]`.
    pub(super) fn hidden(&self) -> ArrayView2<'_, f32> {
        self.hidden.view()
    }

    /// Tokens of each sequence.
    pub(super) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Statistics of some inputs of a block, in one pass that goes no further than needed; `original` is the block as it
    /// was, if what it reads in the model as it was is wanted too.
    pub(super) fn calibrate(
        &self,
        context: &Context<'_>,
        block: &Block,
        original: Option<&Block>,
        wanted: &[(SharedInput, Needs)],
    ) -> Result<Vec<Calibration>> {
        let collector = |(input, needs): &(SharedInput, Needs)| {
            Collector::new(block.channels(*input), needs.clone(), context.seed)
        };
        let mut collectors: Vec<Collector> = wanted.iter().map(collector).collect();
        let inputs: Vec<SharedInput> = wanted.iter().map(|(input, _)| *input).collect();
        let beside = self.original.as_ref().zip(original);
        let compares = |at: usize| beside.is_some() && wanted[at].1.reads(stats::Stream::Original);
        let compared = (0..inputs.len()).filter(|at| compares(*at)).count();
        let mut scratch = Scratch::new(Par::Rayon);
        for (sequences, rows) in chunks(&self.lengths) {
            let lengths = &self.lengths[sequences];
            let slice = Slice::from(rows);
            let mut routings = VecDeque::new();
            let mut kept: Vec<Option<Array2<f32>>> = vec![None; inputs.len()];
            let mut see = |at: usize, x: ArrayView2<'_, f32>| match compares(at) {
                true => kept[at] = Some(x.to_owned()),
                false => collectors[at].update(x, Par::Rayon),
            };
            let mut watch = Watch {
                inputs: &inputs,
                unseen: inputs.len(),
                see: &mut see,
                routings: &mut routings,
                follows: false,
            };
            let mut hidden = self.hidden.slice_axis(Axis(0), slice).to_owned();
            block.forward_sequences(hidden.view_mut(), lengths, Some(&mut watch), &mut scratch)?;
            let Some((hidden, block)) = beside.filter(|_| compared > 0) else { continue };
            let mut see = |at: usize, x: ArrayView2<'_, f32>| {
                if let Some(input) = kept[at].take() {
                    let batch = Batch::new(input.view()).with_original(x);
                    collectors[at].update_all(&batch, Par::Rayon);
                }
            };
            let mut watch = Watch {
                inputs: &inputs,
                unseen: inputs.len(),
                see: &mut see,
                routings: &mut routings,
                follows: true,
            };
            let mut hidden = hidden.slice_axis(Axis(0), slice).to_owned();
            block.forward_sequences(hidden.view_mut(), lengths, Some(&mut watch), &mut scratch)?;
        }
        context.source.checkpoint().release();
        Ok(collectors.into_iter().map(Collector::finish).collect())
    }

    /// Runs the hidden states through a compressed block, as it is read from its shard: what is not in the shard as
    /// it was in memory cannot go unnoticed, and a resumed run does the same. Through the block as it was where inputs
    /// of the original model calibrate.
    pub(super) fn advance(
        &mut self,
        context: &Context<'_>,
        block: usize,
        path: &Path,
    ) -> Result<()> {
        let source = context.source;
        if context.inputs == Inputs::Original {
            return self.pass(&source.block(block)?);
        }
        let shard = Checkpoint::open(path)?;
        let mut loaded = source.block(block)?;
        for (name, tree) in &shard.trees()? {
            loaded.replace(name, context.registry.read(tree, name, &shard).in_file(path)?)?;
        }
        let vector = |name: &str| -> Result<Vec<f32>> {
            Ok(shard.tensor(name)?.to_matrix()?.into_raw_vec_and_offset().0)
        };
        for spec in source.linears(block) {
            if shard.contains(&spec.bias) {
                loaded.linear_mut(&spec.name)?.set_bias(Some(vector(&spec.bias)?))?;
            }
            if let Some(norm) = spec.norm.as_ref() {
                loaded.norm_mut(norm)?.set_weight(vector(norm)?)?;
            }
        }
        if let Some(hidden) = &mut self.original {
            forward(hidden, &self.lengths, &source.block(block)?, None)?;
        }
        forward(&mut self.hidden, &self.lengths, &loaded, None)
    }

    /// The same hidden states, to go another way; without those of the model as it was.
    pub(super) fn fork(&self) -> Self {
        Self { hidden: self.hidden.clone(), original: None, lengths: self.lengths.clone() }
    }

    /// Runs the hidden states through a block as it is.
    pub(super) fn pass(&mut self, block: &Block) -> Result<()> {
        forward(&mut self.hidden, &self.lengths, block, None)
    }

    /// Runs the hidden states through a block as it is, and gives the statistics of its inputs.
    pub(super) fn watch(
        &mut self,
        block: &Block,
        needs: &dyn Fn(SharedInput) -> Needs,
    ) -> Result<Calibrations> {
        Ok(self.watch_all(block, needs, None)?.0)
    }

    /// The same, and what experts did, if so many are to be watched.
    pub(super) fn watch_all(
        &mut self,
        block: &Block,
        needs: &dyn Fn(SharedInput) -> Needs,
        experts: Option<usize>,
    ) -> Result<(Calibrations, Option<ExpertActivity>)> {
        let mut collecting = Collecting::new(block, needs, 0, Par::Rayon);
        if let Some(experts) = experts {
            collecting = collecting.with_experts(experts);
        }
        forward(&mut self.hidden, &self.lengths, block, Some(&mut collecting))?;
        let experts = collecting.experts().cloned();
        Ok((collecting.finish(), experts))
    }
}

fn forward(
    hidden: &mut Array2<f32>,
    lengths: &[usize],
    block: &Block,
    observer: Option<&mut dyn Observer>,
) -> Result<()> {
    let mut scratch = Scratch::new(Par::Rayon);
    match block.forward_sequences(hidden.view_mut(), lengths, observer, &mut scratch) {
        // No weight is to blame: activations overflow. The layers to come see that, fall back, and say so.
        Err(e) if e.kind() == ErrorKind::Numerical && e.tensor().is_none() => {
            hidden.fill(f32::NAN);
            Ok(())
        }
        done => done,
    }
}
