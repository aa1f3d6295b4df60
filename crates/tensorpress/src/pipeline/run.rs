//! The work of a run, once everything is found out that it takes.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_model::Source;
use tensorpress_tensor::{Registry, Result, Usable};

use super::advance::Stream;
use super::calibration::Samples;
use super::folder::Work;
use super::mix::{self, Outline, Outlook, Sharing};
use super::plan::Plan;
use super::rewrite::{Named, Rewriting, Rewritten};
use super::share::Shares;
use super::state::Unit;
use super::{
    BlockReport, Compressor, Context, Event, LayerReport, backward, block, finish, share, tables,
};

/// What is to be done, checked.
pub(super) struct Task<'r> {
    pub(super) source: &'r Source,
    pub(super) out: &'r Path,
    pub(super) rewrites: Vec<Named>,
    pub(super) samples: Samples,
    pub(super) plan: Plan,
    pub(super) plain: bool,
    pub(super) outline: Option<Outline>,
}

/// What came of the work.
pub(super) struct Done {
    pub(super) notes: Vec<String>,
    pub(super) layers: Vec<LayerReport>,
    pub(super) blocks: Vec<BlockReport>,
    /// Shards that an earlier run had finished.
    pub(super) resumed: usize,
    pub(super) registry: Registry,
    /// What a mix chose among.
    pub(super) outlook: Option<Outlook>,
}

impl Compressor<'_> {
    /// The work, once everything is found out that it takes.
    pub(super) fn work(&mut self, task: Task<'_>, work: &mut Work) -> Result<Done> {
        let Task { source, out, rewrites, samples, plan, plain, outline } = task;
        let rewritten = self.rewrite(source, &rewrites, &samples, plain, work)?;
        let original = source;
        let source = rewritten.as_ref().map_or(source, |rewritten| &rewritten.source);
        let plan = match (&rewritten, &self.mix) {
            // Names of weights are those of the model that is left.
            (Some(_), None) => Plan::new(source, &self.recipe, true)?,
            (Some(_), Some(mix)) => mix.plan(source)?,
            (None, _) => plan,
        };
        work.begin(source.blocks())?;
        let cancel = self.cancel.clone();
        let registry = self.registry.take().unwrap_or_else(crate::registry);
        let rewritten = rewritten.as_ref();
        let mut context = Context {
            source,
            rewritten,
            registry,
            plan,
            // What a caller knows is of the model as it was.
            supplied: self.supplied.clone().filter(|_| rewritten.is_none()),
            inputs: self.inputs,
            steps: BTreeMap::new(),
            own_steps: BTreeMap::new(),
            original,
            outline,
            seed: self.seed,
            cancel,
        };
        let mix = self.mix.take();
        // What was made may be made again, where a size is looked for.
        let complete = work.is_complete() && (self.judged_on.is_none() || work.is_settled());
        if context.supplied.is_none() && !complete {
            let found = backward::find(&context, &samples, work, &mut |event| self.tell(event))?;
            match found {
                Usable::Yes(found) => context.supplied = found,
                Usable::No(reason) => work.say(reason)?,
            }
        }
        if !complete {
            share::find(&context, &samples, work, &mut |event| self.tell(event))?;
        }
        if let Some(mix) = mix.as_ref().filter(|_| !complete) {
            mix.note(source)?.into_iter().try_for_each(|note| work.say(note))?;
            mix.measure(&context, &samples, work, &mut |event| self.tell(event))?;
        }
        let resumed = work.units().len();
        self.tell(Event::Begun { blocks: source.blocks(), resumed: resumed.saturating_sub(1) });
        let config = if plain { source.raw_config().clone() } else { finish::config(source)? };
        let judged_on = self.judged_on.take();
        let mut outlook = None;
        loop {
            let mut sharing = match &mix {
                Some(mix) => Some(Sharing::new(&mut context, mix, work)?),
                None => None,
            };
            if let (Some(sharing), None) = (&sharing, &outlook) {
                outlook = Some(Outlook::of(&context, sharing, &[])?);
            }
            self.shards(&mut context, &samples, sharing.as_mut(), work)?;
            for note in sharing.iter().flat_map(Sharing::notes) {
                work.say(note.clone())?;
            }
            finish::assemble(work, source, out, &config)?;
            let Some((mix, sharing)) = mix.as_ref().zip(sharing) else { break };
            let Some(segments) = judged_on.as_deref() else { break };
            if mix.judge(&context, segments, &sharing, work, &mut |event| self.tell(event))? {
                break;
            }
        }
        if let (Some(mix), false) = (&mix, work.attempts().is_empty()) {
            let sharing = Sharing::new(&mut context, mix, work)?;
            outlook = Some(Outlook::of(&context, &sharing, work.attempts())?);
        }
        if let Some(outlook) = &mut outlook {
            outlook.decisions =
                work.units().iter().flat_map(|unit| unit.decisions.clone()).collect();
        }
        let notes = work.notes().to_vec();
        let layers = work.units().iter().flat_map(|unit| unit.layers.clone()).collect();
        let blocks = rewritten.map(|rewritten| rewritten.blocks.clone()).unwrap_or_default();
        Ok(Done { notes, layers, blocks, resumed, registry: context.registry, outlook })
    }

    /// Makes the shards that are not made yet.
    fn shards(
        &mut self,
        context: &mut Context<'_>,
        samples: &Samples,
        mut sharing: Option<&mut Sharing>,
        work: &mut Work,
    ) -> Result<()> {
        let source = context.source;
        let mut shares = Shares::new(context, work);
        if work.units().is_empty() {
            let path = work.shard(0);
            let make =
                |context: &Context<'_>| context.sized(tables::compress(context, &path)?, &path);
            let unit = mix::settle(context, sharing.as_deref_mut(), 0, make)?;
            self.report(&unit);
            work.finished(unit)?;
        }
        mix::settled(context, sharing.as_deref_mut(), 0, work)?;
        let mut stream = None;
        let calibrated = context.plan.needs_calibration().is_some() && !work.is_complete();
        let stacks = source.config().stacks();
        for index in 0..source.blocks() {
            context.check_cancelled()?;
            let begun = stacks.iter().position(|(blocks, _)| blocks.start == index);
            if let Some(stack) = begun.filter(|_| calibrated) {
                // The one before has served; and of a stack that is done, nothing is left to serve.
                stream = None;
                if work.units().len() <= stacks[stack].0.end {
                    stream = Some(Stream::of(context, stack, samples, &work.shard(0))?);
                }
            }
            let shard = work.shard(index + 1);
            context.steps = shares.steps(index);
            if work.units().len() <= index + 1 {
                self.tell(Event::Block { block: index, blocks: source.blocks() });
                let make = |context: &Context<'_>| {
                    let unit = block::compress(context, index, stream.as_ref(), &shard)?;
                    context.sized(unit, &shard)
                };
                let unit = mix::settle(context, sharing.as_deref_mut(), index + 1, make)?;
                self.report(&unit);
                work.finished(unit)?;
            }
            mix::settled(context, sharing.as_deref_mut(), index + 1, work)?;
            shares.done(index, &work.units()[index + 1]);
            if index == 0 {
                self.then.check_first(&shard, &context.registry)?;
            }
            if let Some(stream) = stream.as_mut().filter(|_| !work.is_complete()) {
                context.check_cancelled()?;
                stream.advance(context, index, &shard)?;
            }
            source.checkpoint().release();
        }
        Ok(())
    }

    /// The model that the rewrites leave, if there are any.
    fn rewrite(
        &mut self,
        source: &Source,
        rewrites: &[Named],
        samples: &Samples,
        plain: bool,
        work: &mut Work,
    ) -> Result<Option<Rewritten>> {
        if rewrites.is_empty() {
            return Ok(None);
        }
        let (cancel, supplied, seed) = (self.cancel.clone(), self.supplied.clone(), self.seed);
        let (mut tell, cancel) = (|event: Event<'_>| self.tell(event), cancel.as_deref());
        let tell = &mut tell;
        let mut steps = Rewriting { samples, plain, supplied, seed, work, tell, cancel };
        steps.run(source, rewrites).map(Some)
    }

    fn report(&mut self, unit: &Unit) {
        for layer in &unit.layers {
            self.tell(Event::Layer(layer));
        }
    }
}
