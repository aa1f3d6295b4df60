//! Diversity-based pruning: Alvar, Singh, Akbari, Zhang, *DivPrune: Diversity-based Visual Token Pruning for Large
//! Multimodal Models*, 2025.

use ndarray::ArrayView2;
use tensorpress_tensor::stage::Row;
use tensorpress_tensor::{Result, kernels};

use crate::hints::TokenHints;
use crate::map::TokenMap;
use crate::reduce::TokenReduce;
use crate::similarity::{normalised, tiles};
use crate::stage::{TokenPart, reduction};

/// Keeps tokens that are far from one another, by the greedy algorithm for the max-min diversity problem: each next token
/// is the one whose nearest kept token is farthest, in cosine distance. Memory is linear in the tokens; with n tokens of d
/// channels it takes n (n + keep) d operations.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct DivPrune;

impl DivPrune {
    /// The method; it has no settings.
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    /// The kept tokens in the order in which they are chosen; protected tokens come first. Without any, the first is the
    /// one with the farthest nearest neighbour. The first of equals wins.
    ///
    /// # Errors
    /// As [`TokenReduce::plan`].
    pub fn order(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<Vec<usize>> {
        let protected = hints.check(x, keep)?;
        let unit = normalised(x, &(0..x.nrows()).collect::<Vec<_>>())?;
        let row = |token: usize| unit.row(token).to_slice().expect("standard layout");
        let mut chosen: Vec<usize> = (0..x.nrows()).filter(|t| protected[*t]).collect();
        let mut next = 0;
        if chosen.is_empty() {
            chosen.push(farthest(&neighbour_distances(unit.view()), &[]));
        }
        // Distance of each token to the nearest chosen one.
        let mut distances = vec![f32::INFINITY; x.nrows()];
        while chosen.len() < keep || next < chosen.len() {
            for &token in &chosen[next..] {
                for (other, distance) in distances.iter_mut().enumerate() {
                    *distance = distance.min(1.0 - kernels::dot(row(token), row(other)));
                }
            }
            next = chosen.len();
            if chosen.len() < keep {
                chosen.push(farthest(&distances, &chosen));
            }
        }
        Ok(chosen)
    }
}

/// The first token of the largest distance that is not chosen.
fn farthest(distances: &[f32], chosen: &[usize]) -> usize {
    let mut distances = distances.to_vec();
    chosen.iter().for_each(|token| distances[*token] = f32::NEG_INFINITY);
    let most = distances.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    distances.iter().position(|d| *d == most).unwrap_or(0)
}

/// Distance of each token to its nearest neighbour.
fn neighbour_distances(unit: ArrayView2<'_, f32>) -> Vec<f32> {
    let mut distances = vec![f32::INFINITY; unit.nrows()];
    tiles(unit, unit, |from, other, tile| {
        for ((r, c), similarity) in tile.indexed_iter() {
            if from + r != other + c {
                let distance = &mut distances[from + r];
                *distance = distance.min(1.0 - similarity);
            }
        }
    });
    distances
}

pub(crate) fn stage() -> Row<TokenPart> {
    reduction("divprune", "keeps tokens that are far from one another", DivPrune::new)
}

impl TokenReduce for DivPrune {
    fn id(&self) -> &'static str {
        "divprune"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        TokenMap::keep(x.nrows(), &self.order(x, hints, keep)?)
    }
}
