use tensorpress_tensor::{Error, Result};

use super::saliency::standardised;
use super::{Flap, HeadLayout, least_salient};

/// Scores of one block, and what a removal saves there.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BlockScores {
    /// The heads.
    pub layout: HeadLayout,
    /// Scores of the inputs of the attention's output matrix, `heads * head_dim`.
    pub attention: Vec<f64>,
    /// Scores of the inputs of the feed-forward network's output matrix.
    pub channels: Vec<f64>,
    /// Matrices of the feed-forward network: 3 with a gate, 2 without.
    pub mlp_matrices: usize,
    /// No head may go.
    pub whole_attention: bool,
}

/// What stays of one block; indices ascend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BlockSupport {
    /// Query heads.
    pub heads: Vec<usize>,
    /// Key and value heads.
    pub kv_heads: Vec<usize>,
    /// Channels of the feed-forward network.
    pub channels: Vec<usize>,
}

impl BlockScores {
    /// Scores of a block with a gated feed-forward network.
    #[must_use]
    pub fn new(layout: HeadLayout, attention: Vec<f64>, channels: Vec<f64>) -> Self {
        Self { layout, attention, channels, mlp_matrices: 3, whole_attention: false }
    }

    /// Sets the matrices of the feed-forward network.
    #[must_use]
    pub fn with_mlp_matrices(mut self, matrices: usize) -> Self {
        self.mlp_matrices = matrices;
        self
    }

    /// Sets whether all heads stay.
    #[must_use]
    pub fn with_whole_attention(mut self, whole: bool) -> Self {
        self.whole_attention = whole;
        self
    }

    fn check(&self, block: usize) -> Result<()> {
        let width = self.layout.heads * self.layout.head_dim;
        if self.attention.len() != width || self.channels.is_empty() {
            return Err(Error::shape(format!(
                "block {block}: {} scores of attention and {} of channels: needed are {width}, and 1 or more",
                self.attention.len(),
                self.channels.len()
            )));
        }
        let mut scores = self.attention.iter().chain(&self.channels);
        match scores.find(|s| !(s.is_finite() && **s >= 0.0)) {
            None => Ok(()),
            Some(score) => Err(Error::numerical(format!("block {block}: a score is {score}"))),
        }
    }

    /// As the official code does, scores of attention are squared before they are put together: a head is judged by
    /// its strongest channels.
    fn attention_squared(&self) -> Vec<f64> {
        // Of a scale that squares neither overflow nor vanish.
        let most = self.attention.iter().copied().fold(0.0, f64::max);
        let scale = if most > 0.0 { most } else { 1.0 };
        self.attention.iter().map(|s| (s / scale) * (s / scale)).collect()
    }

    fn head_scores(&self) -> Vec<f64> {
        self.layout.head_means(&self.attention_squared())
    }

    /// Weights of the block per channel of the residual stream, the unit of all costs here: q and o have a row or
    /// column a query head's channel, k and v a key head's.
    fn weights(&self) -> usize {
        let HeadLayout { heads, kv_heads, head_dim } = self.layout;
        2 * (heads + kv_heads) * head_dim + self.mlp_matrices * self.channels.len()
    }

    fn support(&self, heads: (Vec<usize>, Vec<usize>), gone: &[bool]) -> BlockSupport {
        let channels = (0..self.channels.len()).filter(|i| !gone[*i]).collect();
        BlockSupport { heads: heads.0, kv_heads: heads.1, channels }
    }
}

/// The error for a block that cannot be cut as the first one is.
pub(super) fn unlike(block: usize) -> Error {
    Error::unsupported(format!(
        "uniform = true: block {block} has another shape than block 0; blocks that differ can be pruned with \
         uniform = false only"
    ))
}

/// A head or a channel that may go.
struct Unit {
    score: f64,
    cost: f64,
    block: usize,
    /// The channel; none for a head.
    channel: Option<usize>,
}

impl Flap {
    /// What stays of every block, never nothing: at least a head and a channel each.
    ///
    /// Uniform: of the channels ⌊n s⌋ go; of the heads as many as a layout of groups allows up to ⌊heads s⌋, in every
    /// block in the same way (see [`HeadLayout`]). Adaptive: scores are standardised within each module of each block,
    /// those of a head averaged; in their order, heads and channels go as long as their weights together are within
    /// the fraction. That says how many heads of each block go; which, the layout of its groups; and what groups
    /// could not give is taken from the channels that come next. Of equal scores, those of heads and of earlier blocks
    /// go first.
    ///
    /// # Errors
    /// As [`Flap::check`]; `ShapeMismatch` for scores of other numbers; if `uniform`, `Unsupported` for blocks of different
    /// shapes; `Numerical` for scores that are not finite or negative.
    pub fn select(&self, blocks: &[BlockScores]) -> Result<Vec<BlockSupport>> {
        self.check()?;
        blocks.iter().enumerate().try_for_each(|(i, block)| block.check(i))?;
        if self.uniform { self.uniform(blocks) } else { Ok(self.adaptive(blocks)) }
    }

    fn uniform(&self, blocks: &[BlockScores]) -> Result<Vec<BlockSupport>> {
        let Some(first) = blocks.first() else { return Ok(Vec::new()) };
        let alike =
            |b: &&BlockScores| b.layout == first.layout && b.channels.len() == first.channels.len();
        if let Some(other) = blocks.iter().position(|b| !alike(&b)) {
            return Err(unlike(other));
        }
        let heads: Vec<Vec<f64>> = blocks.iter().map(BlockScores::head_scores).collect();
        let views: Vec<&[f64]> = heads.iter().map(Vec::as_slice).collect();
        let whole = blocks.iter().any(|b| b.whole_attention);
        let number =
            if whole { 0 } else { crate::pattern::count(first.layout.heads, self.sparsity) };
        let cut = first.layout.closest(&views, number);
        let support = |(block, heads): (&BlockScores, &Vec<f64>)| {
            let gone = least_salient(&block.channels, self.sparsity);
            block.support(block.layout.kept(heads, cut), &gone)
        };
        Ok(blocks.iter().zip(&heads).map(support).collect())
    }

    fn adaptive(&self, blocks: &[BlockScores]) -> Vec<BlockSupport> {
        let mut units = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let HeadLayout { heads, kv_heads, head_dim } = block.layout;
            // A head's share of all four matrices.
            let cost = 2.0 * (heads + kv_heads) as f64 * head_dim as f64 / heads as f64;
            let scores = block.layout.head_means(&standardised(&block.attention_squared()));
            let scores = scores.into_iter().filter(|_| !block.whole_attention);
            units.extend(scores.map(|score| Unit { score, cost, block: index, channel: None }));
            let cost = block.mlp_matrices as f64;
            let scores = standardised(&block.channels).into_iter().enumerate();
            units.extend(scores.map(|(channel, score)| Unit {
                score,
                cost,
                block: index,
                channel: Some(channel),
            }));
        }
        // Stable: heads come before channels, earlier blocks before later ones.
        units.sort_by(|a, b| a.score.total_cmp(&b.score));
        let all: usize = blocks.iter().map(BlockScores::weights).sum();
        let budget = all as f64 * self.sparsity * (1.0 + 1e-12);

        let mut spent = 0.0;
        let mut number = vec![0; blocks.len()];
        for unit in &units {
            spent += unit.cost;
            if spent > budget {
                break;
            }
            number[unit.block] += usize::from(unit.channel.is_none());
        }
        let mut saved = 0;
        let heads: Vec<(Vec<usize>, Vec<usize>)> = (blocks.iter().zip(&number))
            .map(|(block, number)| {
                let scores = block.head_scores();
                let cut = block.layout.closest(&[&scores], *number);
                let (heads, kv_heads) = block.layout.kept(&scores, cut);
                let gone =
                    block.layout.heads - heads.len() + block.layout.kv_heads - kv_heads.len();
                saved += 2 * gone * block.layout.head_dim;
                (heads, kv_heads)
            })
            .collect();
        let mut spent = saved as f64;
        let mut gone: Vec<Vec<bool>> =
            blocks.iter().map(|block| vec![false; block.channels.len()]).collect();
        let mut left: Vec<usize> = blocks.iter().map(|block| block.channels.len()).collect();
        for unit in &units {
            let Some(channel) = unit.channel.filter(|_| left[unit.block] > 1) else { continue };
            if spent + unit.cost > budget {
                break;
            }
            spent += unit.cost;
            gone[unit.block][channel] = true;
            left[unit.block] -= 1;
        }
        let supports = blocks.iter().zip(heads).zip(&gone);
        supports.map(|((block, heads), gone)| block.support(heads, gone)).collect()
    }
}
