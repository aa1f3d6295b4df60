//! What every method is measured against, and the plain use of attention.

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use crate::hints::{TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free, grouped, keep_first};
use crate::stage::{TokenPart, reduction, reduction_of};

pub(crate) fn stages() -> [Row<TokenPart>; 3] {
    let about = "keeps tokens by lot: what every method is measured against";
    [
        reduction(
            "attention_top_k",
            "keeps the tokens that receive the most attention",
            AttentionTopK::new,
        ),
        reduction_of::<RandomKeep>("random", about),
        reduction("pooling", "averages neighbours, in groups as even as can be", Pooling::new),
    ]
}

impl Knobs for RandomKeep {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "of the draws")
    }
}

/// Keeps the tokens that receive the most attention, the earlier of equals.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct AttentionTopK;

impl AttentionTopK {
    /// The method; it has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl TokenReduce for AttentionTopK {
    fn id(&self) -> &'static str {
        "attention_top_k"
    }

    fn needs_attention(&self) -> bool {
        true
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check(x, keep)?;
        let attention = need(hints.attention, self.id(), "the attention each token receives")?;
        keep_first(&protected, keep, |a, b| attention[b].total_cmp(&attention[a]))
    }
}

/// Keeps tokens drawn without regard to anything; the same for the same seed and number of tokens.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct RandomKeep {
    seed: u64,
}

impl RandomKeep {
    /// Draws by this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl TokenReduce for RandomKeep {
    fn id(&self) -> &'static str {
        "random"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check(x, keep)?;
        let draws = SplitMix::new(self.seed);
        keep_first(&protected, keep, |a, b| draws.at(a as u64).cmp(&draws.at(b as u64)))
    }
}

/// Averages neighbours, in groups as even as can be.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Pooling;

impl Pooling {
    /// The method; it has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl TokenReduce for Pooling {
    fn id(&self) -> &'static str {
        "pooling"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check_merging(x, keep)?;
        let free = free(&protected).len();
        grouped(&protected, &even(free, keep + free - x.nrows()), keep)
    }
}

/// The group of each of `tokens` in groups as even as can be.
pub(crate) fn even(tokens: usize, groups: usize) -> Vec<usize> {
    (0..tokens).map(|i| i * groups / tokens).collect()
}
