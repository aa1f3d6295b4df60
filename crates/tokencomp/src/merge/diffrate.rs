//! Pruning, then merging: Chen et al., *DiffRate: Differentiable Compression Rate for Efficient Vision Transformers*, ICCV
//! 2023. How many of each, and in which layer, is `token_rates` of `tensorpress-allocate`.

use ndarray::ArrayView2;
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use crate::hints::TokenHints;
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free};
use crate::similarity::nearest;
use crate::stage::{TokenPart, reduction_of};

/// Tokens in the order of class attention: the last are pruned, the next to last merged into the most similar (cosine) of
/// those that stay. Protected tokens take no part.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DiffRate {
    /// Share of the tokens taken away that is pruned, 0 to 1; the others are merged.
    pub pruned: f64,
}

impl Default for DiffRate {
    fn default() -> Self {
        Self { pruned: 0.5 }
    }
}

impl Knobs for DiffRate {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float(
            "pruned",
            &mut self.pruned,
            0.0..=1.0,
            "share of those taken away that is pruned",
        )
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "prunes the tokens of least class attention, and merges the next";
    reduction_of::<DiffRate>("diffrate", about)
}

impl DiffRate {
    /// Prunes this share of the tokens taken away.
    #[must_use]
    pub fn with_pruned(mut self, pruned: f64) -> Self {
        self.pruned = pruned;
        self
    }

    /// A plan by counts: pruning leaves `pruned` tokens, merging `merged` of them. Targets are in the order of the sequence.
    ///
    /// # Errors
    /// As [`TokenReduce::plan`] for `merged`; `InvalidArgument` unless merged <= pruned <= tokens.
    pub fn plan_counts(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        [pruned, merged]: [usize; 2],
    ) -> Result<TokenMap> {
        let protected = hints.check_merging(x, merged)?;
        if !(merged..=x.nrows()).contains(&pruned) {
            return Err(Error::invalid(format!(
                "pruning leaves {pruned} of {} tokens, merging {merged} of those",
                x.nrows()
            )));
        }
        let attention = hints.class_or_received(self.id())?;
        let mut order = free(&protected);
        let alone = x.nrows() - order.len();
        order.sort_by(|a, b| attention[*b].total_cmp(&attention[*a]));
        order.truncate(pruned - alone);
        let (stay, go) = order.split_at(merged - alone);
        let mut assignment = vec![None; x.nrows()];
        let targets = (0..x.nrows()).filter(|t| protected[*t]).chain(stay.iter().copied());
        targets.enumerate().for_each(|(target, token)| assignment[token] = Some(target));
        let into = nearest(x.as_standard_layout().view(), go, stay)?;
        for (token, (_, at)) in go.iter().zip(into) {
            assignment[*token] = assignment[stay[at]];
        }
        Ok(TokenMap::new(&assignment, merged)?.sorted())
    }
}

impl TokenReduce for DiffRate {
    fn id(&self) -> &'static str {
        "diffrate"
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
        let taken = x.nrows().saturating_sub(keep);
        let pruned = x.nrows() - ((self.pruned * taken as f64).round() as usize).min(taken);
        self.plan_counts(x, hints, [pruned, keep])
    }
}
