use std::fmt::Debug;

use ndarray::{ArrayView2, ArrayView3, s};
use tensorpress_tensor::{Error, Result};

use crate::map::TokenMap;

/// Says how informative each token is to a layer before its attention is known (LeMo: *Enabling LEss Token Involvement for
/// MOre Context Fine-tuning*, 2025). Trained predictors implement it; [`informativeness`] is exact.
pub trait Informativeness: Debug + Send + Sync {
    /// One number a token of the states `[tokens, channels]` that come to a layer.
    ///
    /// # Errors
    /// Its own.
    fn scores(&self, layer: usize, x: ArrayView2<'_, f32>) -> Result<Vec<f64>>;
}

/// Attention that each token receives, by blocks: probabilities are averaged over heads and over the queries of a block that
/// see the key, and a token's score is the largest of its blocks' means, so that it counts if any part of the
/// text needs it. q `[tokens, heads, dim]`, k `[tokens, kv heads, dim]`; causal; memory is linear in the tokens.
///
/// # Errors
/// `ShapeMismatch` for queries and keys that do not fit; `InvalidArgument` for a block of 0; `Numerical` for scores that are not
/// finite.
pub fn informativeness(
    q: ArrayView3<'_, f32>,
    k: ArrayView3<'_, f32>,
    block: usize,
) -> Result<Vec<f64>> {
    let ((tokens, heads, dim), (keys, kv_heads, width)) = (q.dim(), k.dim());
    if tokens != keys || dim != width || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::shape(format!("queries {:?}, keys {:?}", q.dim(), k.dim())));
    }
    if block == 0 {
        return Err(Error::invalid("blocks of 0 queries; allowed are 1 and above"));
    }
    let scale = 1.0 / (dim as f64).sqrt();
    let mut most = vec![0.0f64; tokens];
    for start in (0..tokens).step_by(block) {
        let end = (start + block).min(tokens);
        let mut sums = vec![0.0; end];
        for (query, head) in (start..end).flat_map(|t| (0..heads).map(move |h| (t, h))) {
            let asked = q.slice(s![query, head, ..]);
            let score = |key: usize| {
                let key = k.slice(s![key, head / (heads / kv_heads), ..]);
                asked.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let mut seen: Vec<f64> = (0..=query).map(|key| score(key) * scale).collect();
            let top = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            seen.iter_mut().for_each(|s| *s = (*s - top).exp());
            let sum: f64 = seen.iter().sum();
            if !sum.is_finite() {
                return Err(Error::numerical(format!("scores of query {query}, head {head}")));
            }
            sums.iter_mut().zip(seen).for_each(|(all, p)| *all += p / sum);
        }
        for (key, sum) in sums.into_iter().enumerate() {
            let queries = (end - start.max(key)) * heads;
            most[key] = most[key].max(sum / queries as f64);
        }
    }
    Ok(most)
}

/// The tokens that take part in a layer: those whose score is at least `threshold`, and the protected ones. The others are
/// dropped by the map, and pass by the layer: [`TokenMap::merge`] gathers, [`TokenMap::unmerge_onto`] scatters what the layer
/// made, on the states as they came. Gradients go the same ways: those of tokens that took part through the
/// layer, those of the others past it. No token takes part where none is informative.
///
/// # Errors
/// `Numerical` for a score that is no number, `InvalidArgument` for a protected token out of range.
pub fn informative(scores: &[f64], threshold: f64, protected: &[usize]) -> Result<TokenMap> {
    if let Some(bad) = scores.iter().position(|s| s.is_nan()) {
        return Err(Error::numerical(format!("the score of token {bad} is no number")));
    }
    let mut kept: Vec<usize> = (0..scores.len()).filter(|t| scores[*t] >= threshold).collect();
    kept.extend_from_slice(protected);
    kept.sort_unstable();
    kept.dedup();
    TokenMap::keep(scores.len(), &kept)
}
