use tensorpress_tensor::Result;

use super::Held;
use super::attention::weights;

/// How much of its attention the newest query of a layer pays to the first `initial` tokens and the `recent` before it, the
/// mean over the heads, its own key left out of the count (SimLayerKV, Zhang et al., 2024). A layer above some threshold is
/// lazy: those tokens are enough for it.
///
/// # Errors
/// `MissingCalibration` where no query was kept: the statistics must be of a score that asks for one.
pub fn lazy_share(held: Held<'_>, initial: usize, recent: usize) -> Result<f64> {
    let shape = held.store.shape();
    let mut sum = 0.0;
    for h in held.heads() {
        let (keys, positions) = (held.keys(h), held.store.positions(h));
        for q in h * shape.group()..(h + 1) * shape.group() {
            let (at, query) = held.statistics.queries(q, 1)?;
            let w = weights(held.store.scoring(), q, (&at, &query), keys.view(), &positions);
            let near = at[0].saturating_sub(recent)..at[0];
            let counts = |p: usize| (p < initial && p < at[0]) || near.contains(&p);
            let seen = w.iter().zip(&positions).filter(|(_, p)| counts(**p));
            sum += seen.map(|(w, _)| f64::from(*w)).sum::<f64>();
        }
    }
    Ok(sum / shape.heads as f64)
}
