//! Ranked bands of micro-experts, for mixed precision.

use tensorpress_tensor::{Error, Result};

use super::choice::best;

/// The band of each micro-expert, 0 for those of the highest scores: bands have these shares of all, in order (CAMERA-Q gives
/// each a precision of its own: in the official code a tenth 8 bits, three tenths 4, the rest 2). Scores are those of all
/// experts of a block, one after the other; of equal ones the first is ranked higher. Where shares are no whole numbers,
/// bands end at the nearest one.
///
/// ```
/// use tensorpress_prune::experts::micro::bands;
///
/// let of = bands(&[0.1, 9.0, 3.0, 0.2, 5.0], &[0.2, 0.4, 0.4])?;
/// assert_eq!(of, [2, 0, 1, 2, 1]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` for shares that are negative or do not sum to 1 (to 1e-6); `Numerical` for a score that is NaN.
pub fn bands(scores: &[f64], shares: &[f64]) -> Result<Vec<usize>> {
    let sum: f64 = shares.iter().sum();
    let whole = (1.0 - 1e-6..=1.0 + 1e-6).contains(&sum);
    if !whole || !shares.iter().all(|share| *share >= 0.0) {
        return Err(Error::invalid(format!(
            "shares = {shares:?}: allowed are numbers of 0 and more that sum to 1"
        )));
    }
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::numerical(format!("the score of micro-expert {at} is NaN")));
    }
    let mut of = vec![shares.len() - 1; scores.len()];
    let (mut begin, mut up_to) = (0, 0.0);
    let order = best(scores, scores.len());
    for (band, share) in shares.iter().enumerate() {
        up_to += share;
        let end = ((up_to * scores.len() as f64).round() as usize).clamp(begin, scores.len());
        order[begin..end].iter().for_each(|at| of[*at] = band);
        begin = end;
    }
    Ok(of)
}
