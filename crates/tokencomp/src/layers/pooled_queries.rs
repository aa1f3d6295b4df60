use ndarray::{Array3, ArrayView3, s};
use tensorpress_tensor::{Error, Result};

use crate::map::TokenMap;

/// Attention whose queries are means of groups while all keys and values stay (ARC-Encoder: *learning compressed text
/// representations for large language models*, 2025): `groups.targets()` vectors come out. q `[tokens, heads, dim]`,
/// k and v `[tokens, kv heads, dim]`, several query heads a kv head; every query sees every key; sums are f64. Groups of x
/// consecutive tokens: [`TokenMap::runs`]. The MLP behind it is the caller's, as an [`Align`](super::Align).
///
/// # Errors
/// `ShapeMismatch` for tensors that do not fit one another or the map; `InvalidArgument` without keys; `Numerical` for scores
/// that are not finite.
pub fn pooled_attention(
    q: ArrayView3<'_, f32>,
    k: ArrayView3<'_, f32>,
    v: ArrayView3<'_, f32>,
    groups: &TokenMap,
) -> Result<Array3<f32>> {
    let ((keys, kv_heads, dim), (_, heads, width)) = (k.dim(), q.dim());
    let fits = kv_heads > 0 && heads.is_multiple_of(kv_heads) && width == dim;
    if !fits || v.dim().0 != keys || v.dim().1 != kv_heads {
        let (q, k, v) = (q.dim(), k.dim(), v.dim());
        return Err(Error::shape(format!("queries {q:?}, keys {k:?}, values {v:?}")));
    }
    if keys == 0 {
        return Err(Error::invalid("attention to no keys"));
    }
    let pooled = groups.merge(q, None)?;
    let scale = 1.0 / (dim as f64).sqrt();
    let mut out = Array3::zeros((pooled.dim().0, heads, v.dim().2));
    for (token, head) in (0..pooled.dim().0).flat_map(|t| (0..heads).map(move |h| (t, h))) {
        let of = head / (heads / kv_heads);
        let query = pooled.slice(s![token, head, ..]);
        let score = |key: usize| {
            let products = query.iter().zip(k.slice(s![key, of, ..]));
            products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * scale
        };
        let mut weights: Vec<f64> = (0..keys).map(score).collect();
        let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        weights.iter_mut().for_each(|w| *w = (*w - most).exp());
        let sum: f64 = weights.iter().sum();
        if !sum.is_finite() {
            return Err(Error::numerical(format!("scores of query {token}, head {head}")));
        }
        for channel in 0..v.dim().2 {
            let values = weights.iter().enumerate();
            let mean: f64 = values.map(|(key, w)| w * f64::from(v[[key, of, channel]])).sum();
            out[[token, head, channel]] = (mean / sum) as f32;
        }
    }
    Ok(out)
}
