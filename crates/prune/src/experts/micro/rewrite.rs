//! The removal of micro-experts as a rewrite: judge, settle, edit.

use tensorpress_tensor::rewrite::{
    BlockLayout, BlockView, Decision, Edit, Expert, Judgement, LinearSpec, ModelLayout, Role,
    Sayable, SharedInput,
};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Error, Method, Result, Rewrite, Usable};

use super::choice::best;
use super::{Choice, MicroScore, OneExpert, Rival, SlimExperts};

/// Names of what is remembered: scores expert by expert, and how many of these are norms.
const SCORES: &str = "scores";
const NORMS: &str = "norms";
const WIDTHS: &str = "widths";

/// Scores by expert.
fn remembered(layout: &BlockLayout, judgement: &Judgement) -> Result<Vec<Vec<f64>>> {
    let scores = judgement.values(SCORES)?;
    let widths = layout.expert_widths();
    if scores.len() != widths.iter().sum::<usize>() {
        return Err(Error::shape("scores of experts of other widths"));
    }
    let mut rest = &scores[..];
    let each = widths.into_iter().map(|width| {
        let (now, later) = rest.split_at(width);
        rest = later;
        now.to_vec()
    });
    Ok(each.collect())
}

impl<S: MicroScore> Method for SlimExperts<S> {
    fn id(&self) -> &'static str {
        self.id
    }

    fn needs(&self) -> Needs {
        self.score.needs()
    }
}

impl<S: MicroScore> Rewrite for SlimExperts<S> {
    fn inputs(&self) -> &[SharedInput] {
        &[]
    }

    fn needs_experts(&self) -> bool {
        self.score.needs_experts()
    }

    fn asks_of(&self, spec: &LinearSpec) -> bool {
        matches!(spec.expert, Some(Expert::Routed(_))) && self.score.asks_of(spec.role)
    }

    fn keeps_blocks_alike(&self) -> bool {
        self.choice == Choice::Expert
    }

    fn is_sayable(&self, says: Sayable) -> bool {
        says.expert_width
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        self.check().map_err(|e| Error::invalid(format!("{}: {}", self.id, e.message())))?;
        let mixed = model.blocks.iter().filter(|block| block.experts.is_some());
        let narrow = |block: &BlockLayout| block.expert_widths().contains(&0);
        match mixed.clone().find(|block| narrow(block)) {
            _ if mixed.clone().next().is_none() => Err(Error::unsupported(format!(
                "{}: {} has no experts that a router chooses from",
                self.id, model.architecture
            ))),
            Some(block) => Err(Error::unsupported(format!(
                "{}: experts of block {} have no matrix {:?}, whose columns go",
                self.id,
                block.block,
                Role::Down
            ))),
            None => Ok(()),
        }
    }

    /// Scores; norms where these cannot be had: of the expert, or of all its rivals in the block, and a note says so.
    fn judge(&self, _: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement> {
        let Some(experts) = &block.layout().experts else { return Ok(Judgement::new()) };
        let mut judgement = Judgement::new();
        let (mut all, mut reasons) = (Vec::new(), Vec::new());
        for index in 0..experts.count {
            let scores = self.score.scores(&OneExpert::new(*block, index)?)?;
            let finite = |scores: Vec<f64>| match scores.iter().all(|score| score.is_finite()) {
                true => Usable::Yes(scores),
                false => Usable::no("scores are not finite"),
            };
            let (scores, reason) = match scores.and_then(finite) {
                Usable::Yes(scores) => (scores, None),
                Usable::No(reason) => (Vec::new(), Some(reason)),
            };
            all.push(scores);
            reasons.push(reason);
        }
        let first = reasons.iter().flatten().next().cloned();
        let mut norms = 0;
        for (index, scores) in all.iter_mut().enumerate() {
            let among = if self.choice == Choice::Expert { &reasons[index] } else { &first };
            let Some(reason) = among else { continue };
            let expert = OneExpert::new(*block, index)?;
            *scores = expert.norms()?;
            norms += 1;
            let note = format!("{reason}: channels were judged by norms");
            judgement = judgement.with_note(&expert.down().name, &note);
        }
        Ok(judgement.with_values(SCORES, &all.concat()).with_values(NORMS, &[f64::from(norms)]))
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        if judgements.len() != model.blocks.len() {
            let (found, needed) = (judgements.len(), model.blocks.len());
            return Err(Error::insufficient(format!("{found} judgements of {needed} blocks")));
        }
        let rival = |(layout, judgement): (&BlockLayout, &Judgement)| -> Result<Rival> {
            if layout.experts.is_none() {
                return Ok(Rival::default());
            }
            let norms = judgement.values(NORMS)?.first().is_some_and(|number| *number > 0.0);
            let scores = remembered(layout, judgement)?;
            Ok(Rival::new(scores).with_alone(norms).with_even(layout.has_stacks()))
        };
        let rivals = model.blocks.iter().zip(judgements).map(rival).collect::<Result<Vec<_>>>()?;
        let widths = self.choice.widths(self.sparsity, &rivals);
        Ok(widths.into_iter().map(|widths| Decision::new().with_kept(WIDTHS, widths)).collect())
    }

    fn edit(
        &self,
        _: &ModelLayout,
        block: &BlockView<'_>,
        judgement: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        let layout = block.layout();
        if layout.experts.is_none() {
            return Ok(Edit::new());
        }
        let scores = remembered(layout, judgement)?;
        let kept = scores.iter().zip(decision.kept(WIDTHS)?).map(|(scores, width)| {
            let mut kept = best(scores, *width);
            kept.sort_unstable();
            kept
        });
        let edit = Edit::expert_channels(layout, &kept.collect::<Vec<_>>())?;
        Ok(match layout.of_expert(0).next() {
            Some(first) if layout.has_stacks() && self.choice != Choice::Expert => {
                edit.with_note(&first.name, "experts in one stack: as many channels of each stay")
            }
            _ => edit,
        })
    }
}
