//! How many tokens.

use ndarray::ArrayView2;
use tensorpress_tensor::{Error, Result};

use crate::hints::TokenHints;
use crate::map::TokenMap;
use crate::reduce::{ReducedStates, TokenReduce, check_finite};
use crate::share::shares;

/// Σ over tokens of |x - unmerged|² over Σ |x|²: 0 where nothing is lost, 1 where all is dropped; 0 for states of 0. Sums are
/// f64.
///
/// # Errors
/// `ShapeMismatch` unless the map takes x to the reduced states.
pub fn reconstruction_error(
    x: ArrayView2<'_, f32>,
    map: &TokenMap,
    reduced: ArrayView2<'_, f32>,
) -> Result<f64> {
    let back = map.unmerge(reduced)?;
    if back.dim() != x.dim() {
        return Err(Error::shape(format!("{:?} against {:?}", back.dim(), x.dim())));
    }
    let square = |v: f64| v * v;
    let lost: f64 = x.iter().zip(&back).map(|(x, y)| square(f64::from(*x) - f64::from(*y))).sum();
    let all: f64 = x.iter().map(|x| square(f64::from(*x))).sum();
    Ok(if all > 0.0 { lost / all } else { 0.0 })
}

/// The fewest tokens with which a method stays within a [`reconstruction_error`], by bisection over the number of tokens: how
/// complex a sequence is (the measure of KARL, *Single-pass Adaptive Image Tokenization for Minimum Program
/// Search*, 2025). What is returned is within the error; one token fewer is not, where the error falls with the
/// number, as it does but for ties and greedy choices.
///
/// # Errors
/// As [`TokenReduce::plan`]; `InvalidArgument` for an error below 0 or no number.
pub fn fewest_tokens(
    method: &dyn TokenReduce,
    x: ArrayView2<'_, f32>,
    hints: &TokenHints<'_>,
    error: f64,
) -> Result<ReducedStates> {
    if error.is_nan() || error < 0.0 {
        return Err(Error::invalid(format!("an error of {error}; allowed are 0 and above")));
    }
    let protected = hints.check(x, x.nrows())?;
    let alone = protected.iter().filter(|p| **p).count();
    // All tokens are always enough; what merges needs one beside the protected.
    let mut found = method.reduce(x, hints, x.nrows())?;
    let (mut low, mut high) = ((alone + 1).min(x.nrows()), x.nrows());
    while low < high {
        let middle = low.midpoint(high);
        let reduced = method.reduce(x, hints, middle)?;
        if reconstruction_error(x, &reduced.map, reduced.states.view())? <= error {
            (found, high) = (reduced, middle);
        } else {
            low = middle + 1;
        }
    }
    Ok(found)
}

/// In how many directions states `[tokens, channels]` spread about their mean: (Σ λ)² / Σ λ² of the eigenvalues of their
/// covariance, between 1 and the lesser of tokens - 1 and channels; 0 where all are alike. f64, without eigenvalues.
///
/// # Errors
/// `Numerical` for states that are not finite.
pub fn semantic_density(x: ArrayView2<'_, f32>) -> Result<f64> {
    check_finite(x)?;
    let (tokens, channels) = x.dim();
    let mut centred = x.mapv(f64::from);
    if let Some(mean) = centred.mean_axis(ndarray::Axis(0)) {
        centred -= &mean;
    }
    // The smaller of the two Gram matrices has the same eigenvalues, but for zeros.
    let gram =
        if tokens < channels { centred.dot(&centred.t()) } else { centred.t().dot(&centred) };
    let (trace, squares) = (gram.diag().sum(), gram.iter().map(|v| v * v).sum::<f64>());
    Ok(if squares > 0.0 { trace * trace / squares } else { 0.0 })
}

/// Tokens for each clip or frame of a video, in proportion to its density: `total` in all, at least `least` of each and at
/// most what it has (the rule of LangDC, *Seeing More, Saying More*, 2025, whose density is the length of a
/// caption).
///
/// # Errors
/// `ShapeMismatch` unless there is a density a clip; `InvalidArgument` for one below 0 or not finite, and for a total that
/// the bounds do not allow, saying what they do.
pub fn density_budgets(
    densities: &[f64],
    tokens: &[usize],
    total: usize,
    least: usize,
) -> Result<Vec<usize>> {
    if densities.len() != tokens.len() {
        let (given, clips) = (densities.len(), tokens.len());
        return Err(Error::shape(format!("{given} densities for {clips} clips")));
    }
    if let Some(bad) = densities.iter().find(|d| !(**d >= 0.0 && d.is_finite())) {
        return Err(Error::invalid(format!("a density of {bad}; allowed are 0 and above")));
    }
    let low: usize = tokens.iter().map(|n| least.min(*n)).sum();
    let high: usize = tokens.iter().sum();
    if !(low..=high).contains(&total) {
        return Err(Error::invalid(format!("{total} tokens in all; allowed are {low} to {high}")));
    }
    Ok(shares(densities, total, least, tokens))
}
