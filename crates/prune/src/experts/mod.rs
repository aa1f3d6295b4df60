//! Whole experts of a mixture go, without retraining: the least by a score, as many in every block.
//!
//! - score: what an expert did with its tokens ([`ExpertScore`]): [`Reap`], [`Usage`], [`Collaborative`];
//! - support: the lowest of each block, and of each group of experts that a token chooses between first;
//! - repair: none. The router renormalises over what stays, where it does so at all.
//!
//! [`Stun`] chooses by likeness instead: of experts that a router can hardly tell apart, one stays. In [`micro`], experts stay
//! and become narrower. [`stick_breaking`] is the attention of models whose heads are experts too.

mod mean;
pub mod micro;
mod score;
mod stick_breaking;
mod stun;

use tensorpress_tensor::rewrite::{
    BlockLayout, BlockView, Decision, Edit, Experts, Judgement, ModelLayout, SharedInput,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Error, Method, Result, Rewrite};

pub use score::{Collaborative, ExpertScore, Reap, Usage};
pub use stick_breaking::{stick_breaking, stick_breaking_backward};
pub use stun::Stun;

/// Drops the experts of lowest score.
///
/// Of every block as many go: ⌊experts x sparsity⌋, where a token still finds as many as it goes to; of equal scores, those
/// of later experts. Blocks without experts stay as they are.
///
/// ```
/// use tensorpress_prune::experts::{DropExperts, Reap};
///
/// let half = DropExperts::<Reap>::default().with_sparsity(0.5);
/// assert_eq!(half.kept(&[4.0, 1.0, 3.0, 2.0], 1, 1), [0, 2]);
/// // In two groups, each loses as many.
/// assert_eq!(half.kept(&[4.0, 1.0, 3.0, 2.0, 9.0, 8.0, 7.0, 6.0], 2, 1), [0, 2, 4, 5]);
/// // Three of each stay whatever goes elsewhere.
/// assert_eq!(half.kept(&[4.0, 1.0, 3.0, 2.0], 1, 3), [0, 2, 3]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DropExperts<S> {
    /// Fraction of the experts of each block that goes, 0 to below 1.
    pub sparsity: f64,
    /// What an expert is judged by.
    pub score: S,
}

/// A quarter goes.
impl<S: Default> Default for DropExperts<S> {
    fn default() -> Self {
        Self { sparsity: 0.25, score: S::default() }
    }
}

impl<S> DropExperts<S> {
    /// Sets the fraction that goes.
    #[must_use]
    pub fn with_sparsity(mut self, sparsity: f64) -> Self {
        self.sparsity = sparsity;
        self
    }

    /// Sets what an expert is judged by.
    #[must_use]
    pub fn with_score(mut self, score: S) -> Self {
        self.score = score;
        self
    }

    /// The experts that stay, ascending, of scores in groups of as many each, where at least `least` stay of each group.
    ///
    /// # Panics
    /// Unless the groups divide the experts.
    #[must_use]
    pub fn kept(&self, scores: &[f64], groups: usize, least: usize) -> Vec<usize> {
        assert!(groups > 0 && scores.len().is_multiple_of(groups), "groups of one size");
        let size = scores.len() / groups;
        let gone = gone(self.sparsity, size, least);
        let mut kept = Vec::with_capacity(scores.len());
        for group in 0..groups {
            let mut order: Vec<usize> = (group * size..(group + 1) * size).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
            order.truncate(size - gone);
            kept.extend(order);
        }
        kept.sort_unstable();
        kept
    }
}

/// How many go of a group.
fn gone(sparsity: f64, size: usize, least: usize) -> usize {
    crate::pattern::count(size, sparsity).min(size.saturating_sub(least.max(1)))
}

/// `InvalidArgument` for a fraction that is none, `Unsupported` for a model without experts.
fn fits(name: &str, sparsity: f64, model: &ModelLayout) -> Result<()> {
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::invalid(format!(
            "{name}: sparsity = {sparsity}: allowed are 0 to below 1, for something must stay"
        )));
    }
    let mut all = model.blocks.iter().filter_map(|block| block.experts.as_ref());
    let Some(first) = all.next() else {
        return Err(Error::unsupported(format!(
            "{name}: {} has no experts that a router chooses from",
            model.architecture
        )));
    };
    let size = first.count / first.groups;
    let (asked, most) = (crate::pattern::count(size, sparsity), size - first.least());
    if asked <= most {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name}: sparsity = {sparsity}: a token goes to {} of {} experts (in {} of {} groups), so that {} can go at most",
        first.chosen,
        first.count,
        first.open_groups,
        first.groups,
        most * first.groups
    )))
}

/// Names of what is remembered.
const SCORES: &str = "scores";
const KEPT: &str = "experts";

/// The decision to keep these, of a block that has experts.
fn decision(kept: Vec<usize>) -> Decision {
    Decision::new().with_kept(KEPT, kept)
}

/// What a decision does.
fn edit(layout: &BlockLayout, decision: &Decision) -> Result<Edit> {
    match &layout.experts {
        Some(_) => Edit::experts(layout, decision.kept(KEPT)?),
        None => Ok(Edit::new()),
    }
}

/// What a settlement does with each block: none of those without experts changes.
fn settle(
    model: &ModelLayout,
    judgements: &[Judgement],
    decided: &dyn Fn(&Experts, &Judgement) -> Result<Decision>,
) -> Result<Vec<Decision>> {
    if judgements.len() != model.blocks.len() {
        let (found, needed) = (judgements.len(), model.blocks.len());
        return Err(Error::insufficient(format!("{found} judgements of {needed} blocks")));
    }
    let decide = |(layout, judgement): (&BlockLayout, &Judgement)| match &layout.experts {
        Some(experts) => decided(experts, judgement),
        None => Ok(Decision::new()),
    };
    model.blocks.iter().zip(judgements).map(decide).collect()
}

impl<S: ExpertScore> Knobs for DropExperts<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "fraction of the experts of each block that goes, below 1";
        keys.float("sparsity", &mut self.sparsity, 0.0..=1.0, about)?;
        self.score.knobs(keys)
    }
}

impl<S: ExpertScore> Method for DropExperts<S> {
    fn id(&self) -> &'static str {
        self.score.id()
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl<S: ExpertScore> Rewrite for DropExperts<S> {
    fn inputs(&self) -> &[SharedInput] {
        &[]
    }

    fn needs_experts(&self) -> bool {
        true
    }

    fn keeps_blocks_alike(&self) -> bool {
        true
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        fits(self.id(), self.sparsity, model)
    }

    /// Scores; where no token was seen, or what experts made was not finite, the norms of their matrices, and a note says so.
    fn judge(&self, _: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement> {
        let layout = block.layout();
        let Some(experts) = &layout.experts else { return Ok(Judgement::new()) };
        if let Some(activity) = block.experts().filter(|activity| activity.is_usable()) {
            let scores = self.score.scores(activity);
            return Ok(Judgement::new().with_values(SCORES, &scores));
        }
        let scores = score::norms(block, experts.count)?;
        let note = "no finite tokens were seen: experts were judged by the norms of their matrices";
        Ok(Judgement::new().with_values(SCORES, &scores).with_note(&experts.router, note))
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        settle(model, judgements, &|all, judgement| {
            let scores = judgement.values(SCORES)?;
            if scores.len() != all.count {
                return Err(Error::shape("scores of another number of experts"));
            }
            Ok(decision(self.kept(&scores, all.groups, all.least())))
        })
    }

    fn edit(
        &self,
        _: &ModelLayout,
        block: &BlockView<'_>,
        _: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        let edit = edit(block.layout(), decision)?;
        let (Some(experts), Some(shape)) = (&block.layout().experts, edit.shape()) else {
            return Ok(edit);
        };
        let chosen = self.score.chosen(experts.chosen, shape.experts, experts.count);
        let shape = shape.clone().with_chosen(chosen);
        Ok(if chosen < experts.chosen { edit.with_shape(shape) } else { edit })
    }
}

pub(crate) fn stages() -> Vec<Row<WeightPart>> {
    let mut all = vec![
        row::<Reap>("removes the experts that add least to their tokens, factor times norm"),
        row::<Usage>("removes the experts that tokens go to least"),
        row::<Collaborative>("removes experts by how often and how strongly they are chosen"),
        stun::stage(),
    ];
    all.extend(micro::rows());
    all
}

fn row<S: ExpertScore + Default + Clone + Copy + 'static>(about: &'static str) -> Row<WeightPart> {
    Row::rewrite(S::default().id(), about, DropExperts::<S>::default)
}
