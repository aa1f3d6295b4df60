//! Which units matter more than others, for [`crate::Ordered`].

use tensorpress_tensor::ndarray::{ArrayView2, Axis};
use tensorpress_tensor::{Error, Result};

/// How far a block turns its input: 1 - the mean over tokens of cos(x, y), x `[tokens, width]` before and y after. The more,
/// the more the block matters: the order of Layer-Wise Quantization's layer input modification, which is this less 1
/// (Dumitru et al., *Layer-Wise Quantization*, 2024), and QuantMoE-Bench's importance of blocks (Li et al., *Examining Post-Training Quantization for Mixture-of-Experts*, 2024). A token without
/// length on one side counts as turned by a right angle.
///
/// # Errors
/// `ShapeMismatch` unless both are of one shape; `InsufficientData` without tokens.
pub fn change(before: ArrayView2<'_, f32>, after: ArrayView2<'_, f32>) -> Result<f64> {
    if before.dim() != after.dim() {
        let message = format!("{:?} before and {:?} after", before.dim(), after.dim());
        return Err(Error::shape(message));
    }
    if before.is_empty() {
        return Err(Error::insufficient("no tokens to see a change by"));
    }
    let cosine = |(x, y): (tensorpress_tensor::ndarray::ArrayView1<'_, f32>, _)| {
        let y: tensorpress_tensor::ndarray::ArrayView1<'_, f32> = y;
        let (mut xy, mut xx, mut yy) = (0.0f64, 0.0f64, 0.0f64);
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            (xy, xx, yy) = (xy + x * y, xx + x * x, yy + y * y);
        }
        let length = (xx * yy).sqrt();
        if length > 0.0 { xy / length } else { 0.0 }
    };
    let sum: f64 = before.outer_iter().zip(after.outer_iter()).map(cosine).sum();
    Ok(1.0 - sum / before.nrows() as f64)
}

/// The share of weights more than one standard deviation above their mean (the z-score distribution of Layer-Wise Quantization): the fewer, the more the layer matters, so that its negative is an importance. No data is needed.
#[must_use]
pub fn z_scores(weight: ArrayView2<'_, f32>) -> f64 {
    let n = weight.len().max(1) as f64;
    let mean = weight.iter().map(|w| f64::from(*w)).sum::<f64>() / n;
    let variance = weight.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum::<f64>() / n;
    let limit = mean + variance.sqrt();
    weight.iter().filter(|w| f64::from(**w) > limit).count() as f64 / n
}

/// The largest ratio, over input channels, of the greatest magnitude to the mean one (QuantMoE-Bench: Li et al., *Examining
/// Post-Training Quantization for Mixture-of-Experts*, 2024): the more, the worse the matrix rounds. Channels of
/// zeros count for nothing.
#[must_use]
pub fn outliers(weight: ArrayView2<'_, f32>) -> f64 {
    let ratio = |column: tensorpress_tensor::ndarray::ArrayView1<'_, f32>| {
        let magnitude = |w: &f32| f64::from(w.abs());
        let most = column.iter().map(magnitude).fold(0.0, f64::max);
        let sum: f64 = column.iter().map(magnitude).sum();
        if sum > 0.0 { most * column.len() as f64 / sum } else { 0.0 }
    };
    weight.axis_iter(Axis(1)).map(ratio).fold(0.0, f64::max)
}
