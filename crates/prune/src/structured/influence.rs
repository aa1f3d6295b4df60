//! How far a block turns its hidden states.

use tensorpress_tensor::ndarray::ArrayView1;
use tensorpress_tensor::rewrite::States;

/// 1 - the mean cosine of states before and after a block (ShortGPT, eq. 1): 0 for a block that only scales, 2 at most;
/// nothing if no token has one. Sums are f64.
#[must_use]
pub fn influence(states: States<'_>) -> Option<f64> {
    mean_of_cosines(states, |cosine| cosine).map(|mean| 1.0 - mean)
}

/// The mean angle between states before and after a block over π (CFSP): 0 to 1; nothing if no token has one.
#[must_use]
pub fn angular_distance(states: States<'_>) -> Option<f64> {
    mean_of_cosines(states, |cosine| cosine.clamp(-1.0, 1.0).acos() / std::f64::consts::PI)
}

fn mean_of_cosines(states: States<'_>, of: impl Fn(f64) -> f64) -> Option<f64> {
    let cosines = states.before.rows().into_iter().zip(states.after.rows());
    let cosines = cosines.filter_map(|(x, y)| cosine(x, y));
    let (sum, tokens) = cosines.fold((0.0, 0_u64), |(sum, n), cosine| (sum + of(cosine), n + 1));
    (tokens > 0).then(|| sum / tokens as f64)
}

/// Nothing where a state is zero or not finite.
fn cosine(x: ArrayView1<'_, f32>, y: ArrayView1<'_, f32>) -> Option<f64> {
    let dot = |a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>| {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let cosine = dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
    cosine.is_finite().then_some(cosine)
}
