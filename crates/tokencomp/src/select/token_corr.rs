//! Token-level correlation: Zhang et al., *Token-level Correlation-guided Compression for Efficient Multimodal Document
//! Understanding*, 2024. The paper draws tokens with a probability; here the best are kept, so that a plan is a plan.

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::{best, by_number};
use crate::hints::TokenHints;
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free};
use crate::share::shares;
use crate::similarity::{normalised, tiles};
use crate::stage::{TokenPart, reduction_of};

/// Crops of much that repeats keep few tokens, those that the class token attends to.
///
/// States are the keys of a layer. A token is redundant if at least `neighbours` others of its crop have a cosine with it
/// above `threshold`; d = 1 - redundant / tokens is the crop's density. Crops share the tokens that are kept in proportion
/// to d x tokens; in each, those with the most class attention stay. Without crops all is one.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenCorr {
    /// Cosine above which tokens are alike.
    pub threshold: f32,
    /// Tokens that are like one that is redundant, at least.
    pub neighbours: usize,
}

impl Default for TokenCorr {
    fn default() -> Self {
        Self { threshold: 0.8, neighbours: 3 }
    }
}

impl Knobs for TokenCorr {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float(
            "threshold",
            &mut self.threshold,
            -1.0..=1.0,
            "cosine above which tokens are alike",
        )?;
        keys.int(
            "neighbours",
            &mut self.neighbours,
            1..=65_536,
            "tokens alike that make one redundant",
        )
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    reduction_of::<TokenCorr>(
        "token_corr",
        "keeps few tokens of crops that repeat, by class attention",
    )
}

impl TokenCorr {
    /// Tokens whose cosine is above this are alike.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f32) -> Self {
        self.threshold = threshold;
        self
    }

    /// So many alike make a token redundant.
    #[must_use]
    pub fn with_neighbours(mut self, neighbours: usize) -> Self {
        self.neighbours = neighbours;
        self
    }

    /// How many tokens the method would keep by itself: the protected ones, and of each crop d x tokens, rounded.
    ///
    /// # Errors
    /// As [`TokenReduce::plan`].
    pub fn natural_keep(&self, x: ArrayView2<'_, f32>, hints: &TokenHints<'_>) -> Result<usize> {
        let free = free(&hints.check(x, x.nrows())?);
        let mut keep = x.nrows() - free.len();
        for crop in self.crops(hints, &free) {
            keep += (self.density(x, &crop)? * crop.len() as f64).round() as usize;
        }
        Ok(keep)
    }

    fn crops(&self, hints: &TokenHints<'_>, free: &[usize]) -> Vec<Vec<usize>> {
        by_number(free, |token| hints.crops.map_or(0, |crops| crops.of[token]))
    }

    /// The share of a crop's tokens that are not redundant.
    fn density(&self, x: ArrayView2<'_, f32>, crop: &[usize]) -> Result<f64> {
        let unit = normalised(x, crop)?;
        let mut alike = vec![0usize; crop.len()];
        tiles(unit.view(), unit.view(), |from, other, tile| {
            for ((r, c), cosine) in tile.indexed_iter() {
                alike[from + r] += usize::from(from + r != other + c && *cosine > self.threshold);
            }
        });
        let redundant = alike.iter().filter(|count| **count >= self.neighbours).count();
        Ok(1.0 - redundant as f64 / crop.len() as f64)
    }
}

impl TokenReduce for TokenCorr {
    fn id(&self) -> &'static str {
        "token_corr"
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
        let attention = hints.class_or_received(self.id())?;
        let free = free(&protected);
        let crops = self.crops(hints, &free);
        let tokens: Vec<usize> = crops.iter().map(Vec::len).collect();
        let mut weights = Vec::with_capacity(crops.len());
        for crop in &crops {
            weights.push(self.density(x, crop)? * crop.len() as f64);
        }
        let counts = shares(&weights, keep - (x.nrows() - free.len()), 0, &tokens);
        let mut kept = best(&crops, &counts, |token| f64::from(attention[token]));
        kept.extend((0..x.nrows()).filter(|token| protected[*token]));
        TokenMap::keep(x.nrows(), &kept)
    }
}
