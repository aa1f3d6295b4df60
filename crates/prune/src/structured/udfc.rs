//! Unified Data-Free Compression (Bai, Chen, Shen, Qian, Liu: "Unified Data-Free Compression: Pruning and
//! Quantization without Fine-Tuning", ICCV 2023).

use tensorpress_tensor::ndarray::{ArrayView1, ArrayView2};
use tensorpress_tensor::stage::{Row, WeightPart};
use tensorpress_tensor::{Error, Result};

use super::{Allocation, Norms, Repair, Structured};

/// UDFC's pruning: channels of small weights go, and each is taken for a linear combination s of those that stay, found by
/// ridge regression of the rows that write it ([`Repair::Weights`], with norms folded in); s times the columns
/// that read it is added to theirs.
///
/// ```
/// use tensorpress_prune::structured::udfc;
/// use tensorpress_tensor::stage::canonical;
///
/// let text = canonical("udfc", &mut udfc())?;
/// assert_eq!(text, "udfc(sparsity=0.2, multiple=1, heads=false, damp=0.01)");
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[must_use]
pub fn udfc() -> Structured<Norms> {
    Structured::new(NAME, Norms, Allocation::Uniform, Repair::Weights).with_heads(false)
}

const NAME: &str = "udfc";

pub(super) fn stage() -> Row<WeightPart> {
    let about = "removes channels of small weights and gives what they said to those that say it too; needs no \
                 calibration";
    Row::rewrite(NAME, about, udfc)
}

/// What the columns that read quantised channels are multiplied by (UDFC: a damaged channel is s times what is
/// left of it): for rows w of a matrix and ŵ of the quantised one, both `[channels, in]`, the s that makes ‖w - s ŵ‖² +
/// ridge s² ‖ŵ‖² least. 1 for a channel of which nothing is left. Sums are f64.
///
/// # Errors
/// `ShapeMismatch`; `InvalidArgument` for the ridge; `Numerical` for a scale that is not finite, naming the channel.
pub fn scale_corrections(
    weight: ArrayView2<'_, f32>,
    quantised: ArrayView2<'_, f32>,
    ridge: f64,
) -> Result<Vec<f32>> {
    if weight.dim() != quantised.dim() {
        let (a, b) = (weight.dim(), quantised.dim());
        return Err(Error::shape(format!("quantised rows {b:?} of a matrix {a:?}")));
    }
    if !(ridge.is_finite() && ridge >= 0.0) {
        return Err(Error::invalid(format!("ridge = {ridge}: allowed are 0 and more")));
    }
    let rows = weight.rows().into_iter().zip(quantised.rows()).enumerate();
    let scale = |(channel, (w, q)): (usize, (ArrayView1<'_, f32>, ArrayView1<'_, f32>))| {
        let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
        let both: f64 = w.iter().zip(q).map(|(w, q)| product(*w, *q)).sum();
        let left: f64 = q.iter().map(|q| product(*q, *q)).sum();
        let scale = if left == 0.0 { 1.0 } else { both / (left * (1.0 + ridge)) };
        match (scale as f32).is_finite() {
            true => Ok(scale as f32),
            false => Err(Error::numerical(format!("the scale of channel {channel} is {scale}"))),
        }
    };
    rows.map(scale).collect()
}
