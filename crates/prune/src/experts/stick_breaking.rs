//! ModuleFormer's attention (Shen, Zhang, Cao et al., 2023): a stick is broken, a key after the other.

/// The weights of the keys that a query sees, from their scores, in the order of their positions.
///
/// w_j = σ(s_j) Π_{i>j} (1 - σ(s_i)): the nearest key takes its part of a stick, and each one before it its part of what is
/// left. Near keys come first whatever their scores, so that no position needs to be encoded; the weights sum to
/// 1 - Π (1 - σ(s_i)), 1 at most, and nothing is a valid answer. Products are sums of logarithms in f64.
///
/// A score that is NaN makes its own weight NaN and those before it; +∞ takes all that is left, -∞ nothing.
///
/// ```
/// use tensorpress_prune::experts::stick_breaking;
///
/// // Three halves: of the stick, of what is left, of what is left then.
/// assert_eq!(stick_breaking(&[0.0, 0.0, 0.0]), [0.125, 0.25, 0.5]);
/// ```
#[must_use]
pub fn stick_breaking(scores: &[f32]) -> Vec<f32> {
    let mut left = 0.0;
    let mut weights = vec![0.0; scores.len()];
    for (weight, score) in weights.iter_mut().zip(scores).rev() {
        let score = f64::from(*score);
        *weight = (left - softplus(-score)).exp() as f32;
        left -= softplus(score);
    }
    weights
}

/// The gradient by the scores, from that by the weights: s_k moves its own weight by w_k (1 - σ(s_k)), and those of all
/// earlier keys by -σ(s_k) of them.
///
/// # Panics
/// If there are not as many of both.
#[must_use]
pub fn stick_breaking_backward(scores: &[f32], by_weights: &[f32]) -> Vec<f32> {
    assert_eq!(scores.len(), by_weights.len(), "scores and gradients");
    let weights = stick_breaking(scores);
    // Of the keys before.
    let mut earlier = 0.0;
    let mut gradient = Vec::with_capacity(scores.len());
    for ((score, weight), by) in scores.iter().zip(&weights).zip(by_weights) {
        let part = (-softplus(-f64::from(*score))).exp();
        let own = f64::from(*weight) * f64::from(*by);
        gradient.push(((1.0 - part) * own - part * earlier) as f32);
        earlier += own;
    }
    gradient
}

/// ln(1 + eˣ).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
