//! A structured pruner as a rewrite: judge, settle, edit.

use tensorpress_tensor::rewrite::{
    BlockCut, BlockLayout, BlockView, Decision, Edit, Judgement, ModelLayout, SharedInput,
};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Context, Error, Method, Result, Rewrite, Usable};

use super::allocation::{Judged, Units, share_of};
use super::repair::Site;
use super::unit::can_lose_heads;
use super::{
    Allocation, Module, Norms, Part, Score, Structured, Track, angular_distance, influence,
};

const INFLUENCE: &str = "influence";

impl<S: Score> Structured<S> {
    /// The modules of this model that may lose units.
    fn modules(&self, model: &ModelLayout) -> impl Iterator<Item = Module> + use<S> {
        let heads = self.heads && can_lose_heads(model);
        let judged = self.score.modules().iter().copied();
        judged.filter(move |module| heads || *module == Module::Channels)
    }

    /// The share of units that has to go; of their time, where that is what is shared out.
    fn share(&self, model: &ModelLayout) -> Result<f64> {
        if matches!(self.allocation, Allocation::Levels { latency: Some(_), .. }) {
            return Ok(self.sparsity);
        }
        let of = |count: &dyn Fn(&BlockLayout) -> usize| -> u64 {
            model.blocks.iter().map(|block| count(block) as u64).sum()
        };
        let movable = self.modules(model).map(|module| of(&|block| module.weights(block))).sum();
        share_of(self.sparsity, movable, of(&BlockLayout::weights))
    }

    fn part<'a>(
        &self,
        module: Module,
        view: BlockView<'a>,
        model: &ModelLayout,
    ) -> Result<Part<'a>> {
        Ok(Part::new(module, view)?.with_share(self.share(model)?).with_damp(self.damp))
    }

    fn judged(&self, module: Module, layout: &BlockLayout, track: Track) -> Units {
        let units = module.units(layout).max(1);
        let weights = (module.weights(layout) / units) as u64;
        let multiple = if module == Module::Channels { self.multiple } else { 1 };
        Units::new(track, weights).with_multiple(multiple)
    }
}

fn remembered(judgement: &Judgement, module: Module) -> Result<Track> {
    let [order, steps] = names(module).map(|name| judgement.values(&name));
    Track::new(order?.into_iter().map(|unit| unit as usize).collect(), steps?)
}

fn names(module: Module) -> [String; 2] {
    ["order", "steps"].map(|what| format!("{}.{what}", module.name()))
}

impl<S: Score> Method for Structured<S> {
    fn id(&self) -> &'static str {
        self.id
    }

    fn needs(&self) -> Needs {
        self.score.needs().union(self.repair.needs())
    }
}

impl<S: Score> Rewrite for Structured<S> {
    fn inputs(&self) -> &[SharedInput] {
        match self.score.modules() {
            _ if !self.heads => &[SharedInput::MlpOutput],
            [Module::Channels] => &[SharedInput::MlpOutput],
            _ => &[SharedInput::AttentionOutput, SharedInput::MlpOutput],
        }
    }

    fn needs_states(&self) -> bool {
        self.allocation.needs_states()
    }

    fn keeps_blocks_alike(&self) -> bool {
        self.allocation == Allocation::Uniform
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        self.check()?;
        model.check_editable(self.id)?;
        for block in &model.blocks {
            for module in self.modules(model) {
                let missing = || {
                    let (id, block, role) = (self.id, block.block, module.reader());
                    Error::unsupported(format!(
                        "{id}: block {block} has no matrix {role:?}, whose inputs are judged"
                    ))
                };
                block.linear(module.reader()).ok_or_else(missing)?;
            }
            if self.keeps_blocks_alike() && block.shape != model.blocks[0].shape {
                return Err(Error::unsupported(format!(
                    "{}: block {} has another shape than block 0: the same share of all is for blocks that are alike",
                    self.id, block.block
                )));
            }
        }
        self.share(model).map(drop)
    }

    /// Judges by the norms of units where statistics cannot be used, and says so.
    fn judge(&self, model: &ModelLayout, view: &BlockView<'_>) -> Result<Judgement> {
        let mut judgement = Judgement::new();
        for module in self.modules(model) {
            let part = self.part(module, *view, model)?;
            let name = &part.reader().name;
            let track = match self.score.track(&part).in_tensor(name)? {
                Usable::Yes(track) => track,
                Usable::No(reason) => {
                    judgement = judgement.with_note(name, &format!("{reason}: judged by norms"));
                    match Norms.track(&part).in_tensor(name)? {
                        Usable::Yes(track) => track,
                        Usable::No(reason) => return Err(Error::numerical(reason).in_tensor(name)),
                    }
                }
            };
            let order: Vec<f64> = track.order.iter().map(|unit| *unit as f64).collect();
            let [named_order, named_steps] = names(module);
            judgement =
                judgement.with_values(&named_order, &order).with_values(&named_steps, &track.steps);
            judgement = self.repair.remember(&part, judgement)?;
        }
        let turned = match self.allocation {
            Allocation::Sigmoid { .. } => view.states().and_then(angular_distance),
            Allocation::Softmax { .. } => view.states().and_then(influence),
            _ => return Ok(judgement),
        };
        Ok(match (turned, view.layout().linears.first()) {
            (Some(turned), _) => judgement.with_values(INFLUENCE, &[turned]),
            (None, Some(first)) => judgement.with_note(
                &first.name,
                "no token with finite hidden states: the block counts as the mean of the others",
            ),
            (None, None) => judgement,
        })
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        self.fits(model)?;
        let judged = |(layout, judgement): (&BlockLayout, &Judgement)| -> Result<Judged> {
            let turned = match judgement.has(INFLUENCE) {
                true => judgement.values(INFLUENCE)?.first().copied(),
                false => None,
            };
            let judged = Judged::new(layout.weights() as u64).with_influence(turned);
            self.modules(model).try_fold(judged, |judged, module| {
                let units = self.judged(module, layout, remembered(judgement, module)?);
                Ok(judged.with_units(module, units))
            })
        };
        let blocks = model.blocks.iter().zip(judgements).map(judged).collect::<Result<Vec<_>>>()?;
        let gone = self.allocation.settle(self.sparsity, &blocks)?;
        let decide = |((layout, judged), gone): ((&BlockLayout, &Judged), [usize; 2])| {
            let each = Module::ALL.into_iter().zip(&judged.modules).zip(gone);
            each.fold(Decision::new(), |decision, ((module, units), gone)| {
                let all = || (0..module.units(layout)).collect();
                let kept = units.as_ref().map_or_else(all, |units| units.track.kept(gone));
                decision.with_kept(module.name(), kept)
            })
        };
        Ok(model.blocks.iter().zip(&blocks).zip(gone).map(decide).collect())
    }

    fn edit(
        &self,
        model: &ModelLayout,
        view: &BlockView<'_>,
        judgement: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        let layout = view.layout();
        let [groups, channels] = Module::ALL.map(|module| decision.kept(module.name()));
        let (groups, channels) = (groups?, channels?);
        let group = layout.shape.heads / layout.shape.kv_heads.max(1);
        let heads = groups.iter().flat_map(|g| g * group..(g + 1) * group).collect();
        let cut = BlockCut::new(heads, groups.to_vec(), channels.to_vec());
        let mut edit = Edit::cut(model, layout, &cut)?;
        for module in self.modules(model) {
            let kept = decision.kept(module.name())?;
            if kept.len() == module.units(layout) {
                continue;
            }
            let part = self.part(module, *view, model)?;
            let track = remembered(judgement, module)?;
            let site = Site { model, part: &part, judgement, track: &track, kept };
            edit = self.repair.apply(&site, edit)?;
        }
        Ok(edit)
    }
}
