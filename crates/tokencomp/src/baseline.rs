//! What every method is measured against, and the plain use of attention.

use std::cmp::Ordering;

use ndarray::ArrayView2;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use crate::map::TokenMap;
use crate::reduce::{TokenHints, TokenReduce};
use crate::stage::{TokenPart, TokenRole, reduction};

pub(crate) fn stages() -> [Row<TokenPart>; 3] {
    let about = "keeps tokens by lot: what every method is measured against";
    let random = Row::new("random", TokenRole::Reduce, about, RandomKeep::default, |random, _| {
        Ok(TokenPart::Reduce(Box::new(random)))
    });
    [
        reduction(
            "attention_top_k",
            "keeps the tokens that receive the most attention",
            AttentionTopK::new,
        ),
        random,
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
        let attention = hints.attention.ok_or_else(|| {
            Error::invalid("attention_top_k needs the attention each token receives")
        })?;
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

/// Keeps the protected tokens and those that come first among the others.
fn keep_first(
    protected: &[bool],
    keep: usize,
    compare: impl Fn(usize, usize) -> Ordering,
) -> Result<TokenMap> {
    let mut order: Vec<usize> = (0..protected.len()).collect();
    order.sort_by(|a, b| protected[*b].cmp(&protected[*a]).then_with(|| compare(*a, *b)));
    TokenMap::keep(protected.len(), &order[..keep])
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
        let alone = protected.iter().filter(|p| **p).count();
        let (groups, free) = (keep - alone, x.nrows() - alone);
        let (mut next_alone, mut next_free) = (groups.., 0..);
        let group = |i: usize| i * groups / free;
        let place = |p: &bool| if *p { next_alone.next() } else { next_free.next().map(group) };
        let assignment: Vec<_> = protected.iter().map(place).collect();
        Ok(TokenMap::new(&assignment, keep)?.sorted())
    }
}
