use ndarray::{Array1, ArrayView2};
use tensorpress_tensor::ndarray;

/// Which set each key `[slots, dim]` belongs to, counted from 0: neighbours share one while the cosine from each to the
/// next is above `cosine`; a key that stands `apart` is a set of its own (KVMerger, Wang et al., 2024).
#[must_use]
pub fn adjacent_sets(
    keys: ArrayView2<'_, f32>,
    cosine: f64,
    apart: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let mut sets = Vec::with_capacity(keys.nrows());
    let mut set = 0;
    for slot in 0..keys.nrows() {
        let joins = slot > 0
            && !apart(slot)
            && !apart(slot - 1)
            && similarity(keys, slot - 1, slot) > cosine;
        set += usize::from(slot > 0 && !joins);
        sets.push(set);
    }
    sets
}

/// Cosine of two rows; 0 beside a row of zeros.
pub(super) fn similarity(keys: ArrayView2<'_, f32>, a: usize, b: usize) -> f64 {
    let (a, b) = (keys.row(a).mapv(f64::from), keys.row(b).mapv(f64::from));
    let norms = (a.dot(&a) * b.dot(&b)).sqrt();
    if norms > 0.0 { a.dot(&b) / norms } else { 0.0 }
}

/// How much each of `members` counts in what the set becomes: `exp(-|k_p - k_i|² / 2 sigma²)` beside the pivot p, sigma the
/// mean distance to it, the pivot's 0 among them; they add up to 1.
#[must_use]
pub fn gaussian_weights(keys: ArrayView2<'_, f32>, members: &[usize], pivot: usize) -> Vec<f64> {
    let at = keys.row(pivot).mapv(f64::from);
    let distance = |slot: &usize| {
        let off: Array1<f64> = keys.row(*slot).mapv(f64::from) - &at;
        off.dot(&off).sqrt()
    };
    let distances: Vec<f64> = members.iter().map(distance).collect();
    let sigma = distances.iter().sum::<f64>() / distances.len().max(1) as f64;
    let weight = |d: &f64| if sigma > 0.0 { (-d * d / (2.0 * sigma * sigma)).exp() } else { 1.0 };
    let weights: Vec<f64> = distances.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}
