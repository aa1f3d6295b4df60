//! What is left of a text's tokens on their way through a model.

use ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::{Error, Result};
use tensorpress_tokencomp::TokenMap;

use super::Reduction;

/// Tokens that are left.
pub(super) struct Left {
    /// From the text's tokens to those left.
    pub(super) map: TokenMap,
    /// Where those stand that stay alone.
    protected: Vec<usize>,
}

impl Left {
    /// All tokens of a text.
    pub(super) fn new(tokens: usize, mut protected: Vec<usize>) -> Self {
        protected.sort_unstable();
        protected.dedup();
        Self { map: TokenMap::identity(tokens), protected }
    }

    /// Tokens that stay alone.
    pub(super) fn protected(&self) -> &[usize] {
        &self.protected
    }

    /// Tokens that a block leaves.
    pub(super) fn keep(&self, reduction: Reduction<'_>, block: usize) -> usize {
        reduction.schedule.keep(block, self.map.targets(), self.protected.len())
    }

    /// Tokens of the text that each stands for.
    pub(super) fn sizes(&self) -> Result<Vec<f32>> {
        self.map.sizes(None)
    }

    /// Takes note of a plan over those that are left.
    pub(super) fn shrink(&mut self, plan: &TokenMap, reduction: Reduction<'_>) -> Result<()> {
        let moved = |token: &usize| {
            plan.target(*token).ok_or_else(|| {
                let id = reduction.method.id();
                Error::invalid(format!("{id} dropped the protected token {token}"))
            })
        };
        self.protected = self.protected.iter().map(moved).collect::<Result<_>>()?;
        self.map = self.map.then(plan)?;
        Ok(())
    }
}

/// What methods compare tokens by: the mean of the heads' keys `[tokens, heads * dim]`.
pub(super) fn metric(k: ArrayView2<'_, f32>, dim: usize) -> Array2<f32> {
    let heads = k.ncols() / dim;
    let mut metric = Array2::<f32>::zeros((k.nrows(), dim));
    for head in 0..heads {
        metric += &k.slice(s![.., head * dim..(head + 1) * dim]);
    }
    metric /= heads as f32;
    metric
}
