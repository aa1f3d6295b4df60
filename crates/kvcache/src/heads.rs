//! What attention maps and matrices of keys tell about heads, before a model is used: which ones look things up, how much
//! they hold, and how many tokens that asks for. Functions over maps: any engine can make them.

use std::ops::Range;

use crate::factor::symmetric_eigen;
use ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result, ndarray};

/// How much of its attention a head pays, on a text of `period` random tokens said again and again, to what is the same as
/// the query's token and came before (echo; RazorAttention, Tang et al., 2024): mean over the queries behind the first
/// period of a map `[queries, keys]` whose rows and columns are the text's tokens.
///
/// # Errors
/// `InvalidArgument` for a period of 0, or a text that is no longer than it.
pub fn echo(map: ArrayView2<'_, f32>, period: usize) -> Result<f64> {
    looked_back(map, period, 0)
}

/// How much it pays to what followed that (induction): as [`echo`], one token on.
///
/// # Errors
/// As there.
pub fn induction(map: ArrayView2<'_, f32>, period: usize) -> Result<f64> {
    looked_back(map, period, 1)
}

fn looked_back(map: ArrayView2<'_, f32>, period: usize, on: usize) -> Result<f64> {
    let tokens = map.nrows().min(map.ncols());
    if period == 0 || tokens <= period {
        return Err(Error::invalid(format!(
            "period = {period}: allowed are 1 to {}, less than the text has",
            tokens.saturating_sub(1)
        )));
    }
    let of = |query: usize| -> f64 {
        let earlier = (1..=query / period).map(|times| query - times * period + on);
        earlier.filter(|key| *key < query).map(|key| f64::from(map[[query, key]])).sum()
    };
    Ok((period..tokens).map(of).sum::<f64>() / (tokens - period) as f64)
}

/// The heads that look things up: the largest share of a model's heads by induction, and by echo. RazorAttention's are
/// 0.14 and 0.01. Shares are rounded up.
///
/// # Errors
/// `ShapeMismatch` where the scores are of different numbers of heads, `InvalidArgument` for shares beyond 0 to 1.
pub fn retrieval_heads(
    induction: &[f64],
    echo: &[f64],
    (of_induction, of_echo): (f64, f64),
) -> Result<Vec<bool>> {
    if induction.len() != echo.len() {
        let (i, e) = (induction.len(), echo.len());
        return Err(Error::shape(format!("induction of {i} heads, echo of {e}")));
    }
    let mut chosen = vec![false; echo.len()];
    for (scores, share) in [(induction, of_induction), (echo, of_echo)] {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!("share = {share}: allowed are 0 to 1")));
        }
        // 0.14 of 50 are 7, whatever rounding says.
        let count = (share * scores.len() as f64 - 1e-9).ceil() as usize;
        best(scores, count).into_iter().for_each(|head| chosen[head] = true);
    }
    Ok(chosen)
}

/// How far back a head with ALiBi's `slope` can look (RazorAttention's analytic scope): where its scaled products of queries
/// and keys lie within plus and minus `bound`, a token farther away than this gets less than `epsilon` of any query's
/// attention, for the query's own key gets at least exp(slope x distance - 2 bound) times as much. The bound may be the
/// spectral norm of W_Qᵀ W_K, times the largest squared norm of its inputs, times the scale.
///
/// # Errors
/// `InvalidArgument` for a bound that is negative, a slope that is not above 0, or an epsilon beyond 0 to 1.
pub fn alibi_scope(bound: f64, slope: f64, epsilon: f64) -> Result<f64> {
    let sound = bound >= 0.0 && slope > 0.0 && epsilon > 0.0 && epsilon <= 1.0;
    if !(sound && bound.is_finite() && slope.is_finite()) {
        return Err(Error::invalid(format!(
            "bound = {bound}, slope = {slope}, epsilon = {epsilon}: from 0 on, above 0, and above 0 to 1"
        )));
    }
    Ok((2.0 * bound - epsilon.ln()) / slope)
}

/// The places of the `count` largest, ascending; of equals the first.
#[must_use]
pub fn best(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// How much a head looks at a needle while the model says it (semantic retrieval; CompressKV, Lin et al., 2025): the
/// attention on the whole span `needle`, summed over those rows of a map `[steps, keys]` whose generated token lies in it.
/// A copying score that asks for the very token that is said misses heads which look at what is around it.
///
/// # Errors
/// `ShapeMismatch` for another number of steps, or a span beyond the keys.
pub fn semantic_retrieval(
    map: ArrayView2<'_, f32>,
    needle: Range<usize>,
    says_it: &[bool],
) -> Result<f64> {
    if says_it.len() != map.nrows() || needle.end > map.ncols() {
        let (said, end, dim) = (says_it.len(), needle.end, map.dim());
        return Err(Error::shape(format!(
            "{said} steps and a needle up to {end} of a map {dim:?}"
        )));
    }
    let rows = map.rows().into_iter().zip(says_it).filter(|(_, says)| **says);
    Ok(rows.map(|(row, _)| needle.clone().map(|k| f64::from(row[k])).sum::<f64>()).sum())
}

/// Truncated matrix entropy of vectors `[tokens, dim]` (UNComp, Xiong et al., 2025), 0 to 1: each less their mean, brought to
/// length 1, covariance brought to trace 1; minus the sum of λ ln λ over its `top` largest eigenvalues, over ln dim. All
/// count where `top` is 0. Nearly parallel vectors have little, vectors in all directions 1.
///
/// # Errors
/// `InsufficientData` without vectors, or where all are alike; `Numerical` for what is not finite.
pub fn matrix_entropy(x: ArrayView2<'_, f32>, top: usize) -> Result<f64> {
    let mut x = x.mapv(f64::from);
    let mean = x.mean_axis(Axis(0)).filter(|mean| mean.len() > 1);
    let Some(mean) = mean else {
        return Err(Error::insufficient("entropy of no vectors, or of a single channel"));
    };
    for mut row in x.rows_mut() {
        row -= &mean;
        let norm = row.dot(&row).sqrt();
        if norm > 0.0 {
            row /= norm;
        }
    }
    let mut covariance: Array2<f64> = x.t().dot(&x);
    let trace = covariance.diag().sum();
    if trace == 0.0 {
        return Err(Error::insufficient("entropy of vectors that are all alike"));
    }
    covariance /= trace;
    let values = symmetric_eigen(covariance.view())?.values;
    let top = if top == 0 { values.len() } else { top };
    let entropy: f64 =
        values.iter().rev().take(top).filter(|v| **v > 0.0).map(|v| -v * v.ln()).sum();
    Ok(entropy / (values.len() as f64).ln())
}

/// Classes 0 to `classes` - 1 of as many heads each, or one more, by rising entropy: UNComp's groups of heads. Those of the last
/// class say most and keep most.
///
/// # Errors
/// `InvalidArgument` for no classes.
pub fn entropy_classes(entropies: &[f64], classes: usize) -> Result<Vec<usize>> {
    if classes == 0 {
        return Err(Error::invalid("classes = 0: at least 1"));
    }
    let mut order: Vec<usize> = (0..entropies.len()).collect();
    order.sort_by(|a, b| entropies[*a].total_cmp(&entropies[*b]));
    let mut of = vec![0; entropies.len()];
    for (rank, head) in order.into_iter().enumerate() {
        of[head] = rank * classes / entropies.len();
    }
    Ok(of)
}

/// Where entropy falls from layer to layer by more than `fall`, a new stage begins: UNComp's groups of layers, counted
/// from 0, which hold less from stage to stage.
#[must_use]
pub fn entropy_stages(entropies: &[f64], fall: f64) -> Vec<usize> {
    let mut stage = 0;
    let mut last = f64::NEG_INFINITY;
    let of = |entropy: &f64| {
        if last - entropy > fall {
            stage += 1;
        }
        last = *entropy;
        stage
    };
    entropies.iter().map(of).collect()
}

/// What eviction costs a layer: |O - O'| / |O| in the Frobenius norm, of its outputs with all tokens and with those that
/// would stay (CompressKV's budgets of layers are in proportion to it).
///
/// # Errors
/// `ShapeMismatch` for outputs unlike each other.
pub fn eviction_error(all: ArrayView2<'_, f32>, kept: ArrayView2<'_, f32>) -> Result<f64> {
    if all.dim() != kept.dim() {
        return Err(Error::shape(format!("outputs {:?} and {:?}", all.dim(), kept.dim())));
    }
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = all.iter().zip(kept).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = all.iter().map(|a| square(*a)).sum();
    Ok(if norm > 0.0 { (error / norm).sqrt() } else { 0.0 })
}

/// Tokens of each layer: `least` for all, and what is left of `mean` each in proportion to `errors`, whole tokens; what
/// rounding leaves goes to the largest fractions. Layers of the same error get as many.
///
/// # Errors
/// `InvalidArgument` for `least` above `mean`, or errors that are negative or no numbers.
pub fn layer_tokens(errors: &[f64], mean: usize, least: usize) -> Result<Vec<usize>> {
    if least > mean {
        return Err(Error::invalid(format!("least = {least}: allowed are 0 to the mean, {mean}")));
    }
    if let Some(error) = errors.iter().find(|e| !(e.is_finite() && **e >= 0.0)) {
        return Err(Error::invalid(format!("error = {error}: allowed are numbers from 0 on")));
    }
    let free = (mean - least) * errors.len();
    let sum: f64 = errors.iter().sum();
    let even = 1.0 / errors.len().max(1) as f64;
    let exact: Vec<f64> =
        errors.iter().map(|e| free as f64 * if sum > 0.0 { e / sum } else { even }).collect();
    let mut tokens: Vec<usize> = exact.iter().map(|e| *e as usize).collect();
    let left = free.saturating_sub(tokens.iter().sum());
    let fractions: Vec<f64> = exact.iter().map(|e| e.fract()).collect();
    best(&fractions, left).into_iter().for_each(|layer| tokens[layer] += 1);
    tokens.iter_mut().for_each(|t| *t += least);
    Ok(tokens)
}
