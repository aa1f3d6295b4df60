use ndarray::{Array2, ArrayView2, Axis, concatenate};
use tensorpress_tensor::{Error, Result};

use crate::reduce::check_finite;
use crate::solve::cholesky;

/// Mutual information of rows of x `[samples, p]` and y `[samples, q]` as if they were jointly normal: (ln det(Cx + r) +
/// ln det(Cy + r) - ln det(C + r)) / 2 in nats, C the covariances (over the number of samples) and r = `ridge` times the
/// mean variance of x on the diagonal of x, of y on that of y: noise of that variance on every channel, without which what
/// follows from the other would say infinitely much. At least 0. For a context and its compression, x are states and y the
/// states unmerged, of each token a sample; give the ridge with the number. The cost is (p + q)³ / 3.
///
/// # Errors
/// `ShapeMismatch` unless there are as many samples; `InvalidArgument` for fewer than 2, or a ridge not above 0; `Numerical` for
/// values that are not finite.
pub fn gaussian(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, ridge: f64) -> Result<f64> {
    if x.nrows() != y.nrows() {
        return Err(Error::shape(format!("{} samples beside {}", x.nrows(), y.nrows())));
    }
    if !(ridge > 0.0 && ridge.is_finite()) || x.nrows() < 2 {
        let n = x.nrows();
        return Err(Error::invalid(format!(
            "a ridge of {ridge}, {n} samples: above 0, at least 2"
        )));
    }
    check_finite(x)?;
    check_finite(y)?;
    let centred = |a: ArrayView2<'_, f32>| {
        let a = a.mapv(f64::from);
        let mean = a.mean_axis(Axis(0)).expect("2 samples or more");
        let a = a - &mean;
        // Of one scale, or a small one would drown in the ridge of the other.
        let variance = a.iter().map(|v| v * v).sum::<f64>() / a.len().max(1) as f64;
        if variance > 0.0 { a / variance.sqrt() } else { a }
    };
    let (x, y) = (centred(x), centred(y));
    let both = concatenate(Axis(1), &[x.view(), y.view()]).expect("as many samples");
    let log_det = |a: &Array2<f64>| -> Result<f64> {
        let mut covariance = a.t().dot(a) / a.nrows() as f64;
        covariance.diag_mut().mapv_inplace(|v| v + ridge);
        let factor = cholesky(covariance)?;
        Ok(2.0 * factor.diag().iter().map(|d| d.ln()).sum::<f64>())
    };
    let nats = (log_det(&x)? + log_det(&y)? - log_det(&both)?) / 2.0;
    Ok(nats.max(0.0))
}
