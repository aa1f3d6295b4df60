//! What every method is measured against, and the plain use of attention.

use ndarray::ArrayView2;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{Error, Result};

use crate::map::TokenMap;
use crate::reduce::{TokenHints, TokenReduce};
use crate::tome::check_mergeable;

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
        let mut order: Vec<usize> = (0..x.nrows()).collect();
        let key = |t: &usize| (protected[*t], attention[*t]);
        order.sort_by(|a, b| {
            let ((p, x), (q, y)) = (key(a), key(b));
            q.cmp(&p).then(y.total_cmp(&x))
        });
        TokenMap::keep(x.nrows(), &order[..keep])
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
        let mut order: Vec<usize> = (0..x.nrows()).collect();
        order.sort_by_key(|t| (!protected[*t], draws.at(*t as u64)));
        TokenMap::keep(x.nrows(), &order[..keep])
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
        let protected = hints.check(x, keep)?;
        check_mergeable(&protected, keep)?;
        let alone = protected.iter().filter(|p| **p).count();
        let (groups, free) = (keep - alone, x.nrows() - alone);
        let (mut next_alone, mut next_free) = (groups.., 0..);
        let group = |i: usize| i * groups / free;
        let place = |p: &bool| if *p { next_alone.next() } else { next_free.next().map(group) };
        let assignment: Vec<_> = protected.iter().map(place).collect();
        Ok(TokenMap::new(&assignment, keep)?.sorted())
    }
}
