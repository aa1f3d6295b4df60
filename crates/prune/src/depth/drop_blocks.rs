//! Dropping whole blocks of a decoder.

use tensorpress_tensor::rewrite::{
    BlockView, Decision, Edit, Judgement, Level, ModelLayout, SharedInput,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Error, Method, Result, Rewrite, Usable};

use super::BlockScore;
use super::choice::{least, least_loss};
use super::closures::lowest;

/// Drops the blocks of lowest score.
///
/// All blocks are judged on the model as it is, once. Of equal scores, those of later blocks go first.
///
/// ```
/// use tensorpress_prune::DropBlocks;
/// use tensorpress_prune::depth::BlockScore;
/// use tensorpress_tensor::stage::canonical;
///
/// let mut rewrite = DropBlocks::default().with_count(2);
/// assert_eq!(canonical("drop_blocks", &mut rewrite)?, "drop_blocks(count=2, score=influence)");
/// let mut rewrite = rewrite.with_score(BlockScore::Output).with_share(Some(0.25));
/// assert_eq!(canonical("drop_blocks", &mut rewrite)?, "drop_blocks(count=2, score=output, share=0.25)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DropBlocks {
    /// How many blocks go: 1 and more, and one block must stay. Default 1. Without a meaning where a share is given.
    pub count: usize,
    /// What a block is judged by.
    pub score: BlockScore,
    /// At least this share of the weights of all blocks goes, above 0 and below 1, at the least sum of scores
    /// ([`least_loss`]); by [`BlockScore::Last`], whose scores are no losses, as many blocks as that takes.
    pub share: Option<f64>,
}

impl Default for DropBlocks {
    fn default() -> Self {
        Self { count: 1, score: BlockScore::default(), share: None }
    }
}

impl DropBlocks {
    /// Sets how many blocks go.
    #[must_use]
    pub fn with_count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// Sets what a block is judged by.
    #[must_use]
    pub fn with_score(mut self, score: BlockScore) -> Self {
        self.score = score;
        self
    }

    /// Sets the share of weights that goes.
    #[must_use]
    pub fn with_share(mut self, share: Option<f64>) -> Self {
        self.share = share;
        self
    }

    fn check_share(&self) -> Result<()> {
        match self.share {
            Some(share) if !(share > 0.0 && share < 1.0) => Err(Error::invalid(format!(
                "share = {share}: allowed are above 0 and below 1, for a block must stay"
            ))),
            _ => Ok(()),
        }
    }

    /// Which blocks of such weights and scores go.
    fn gone(&self, weights: &[u64], scores: &[f64]) -> Result<Vec<bool>> {
        let mut gone = vec![false; scores.len()];
        let mut left = match self.share {
            Some(share) if self.score.adds_up() => {
                let stays = least_loss(weights, scores, share)?;
                return Ok(stays.into_iter().map(|stays| !stays).collect());
            }
            Some(share) => least(weights.iter().sum(), share),
            None => self.count as u64,
        };
        for block in lowest(scores, scores.len()) {
            if left == 0 {
                break;
            }
            gone[block] = true;
            left = left.saturating_sub(if self.share.is_some() { weights[block] } else { 1 });
        }
        Ok(gone)
    }
}

/// The last blocks: what "Reassessing Layer Pruning in LLMs" finds to be the score to beat, with a
/// [`RefitHead`](super::RefitHead) behind it. The paper drops a quarter of all blocks.
#[must_use]
pub fn reverse_order(count: usize) -> DropBlocks {
    DropBlocks::default().with_score(BlockScore::Last).with_count(count)
}

/// LAPTOP-Diff's choice on a decoder: at least this share of the weights goes, at the least sum of what each block alone
/// changes of the output.
#[must_use]
pub fn laptop(share: f64) -> DropBlocks {
    DropBlocks::default().with_score(BlockScore::Output).with_share(Some(share))
}

impl Knobs for DropBlocks {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("count", &mut self.count, 1..=1 << 12, "how many blocks go; one must stay")?;
        let about = "what a block is judged by: how far it turns its states, its place, what the output loses, its weights";
        keys.choice("score", &mut self.score, &BlockScore::NAMES, about)?;
        let about =
            "in the place of `count`: the share of weights that goes, at the least sum of scores";
        keys.optional_float("share", &mut self.share, 0.0..=1.0, about)
    }

    fn check(&self) -> Result<()> {
        self.check_share()
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::rewrite(
        "drop_blocks",
        "removes the blocks that turn their hidden states least, or the last ones, or those that the output misses \
         least; alone, it gives a plain folder",
        DropBlocks::default,
    )
}

impl Method for DropBlocks {
    fn id(&self) -> &'static str {
        "drop_blocks"
    }

    fn needs(&self) -> Needs {
        self.score.needs()
    }
}

/// Levels that every block offers.
const KEPT: usize = 0;
const DROPPED: usize = 1;

impl Rewrite for DropBlocks {
    fn inputs(&self) -> &[SharedInput] {
        self.score.inputs()
    }

    fn needs_states(&self) -> bool {
        self.score == BlockScore::Influence
    }

    fn needs_outputs(&self) -> bool {
        self.score == BlockScore::Output
    }

    fn keeps_blocks_alike(&self) -> bool {
        true
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        let blocks = model.blocks.len();
        model.check_editable("drop_blocks")?;
        if !model.decoder {
            return Err(Error::unsupported(format!(
                "drop_blocks: {} is an encoder: blocks are dropped from decoders only",
                model.architecture
            )));
        }
        if self.score == BlockScore::Output && model.head.is_none() {
            let message = format!("{} makes no logits to judge by", model.architecture);
            return Err(Error::unsupported(format!("drop_blocks: {message}")));
        }
        let refuse = |what: String, allowed: String| {
            Err(Error::invalid(format!("drop_blocks: {what}: {allowed}")))
        };
        if blocks < 2 {
            let what =
                self.share.map_or(format!("count = {}", self.count), |s| format!("share = {s}"));
            return refuse(what, "nothing can go from a model of 1 block".to_owned());
        }
        let Some(share) = self.share else {
            if (1..blocks).contains(&self.count) {
                return Ok(());
            }
            let allowed =
                format!("allowed are 1 to {}, for the model has {blocks} blocks", blocks - 1);
            return refuse(format!("count = {}", self.count), allowed);
        };
        self.check_share().map_err(|e| Error::invalid(format!("drop_blocks: {}", e.message())))?;
        let weights: Vec<u64> = model.blocks.iter().map(|b| b.weights() as u64).collect();
        let total: u64 = weights.iter().sum();
        let stays = match self.score.adds_up() {
            true => weights.iter().min(),
            // All but the first.
            false => weights.first(),
        };
        let most = total - stays.copied().unwrap_or(0);
        if least(total, share) <= most {
            return Ok(());
        }
        let most = most as f64 / total as f64;
        refuse(
            format!("share = {share}"),
            format!("allowed are up to {most:.3}, for a block must stay"),
        )
    }

    fn judge(&self, model: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement> {
        let layout = block.layout();
        let (score, reason) = match self.score.of(model, block)? {
            Usable::Yes(score) => (score, None),
            Usable::No(reason) => (f64::INFINITY, Some(reason)),
        };
        let level = |cost, error| Level { cost, error };
        let cost = layout.weights() as f64;
        let judgement = Judgement::new().with_levels(vec![level(cost, 0.0), level(0.0, score)]);
        Ok(match (reason, layout.linears.first()) {
            (Some(reason), Some(first)) => {
                let note = format!("{reason}: the block goes only after all that could be judged");
                judgement.with_note(&first.name, &note)
            }
            _ => judgement,
        })
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        self.fits(model)?;
        let levels = |judgement: &Judgement| match judgement.levels() {
            [kept, dropped] => Ok((kept.cost as u64, dropped.error)),
            _ => Err(Error::insufficient("drop_blocks: a block offers other levels than two")),
        };
        let levels = judgements.iter().map(levels).collect::<Result<Vec<_>>>()?;
        let (weights, scores): (Vec<u64>, Vec<f64>) = levels.into_iter().unzip();
        let decide = |dropped| {
            Decision::new().with_dropped(dropped).with_level(if dropped { DROPPED } else { KEPT })
        };
        Ok(self.gone(&weights, &scores)?.into_iter().map(decide).collect())
    }

    fn edit(
        &self,
        _: &ModelLayout,
        _: &BlockView<'_>,
        _: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        Ok(if decision.dropped { Edit::dropped() } else { Edit::new() })
    }
}
