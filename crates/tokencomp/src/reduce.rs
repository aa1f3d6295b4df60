use std::cmp::Ordering;
use std::fmt::Debug;

use ndarray::{Array2, ArrayView1, ArrayView2};
use tensorpress_tensor::{Error, Result, kernels};

use crate::hints::TokenHints;
use crate::map::TokenMap;

/// A method that makes a sequence shorter.
pub trait TokenReduce: Debug + Send + Sync {
    /// Name in reports.
    fn id(&self) -> &'static str;

    /// Whether [`TokenHints::attention`] must be there.
    fn needs_attention(&self) -> bool {
        false
    }

    /// A plan for states `[tokens, channels]` that leaves exactly `keep` tokens, in the order of the sequence.
    /// Protected tokens stay alone. The same plan for the same input.
    ///
    /// # Errors
    /// `InvalidArgument` for `keep` of 0, of more than there are tokens, or of fewer than are protected (or 1 more, where
    /// unprotected tokens can only merge); for protected tokens out of range; for a hint that is missing.
    /// `ShapeMismatch` for hints of another length. `Numerical` for states or attention that are not finite.
    fn plan(&self, x: ArrayView2<'_, f32>, hints: &TokenHints<'_>, keep: usize)
    -> Result<TokenMap>;

    /// What each token weighs in the mean of its group, where that is not its size: what [`TokenMap::merge`] is to be given in
    /// place of sizes, at least 0, above 0 for one of each group. `map` is a plan of this method for the same states and hints.
    ///
    /// # Errors
    /// As [`TokenReduce::plan`].
    fn weights(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        map: &TokenMap,
    ) -> Result<Option<Vec<f32>>> {
        let _ = (x, hints, map);
        Ok(None)
    }

    /// The plan, and the states that it leaves.
    ///
    /// # Errors
    /// As [`TokenReduce::plan`].
    fn reduce(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<ReducedStates> {
        let map = self.plan(x, hints, keep)?;
        let weights = self.weights(x, hints, &map)?;
        let states = map.merge(x, weights.as_deref().or(hints.sizes))?;
        Ok(ReducedStates { sizes: map.sizes(hints.sizes)?, map, states })
    }
}

/// What a method made of a sequence.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReducedStates {
    /// Where each token went.
    pub map: TokenMap,
    /// The states that are left, `[keep, channels]`.
    pub states: Array2<f32>,
    /// How many tokens of the text each of them stands for.
    pub sizes: Vec<f32>,
}

/// Keeps the protected tokens and those that come first among the others.
pub(crate) fn keep_first(
    protected: &[bool],
    keep: usize,
    compare: impl Fn(usize, usize) -> Ordering,
) -> Result<TokenMap> {
    let mut order: Vec<usize> = (0..protected.len()).collect();
    order.sort_by(|a, b| protected[*b].cmp(&protected[*a]).then_with(|| compare(*a, *b)));
    TokenMap::keep(protected.len(), &order[..keep])
}

/// Tokens that are not protected.
pub(crate) fn free(protected: &[bool]) -> Vec<usize> {
    (0..protected.len()).filter(|token| !protected[*token]).collect()
}

/// Protected tokens alone, and the others in the groups that are given for them, in the order of the sequence.
pub(crate) fn grouped(protected: &[bool], groups: &[usize], keep: usize) -> Result<TokenMap> {
    let alone = protected.iter().filter(|p| **p).count();
    let (mut next_alone, mut next_free) = (keep - alone.., groups.iter().copied());
    let place = |p: &bool| if *p { next_alone.next() } else { next_free.next() };
    let assignment: Vec<_> = protected.iter().map(place).collect();
    Ok(TokenMap::new(&assignment, keep)?.sorted())
}

/// An error naming the first token with a state that is not finite.
pub(crate) fn check_finite(x: ArrayView2<'_, f32>) -> Result<()> {
    x.rows().into_iter().enumerate().try_for_each(|(token, row)| check_row(token, row))
}

/// An error if a token's state is not finite.
pub(crate) fn check_row(token: usize, row: ArrayView1<'_, f32>) -> Result<()> {
    if row.to_slice().is_some_and(|row| !kernels::has_non_finite(row)) {
        return Ok(());
    }
    match row.indexed_iter().find(|(_, v)| !v.is_finite()) {
        Some((channel, value)) => {
            Err(Error::numerical(format!("state [{token}, {channel}] is {value}")))
        }
        None => Ok(()),
    }
}
