//! The rewrites of a recipe: one after the other, each judges the blocks of the model that its predecessors left, decides
//! for all of them, and edits. What comes after works on the model that the last one leaves, a view that takes no room.
//!
//! Judgements, decisions and edits are kept in the folder of unfinished work as soon as they are made, and read back
//! from there: an interrupted run goes on at the block where it stopped, on the same numbers. Only the hidden states of
//! the calibration run through the blocks before it again.

mod gradients;
mod outputs;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tensorpress_model::Source;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::rewrite::{
    BlockShape, BlockView, Decision, Edit, Judgement, ModelLayout, Outputs, States,
};
use tensorpress_tensor::stats::{Calibration, Needs, Supplied};
use tensorpress_tensor::{Error, Result, Rewrite, Usable};

use super::advance::Stream;
use super::calibration::Samples;
use super::folder::{Step, Work};
use super::progress::Event;
use super::report::{BlockReport, LayerReport};
use super::state::Steps;
use gradients::Passing;

pub(super) use store::stored;

/// The stack that a block lies in ([`Config::stacks`](tensorpress_model::Config::stacks)), and its first block.
fn stack_of(source: &Source, block: usize) -> (usize, usize) {
    let stacks = source.config().stacks();
    let stack = stacks.iter().rposition(|(blocks, _)| blocks.start <= block).unwrap_or(0);
    (stack, stacks[stack].0.start)
}

/// A rewrite, and its text in reports.
pub(super) type Named = (String, Box<dyn Rewrite>);

/// It sees calibration tokens; `supplied`: what only a caller knows of weights is there.
pub(super) fn is_calibrated(rewrite: &dyn Rewrite, supplied: bool) -> bool {
    streams(rewrite) || rewrite.changes_head() || !supplied && gradients::wanted(rewrite)
}

/// Hidden states run through the blocks for it.
fn streams(rewrite: &dyn Rewrite) -> bool {
    let watched = rewrite.needs_states() || rewrite.needs_experts() || watches(rewrite);
    watched || rewrite.needs_outputs()
}

fn watches(rewrite: &dyn Rewrite) -> bool {
    !rewrite.needs().is_none() && !rewrite.inputs().is_empty()
}

/// The model that rewrites leave, and what there is to say about it.
pub(super) struct Rewritten {
    pub(super) source: Source,
    /// What is left of each block there was.
    pub(super) blocks: Vec<BlockReport>,
    /// The stages.
    text: String,
    /// Why less was done than asked, by weight.
    notes: BTreeMap<String, String>,
}

impl Rewritten {
    /// Adds what there is to say about the matrices of a block: a line for those that are not compressed, and notes.
    pub(super) fn report(&self, block: usize, layers: &mut Vec<LayerReport>) {
        for spec in self.source.linears(block) {
            if !layers.iter().any(|layer| layer.name == spec.name) {
                let bytes = self.source.checkpoint().stored_bytes(&spec.name).unwrap_or(0);
                layers.push(LayerReport {
                    method: self.text.clone(),
                    bits_per_weight: 8.0 * bytes as f64 / (spec.shape[0] * spec.shape[1]) as f64,
                    error: None,
                    fallback: None,
                    name: spec.name,
                });
            }
        }
        for layer in layers {
            if let Some(note) = self.notes.get(&layer.name) {
                let more =
                    layer.fallback.take().map_or(String::new(), |later| format!("; {later}"));
                layer.fallback = Some(format!("{note}{more}"));
            }
        }
    }
}

/// What the steps of all rewrites share.
pub(super) struct Rewriting<'a> {
    pub(super) samples: &'a Samples,
    /// The result is to be written with a config that others read.
    pub(super) plain: bool,
    /// What only the caller knows of weights.
    pub(super) supplied: Option<Arc<dyn Supplied>>,
    /// Of labels that are drawn.
    pub(super) seed: u64,
    pub(super) work: &'a mut Work,
    pub(super) tell: &'a mut dyn FnMut(Event<'_>),
    pub(super) cancel: Option<&'a AtomicBool>,
}

impl Rewriting<'_> {
    /// Does what is not done yet; there is at least one rewrite.
    pub(super) fn run(&mut self, source: &Source, rewrites: &[Named]) -> Result<Rewritten> {
        let mut current: Option<Source> = None;
        let mut notes = BTreeMap::new();
        let mut origins: Vec<usize> = (0..source.blocks()).collect();
        for (index, (text, rewrite)) in rewrites.iter().enumerate() {
            let before = current.as_ref().unwrap_or(source);
            let model = before.layout(self.plain);
            let one = One { index, text, rewrite: &**rewrite, source: before, model: &model };
            let edits = self.one(&one, &mut notes)?;
            let mut after = before.edited(&edits, self.plain)?;
            if rewrite.changes_head() {
                after = after.edited_head(&self.edit_head(&one, source, &after)?)?;
            }
            let stays = |block: &usize| !edits[*block].is_dropped();
            let left: Vec<usize> = (0..edits.len()).filter(stays).collect();
            notes = renumbered(notes, &model, &left, &after);
            origins = left.iter().map(|block| origins[*block]).collect();
            current = Some(after);
        }
        let texts: Vec<&str> = rewrites.iter().map(|(text, _)| text.as_str()).collect();
        let left = current.ok_or_else(|| Error::invalid("no rewrite"))?;
        let report = |block| {
            let now = origins.iter().position(|origin| *origin == block);
            let after = now.map_or(BlockShape::default(), |now| left.config().shape(now));
            BlockReport { block, before: source.config().shape(block), after }
        };
        let blocks = (0..source.blocks()).map(report).collect();
        Ok(Rewritten { blocks, text: texts.join(" | "), notes, source: left })
    }

    /// The edits of one rewrite.
    fn one(&mut self, one: &One<'_>, notes: &mut BTreeMap<String, String>) -> Result<Vec<Edit>> {
        one.rewrite.fits(one.model)?;
        let judgements = self.judge(one)?;
        let path = self.work.step(one.index, Step::Decisions);
        if self.done(one).is_none_or(|steps| steps.decisions.is_none()) {
            let decisions = one.rewrite.settle(one.model, &judgements)?;
            let stored = store::write_decisions(&path, &decisions)?;
            self.work.decided(one.index, stored)?;
        }
        let decisions = store::read_decisions(&path)?;
        if decisions.len() != judgements.len() {
            let (found, needed) = (decisions.len(), judgements.len());
            let message = format!("`{}`: {found} decisions for {needed} blocks", one.text);
            return Err(Error::invalid(message));
        }
        let mut edits = Vec::with_capacity(decisions.len());
        for (block, (judgement, decision)) in judgements.iter().zip(&decisions).enumerate() {
            let edit = self.edit(one, block, judgement, decision)?;
            for (weight, text) in judgement.notes().iter().chain(edit.notes()) {
                let all: &mut String = notes.entry(weight.clone()).or_default();
                let more = if all.is_empty() { "" } else { "; " };
                *all = format!("{all}{more}{text}");
            }
            edits.push(edit);
        }
        Ok(edits)
    }

    fn done(&self, one: &One<'_>) -> Option<&Steps> {
        self.work.rewrite(one.index)
    }

    fn judge(&mut self, one: &One<'_>) -> Result<Vec<Judgement>> {
        let (blocks, source) = (one.source.blocks(), one.source);
        let mut judgements = Vec::with_capacity(blocks);
        let mut stream = None;
        let judged = self.done(one).map_or(0, |steps| steps.judged.len());
        let supplied = if judged < blocks { self.supplied(one)? } else { None };
        let compares = judged < blocks && one.rewrite.needs_outputs();
        let whole = if compares { Some(self.outputs(source)?) } else { None };
        for block in 0..blocks {
            let path = self.work.step(one.index, Step::Judgement(block));
            if self.done(one).is_none_or(|steps| block >= steps.judged.len()) {
                (self.tell)(Event::Judged { stage: one.text, block, blocks });
                super::check_cancelled(self.cancel)?;
                let begins = stream.is_none() || stack_of(source, block).1 == block;
                if begins && streams(one.rewrite) {
                    stream = Some(self.stream(one, block)?);
                }
                let without = match (&whole, &stream) {
                    (Some(_), Some(stream)) => Some(self.without(source, block, stream)?),
                    _ => None,
                };
                let outputs = whole.as_ref().zip(without.as_ref()).map(<[_; 2]>::from);
                let judgement = one.judge(block, stream.as_mut(), supplied.as_ref(), outputs)?;
                source.checkpoint().release();
                let stored = store::write_judgement(&path, &judgement)?;
                self.work.judged(one.index, stored)?;
            }
            judgements.push(store::read_judgement(&path)?);
        }
        Ok(judgements)
    }

    /// What only a caller knows of weights, where a rewrite asks for it: the caller's, or gradients of a pass.
    fn supplied(&mut self, one: &One<'_>) -> Result<Option<Arc<dyn Supplied>>> {
        // What a caller knows is of the model as it was, under the names and in the shapes that matrices have there.
        let of_caller = self.supplied.clone().filter(|_| one.index == 0);
        if of_caller.is_some() || !gradients::wanted(one.rewrite) {
            return Ok(of_caller);
        }
        let (work, index) = (&*self.work, one.index);
        let path = |number| work.step(index, Step::Gradients(number));
        let (source, samples) = (one.source, self.samples);
        let passing =
            Passing { source, samples, seed: self.seed, path: &path, cancel: self.cancel };
        match passing.find(one.rewrite, self.tell)? {
            Usable::Yes(found) => Ok(Some(found)),
            Usable::No(reason) => self.work.say(reason).map(|()| None),
        }
    }

    /// Hidden states before a block.
    fn stream(&self, one: &One<'_>, block: usize) -> Result<Stream> {
        let (stack, first) = stack_of(one.source, block);
        let mut stream = Stream::begin(one.source, stack, self.samples, None, false)?;
        for before in first..block {
            super::check_cancelled(self.cancel)?;
            stream.pass(&one.source.block(before)?)?;
            one.source.checkpoint().release();
        }
        Ok(stream)
    }

    fn edit(
        &mut self,
        one: &One<'_>,
        block: usize,
        judgement: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        let path = self.work.step(one.index, Step::Edit(block));
        if self.done(one).is_none_or(|steps| block >= steps.edits.len()) {
            super::check_cancelled(self.cancel)?;
            let view = BlockView::new(&one.model.blocks[block], one.source.checkpoint());
            let edit = one.rewrite.edit(one.model, &view, judgement, decision)?;
            one.source.checkpoint().release();
            let stored = store::write_edit(&path, &edit)?;
            self.work.edited(one.index, stored)?;
        }
        store::read_edit(&path)
    }
}

/// One rewrite, and the model it sees.
struct One<'a> {
    index: usize,
    text: &'a str,
    rewrite: &'a dyn Rewrite,
    source: &'a Source,
    model: &'a ModelLayout,
}

impl One<'_> {
    /// Judges a block; the hidden states of the stream run through it.
    fn judge(
        &self,
        block: usize,
        stream: Option<&mut Stream>,
        supplied: Option<&Arc<dyn Supplied>>,
        outputs: Option<[&Array2<f32>; 2]>,
    ) -> Result<Judgement> {
        let view = BlockView::new(&self.model.blocks[block], self.source.checkpoint());
        let view = match outputs {
            Some([whole, without]) => view.with_outputs(Outputs::new(whole.view(), without.view())),
            None => view,
        };
        let Some(stream) = stream else {
            let Some(by) = supplied else { return self.rewrite.judge(self.model, &view) };
            // There are no statistics, but every input is a way to what the caller knows.
            let linears = self.model.blocks[block].linears.iter();
            let inputs = linears.map(|spec| {
                (spec.input, Calibration::none(spec.shape[1]).with_supplied(by.clone()))
            });
            let inputs = inputs.collect();
            return self.rewrite.judge(self.model, &view.with_inputs(&inputs));
        };
        let before = self.rewrite.needs_states().then(|| stream.hidden().to_owned());
        let watched = watches(self.rewrite);
        let needs = |input| {
            let wanted = watched && self.rewrite.inputs().contains(&input);
            if wanted { self.rewrite.needs() } else { Needs::NONE }
        };
        let experts = self.model.blocks[block].experts.as_ref().map(|experts| experts.count);
        let experts = experts.filter(|_| self.rewrite.needs_experts());
        let block = self.source.block(block)?;
        let (mut inputs, experts) = stream.watch_all(&block, &needs, experts)?;
        if let Some(by) = supplied {
            let with = |(input, seen): (_, Calibration)| (input, seen.with_supplied(by.clone()));
            inputs = inputs.into_iter().map(with).collect();
        }
        let view = view.with_inputs(&inputs);
        let view = experts.iter().fold(view, |view, experts| view.with_experts(experts));
        let view = match &before {
            None => view,
            Some(before) => {
                view.with_states(States::new(before.view(), stream.hidden(), stream.lengths()))
            }
        };
        self.rewrite.judge(self.model, &view)
    }
}

/// Notes on the weights of blocks that stay, under the numbers these have now.
fn renumbered(
    notes: BTreeMap<String, String>,
    model: &ModelLayout,
    left: &[usize],
    after: &Source,
) -> BTreeMap<String, String> {
    let rename = |(name, note): (String, String)| {
        let layout = model.blocks.iter().find(|layout| name.starts_with(&layout.prefix));
        let Some(layout) = layout else { return Some((name, note)) };
        let now = left.binary_search(&layout.block).ok()?;
        Some((format!("{}{}", after.block_prefix(now), &name[layout.prefix.len()..]), note))
    };
    notes.into_iter().filter_map(rename).collect()
}
