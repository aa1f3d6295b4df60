use std::fmt::Debug;

use ndarray::{Array1, Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result};

use crate::reduce::check_finite;
use crate::solve::{cholesky, solve};

/// Takes vectors of one space to another: summaries of groups to embeddings (GMSA: *Enhancing Context Compression via Group
/// Merging and Layer Semantic Alignment*, 2025). Trained layers implement it, or [`LinearMap`] is fitted.
pub trait Align: Debug + Send + Sync {
    /// The vectors `[tokens, in]` in the other space, `[tokens, out]`.
    ///
    /// # Errors
    /// `ShapeMismatch` for vectors of other channels.
    fn align(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>>;
}

/// y = W x + b.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LinearMap {
    /// W `[out, in]`.
    pub weight: Array2<f32>,
    /// b `[out]`.
    pub bias: Array1<f32>,
}

impl LinearMap {
    /// The map of least Σ |W x + b - y|² + r |W|² over pairs of rows of x `[pairs, in]` and y `[pairs, out]`; r is `ridge` times
    /// the mean of Σ (x - mean)² over channels: 1e-6 or so, more where pairs are few. By normal equations in f64.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there are as many of both; `InvalidArgument` without any, or for a ridge that is not above 0;
    /// `Numerical` for values that are not finite.
    pub fn fit(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, ridge: f64) -> Result<Self> {
        if x.nrows() != y.nrows() {
            return Err(Error::shape(format!("{} vectors for {}", x.nrows(), y.nrows())));
        }
        if !(ridge > 0.0 && ridge.is_finite()) {
            return Err(Error::invalid(format!("a ridge of {ridge}; allowed are above 0")));
        }
        check_finite(x)?;
        check_finite(y)?;
        let (x, y) = (x.mapv(f64::from), y.mapv(f64::from));
        let (Some(from), Some(to)) = (x.mean_axis(Axis(0)), y.mean_axis(Axis(0))) else {
            return Err(Error::invalid("no pairs to fit a map to"));
        };
        let (x, y) = (x - &from, y - &to);
        let mut gram = x.t().dot(&x);
        let mean = gram.diag().mean().filter(|mean| *mean > 0.0).unwrap_or(1.0);
        gram.diag_mut().mapv_inplace(|v| v + ridge * mean);
        let weight = solve(&cholesky(gram)?, x.t().dot(&y).view());
        let bias = to - from.dot(&weight);
        let weight = weight.t().mapv(|v| v as f32).as_standard_layout().into_owned();
        Ok(Self { weight, bias: bias.mapv(|v| v as f32) })
    }
}

impl Align for LinearMap {
    fn align(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        if x.ncols() != self.weight.ncols() {
            let message = format!("{} channels, the map takes {}", x.ncols(), self.weight.ncols());
            return Err(Error::shape(message));
        }
        Ok(x.dot(&self.weight.t()) + &self.bias)
    }
}
