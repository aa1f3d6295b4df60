//! The scale under which a table of levels loses least.

/// The scale s >= 0 that minimises the sum of `weight (value - s level)²` with each value at its nearest level: the global
/// optimum, to rounding in f64. All weights count alike if none is given. 0 where nothing is gained by any scale.
///
/// A value changes its level where value / s crosses the middle of two. Between two such places the loss is a parabola in s
/// whose least value depends on two sums alone, and what one assignment loses at its own best s, the best assignment at that
/// s loses at most: one pass over the sorted places finds the least of all.
///
/// ```
/// let scale = tensorpress_quant::optimal_scale(&[-1.0, 0.0, 1.0], &[2.0, -4.0, 0.125], None);
/// assert_eq!(scale, 3.0);
/// ```
///
/// # Panics
/// If levels are not ascending finite numbers, at least one, or weights are of another number than values.
#[must_use]
pub fn optimal_scale(levels: &[f32], values: &[f32], weights: Option<&[f32]>) -> f32 {
    assert!(levels.iter().all(|l| l.is_finite()) && levels.is_sorted(), "ascending levels");
    assert!(weights.is_none_or(|weights| weights.len() == values.len()), "a weight a value");
    let levels: Vec<f64> = levels.iter().map(|level| f64::from(*level)).collect();
    let middles: Vec<f64> = levels.windows(2).map(|two| f64::midpoint(two[0], two[1])).collect();
    // From the level that values over an endless scale have, outwards.
    let first = [middles.partition_point(|m| *m < 0.0), middles.partition_point(|m| *m <= 0.0)];
    let (mut along, mut square) = (0.0, 0.0);
    let mut changes: Vec<Change> = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let (value, weight) = (f64::from(*value), weights.map_or(1.0, |w| f64::from(w[i])));
        let up = value > 0.0;
        let start = first[usize::from(up)];
        along += weight * value * levels[start];
        square += weight * levels[start] * levels[start];
        let mut change = |from: usize, to: usize, middle: f64| {
            let (from, to) = (levels[from], levels[to]);
            changes.push(Change {
                at: value / middle,
                along: weight * value * (to - from),
                square: weight * (to * to - from * from),
            });
        };
        if up {
            (start..middles.len()).for_each(|k| change(k, k + 1, middles[k]));
        } else if value < 0.0 {
            (1..=start).rev().for_each(|k| change(k, k - 1, middles[k - 1]));
        }
    }
    // Stable, so that the sums are those of the order given.
    changes.sort_by(|a, b| b.at.total_cmp(&a.at));
    let mut best = (0.0, 0.0);
    let mut consider = |along: f64, square: f64| {
        let gain = along * along / square;
        if along > 0.0 && square > 0.0 && gain > best.0 {
            best = (gain, along / square);
        }
    };
    consider(along, square);
    for change in changes {
        along += change.along;
        square += change.square;
        consider(along, square);
    }
    best.1.min(f64::from(f32::MAX)) as f32
}

/// A value's step to the next level outwards.
struct Change {
    /// The scale below which it is there.
    at: f64,
    along: f64,
    square: f64,
}
