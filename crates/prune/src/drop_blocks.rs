//! Dropping whole blocks (Men, Xu, Zhang, Wang, Lin, Lu, Han, Chen: "ShortGPT: Layers in Large Language Models are More
//! Redundant Than You Expect", 2024): those that turn their hidden states least.

use tensorpress_tensor::rewrite::{
    BlockView, Decision, Edit, Judgement, Level, ModelLayout, SharedInput,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Error, Method, Result, Rewrite};

use crate::structured::influence;

/// Drops the blocks of least influence.
///
/// The influence of a block is 1 - mean over the tokens of cos(x, y), where x is the hidden state before the block and y
/// that after it (eq. 1): 0 for a block that only scales, 2 at most. All blocks are judged on the model as it is, once. Of
/// equal influences, those of later blocks go first.
///
/// ```
/// use tensorpress_prune::DropBlocks;
/// use tensorpress_tensor::stage::canonical;
///
/// let mut rewrite = DropBlocks::default().with_count(2);
/// assert_eq!(canonical("drop_blocks", &mut rewrite)?, "drop_blocks(count=2)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DropBlocks {
    /// How many blocks go: 1 and more, and one block must stay. Default 1.
    pub count: usize,
}

impl Default for DropBlocks {
    fn default() -> Self {
        Self { count: 1 }
    }
}

impl DropBlocks {
    /// Sets how many blocks go.
    #[must_use]
    pub fn with_count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }
}

impl Knobs for DropBlocks {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("count", &mut self.count, 1..=1 << 12, "how many blocks go; one must stay")
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::rewrite(
        "drop_blocks",
        "removes the blocks that turn their hidden states least; alone, it gives a plain folder",
        DropBlocks::default,
    )
}

impl Method for DropBlocks {
    fn id(&self) -> &'static str {
        "drop_blocks"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

/// Levels that every block offers.
const KEPT: usize = 0;
const DROPPED: usize = 1;

impl Rewrite for DropBlocks {
    fn inputs(&self) -> &[SharedInput] {
        &[]
    }

    fn needs_states(&self) -> bool {
        true
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
        if (1..blocks).contains(&self.count) {
            return Ok(());
        }
        let allowed = match blocks {
            0 | 1 => "nothing can go from a model of 1 block".to_owned(),
            _ => format!("allowed are 1 to {}, for the model has {blocks} blocks", blocks - 1),
        };
        Err(Error::invalid(format!("drop_blocks: count = {}: {allowed}", self.count)))
    }

    fn judge(&self, _: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement> {
        let layout = block.layout();
        let influence = block.states().and_then(influence);
        let level = |cost, error| Level { cost, error };
        let cost = layout.weights() as f64;
        let judgement = Judgement::new()
            .with_levels(vec![level(cost, 0.0), level(0.0, influence.unwrap_or(f64::INFINITY))]);
        Ok(match (influence, layout.linears.first()) {
            (None, Some(first)) => judgement.with_note(
                &first.name,
                "no token with finite hidden states: the block goes only after all that could be judged",
            ),
            _ => judgement,
        })
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        self.fits(model)?;
        let lost = |judgement: &Judgement| {
            let level = judgement.levels().get(DROPPED);
            let missing = || Error::insufficient("drop_blocks: a block offers no level");
            level.map(|level| level.error).ok_or_else(missing)
        };
        let lost = judgements.iter().map(lost).collect::<Result<Vec<f64>>>()?;
        let mut order: Vec<usize> = (0..lost.len()).collect();
        order.sort_by(|a, b| lost[*a].total_cmp(&lost[*b]).then(b.cmp(a)));
        order.truncate(self.count);
        let decide = |block| {
            let dropped = order.contains(&block);
            Decision::new().with_dropped(dropped).with_level(if dropped { DROPPED } else { KEPT })
        };
        Ok((0..lost.len()).map(decide).collect())
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
