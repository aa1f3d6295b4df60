//! Marginal information gain: *COMI: Coarse-to-fine Context Compression via Marginal Information Gain*, 2026. The encoder
//! and the layer that fuses are trained in the paper: whoever uses it supplies the states.

use ndarray::ArrayView2;
use tensorpress_tensor::stage::Row;
use tensorpress_tensor::{Result, kernels};

use super::softmax_weights;
use crate::baseline::even;
use crate::hints::{TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free, grouped};
use crate::share::shares;
use crate::similarity::normalised;
use crate::stage::{TokenPart, reduction};

/// Merges neighbours in groups that are short where something new is said about a question.
///
/// MIG(u) = relevance(u) - the largest cos(u, v) with another v: what u says about the question and nobody else says.
/// Coarse: of `keep` groups as even as can be, each is represented by its most relevant token, v being the other
/// representatives; the groups' lengths become tokens x softmax(-MIG), at least 1, by largest remainders. Fine: a group's
/// token is Σ softmax(MIG) x, v being the others of the group ([`TokenReduce::weights`]). Protected tokens stand aside.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct MigMerge;

impl MigMerge {
    /// The method; it has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "merges neighbours, finely where they say something new about a question";
    reduction("mig_merge", about, MigMerge::new)
}

/// The marginal information gain of each of `tokens` among them.
fn gains(x: ArrayView2<'_, f32>, relevance: &[f32], tokens: &[usize]) -> Result<Vec<f64>> {
    let unit = normalised(x, tokens)?;
    let row = |i: usize| unit.row(i).to_slice().expect("standard layout");
    let gain = |i: usize| {
        let others = (0..tokens.len()).filter(|other| *other != i);
        let cosines = others.map(|other| f64::from(kernels::dot(row(i), row(other))));
        let most = cosines.fold(f64::NEG_INFINITY, f64::max);
        f64::from(relevance[tokens[i]]) - if tokens.len() > 1 { most } else { 0.0 }
    };
    Ok((0..tokens.len()).map(gain).collect())
}

impl TokenReduce for MigMerge {
    fn id(&self) -> &'static str {
        "mig_merge"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check_merging(x, keep)?;
        let relevance = need(hints.relevance, self.id(), "the relevance of the tokens")?;
        let free = free(&protected);
        let groups = keep + free.len() - x.nrows();
        let mut leads: Vec<Option<usize>> = vec![None; groups];
        for (token, group) in free.iter().zip(even(free.len(), groups)) {
            let lead = leads[group].get_or_insert(*token);
            if relevance[*token] > relevance[*lead] {
                *lead = *token;
            }
        }
        let leads: Vec<usize> = leads.into_iter().flatten().collect();
        let gains = gains(x, relevance, &leads)?;
        let least = gains.iter().copied().fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = gains.iter().map(|gain| (least - gain).exp()).collect();
        let lengths = shares(&weights, free.len(), 1, &vec![free.len(); groups]);
        let of = lengths.iter().enumerate().flat_map(|(group, n)| std::iter::repeat_n(group, *n));
        grouped(&protected, &of.collect::<Vec<_>>(), keep)
    }

    fn weights(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        map: &TokenMap,
    ) -> Result<Option<Vec<f32>>> {
        hints.check(x, x.nrows())?;
        let relevance = need(hints.relevance, self.id(), "the relevance of the tokens")?;
        let mut scores = vec![0.0; x.nrows()];
        for group in map.groups(x.nrows())? {
            for (token, gain) in group.iter().zip(gains(x, relevance, &group)?) {
                scores[*token] = gain;
            }
        }
        Ok(Some(softmax_weights(map, &scores, hints.sizes)))
    }
}
