use std::fmt::Debug;

use ndarray::{ArrayView1, ArrayView2};
use tensorpress_tensor::{Error, Result, kernels};

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
}

/// What is known about the tokens beside their states.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TokenHints<'a> {
    /// Tokens that stay as they are: class and distillation tokens, separators.
    pub protected: &'a [usize],
    /// Tokens of the text that each token stands for; 1 where absent.
    pub sizes: Option<&'a [f32]>,
    /// Attention that each token receives, a mean over heads and queries; any scale.
    pub attention: Option<&'a [f32]>,
}

impl<'a> TokenHints<'a> {
    /// Protects tokens.
    #[must_use]
    pub fn with_protected(mut self, protected: &'a [usize]) -> Self {
        self.protected = protected;
        self
    }

    /// Says how many tokens of the text each token stands for.
    #[must_use]
    pub fn with_sizes(mut self, sizes: &'a [f32]) -> Self {
        self.sizes = Some(sizes);
        self
    }

    /// Says how much attention each token receives.
    #[must_use]
    pub fn with_attention(mut self, attention: &'a [f32]) -> Self {
        self.attention = Some(attention);
        self
    }

    /// Checks the hints against the states and `keep`; says which tokens are protected. For implementors of
    /// [`TokenReduce`].
    ///
    /// # Errors
    /// Those of [`TokenReduce::plan`], `keep` included.
    pub fn check(&self, x: ArrayView2<'_, f32>, keep: usize) -> Result<Vec<bool>> {
        let tokens = x.nrows();
        if keep == 0 || keep > tokens {
            return Err(Error::invalid(format!(
                "keep = {keep} of {tokens} tokens; allowed are 1 to {tokens}"
            )));
        }
        let mut protected = vec![false; tokens];
        for &token in self.protected {
            let Some(mark) = protected.get_mut(token) else {
                return Err(Error::invalid(format!("protected token {token} of {tokens} tokens")));
            };
            *mark = true;
        }
        let count = protected.iter().filter(|p| **p).count();
        if count > keep {
            return Err(Error::invalid(format!("keep = {keep}, but {count} tokens are protected")));
        }
        for (what, values) in [("sizes", self.sizes), ("attention", self.attention)] {
            let Some(values) = values else { continue };
            if values.len() != tokens {
                return Err(Error::shape(format!(
                    "{} values of {what} for {tokens} tokens",
                    values.len()
                )));
            }
            if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::numerical(format!("{what} of token {bad} is {}", values[bad])));
            }
        }
        if let Some(bad) = self.sizes.and_then(|sizes| sizes.iter().position(|s| *s <= 0.0)) {
            return Err(Error::invalid(format!(
                "token {bad} stands for no token: sizes are above 0"
            )));
        }
        check_finite(x)?;
        Ok(protected)
    }

    /// [`TokenHints::check`] for methods that merge: unprotected tokens do not vanish, they need one to merge into.
    ///
    /// # Errors
    /// As [`TokenHints::check`], and `InvalidArgument` if `keep` leaves place for the protected tokens alone.
    pub fn check_merging(&self, x: ArrayView2<'_, f32>, keep: usize) -> Result<Vec<bool>> {
        let protected = self.check(x, keep)?;
        let count = protected.iter().filter(|p| **p).count();
        if count == keep && count < protected.len() {
            return Err(Error::invalid(format!(
                "keep = {keep}, but {count} tokens are protected and the others need at least 1 to merge into"
            )));
        }
        Ok(protected)
    }
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
