use tensorpress_tensor::linalg::{Par, least_squares};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, s};
use tensorpress_tensor::{Error, Result};

use super::check_columns;

/// The affine map y = W x + b, fitted by least squares in f64: a router or a gate in closed form.
///
/// ```
/// use tensorpress_prune::activation::Affine;
/// use tensorpress_tensor::ndarray::array;
///
/// let map = Affine::fit(array![[0.0], [1.0], [2.0]].view(), array![[1.0], [3.0], [5.0]].view())?;
/// assert!((map.apply(array![[10.0]].view())?[[0, 0]] - 21.0).abs() < 1e-4);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Affine {
    /// W, `[outputs, inputs]`.
    pub weight: Array2<f64>,
    /// b, `[outputs]`.
    pub bias: Array1<f64>,
}

impl Affine {
    /// The map that is nearest to Y `[tokens, outputs]` on X `[tokens, inputs]`, the shortest of several such; 0 without
    /// tokens.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for values that are not finite.
    pub fn fit(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>) -> Result<Self> {
        Self::fit_wide(x.mapv(f64::from).view(), y.mapv(f64::from).view())
    }

    pub(super) fn fit_wide(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>) -> Result<Self> {
        if x.nrows() != y.nrows() {
            let (x, y) = (x.nrows(), y.nrows());
            return Err(Error::shape(format!("inputs of {x} tokens, outputs of {y}")));
        }
        // Means apart: the bias is then no part of what is shortest.
        let mean = |m: ArrayView2<'_, f64>| {
            m.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(m.ncols()))
        };
        let (x_mean, y_mean) = (mean(x), mean(y));
        let (x, y) = (&x - &x_mean, &y - &y_mean);
        let solution = least_squares(x.view(), y.view(), None, Par::Seq)?.solution;
        let weight = solution.reversed_axes();
        let bias = y_mean - weight.dot(&x_mean);
        Ok(Self { weight, bias })
    }

    /// W X + b, `[tokens, outputs]`, summed in f64.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        check_columns("input of an affine map", x, self.weight.ncols())?;
        Ok(self.apply_wide(x.mapv(f64::from).view()).mapv(|v| v as f32))
    }

    pub(super) fn apply_wide(&self, x: ArrayView2<'_, f64>) -> Array2<f64> {
        x.dot(&self.weight.t()) + &self.bias
    }
}

/// As [`Affine::fit_wide`], with `ridge` times the mean square of a centred input added to its diagonal.
pub(super) fn fit_ridge(
    x: ArrayView2<'_, f64>,
    y: ArrayView2<'_, f64>,
    ridge: f64,
) -> Result<Affine> {
    let (tokens, inputs) = x.dim();
    let Some(mean) = x.mean_axis(Axis(0)).filter(|_| inputs > 0) else {
        return Affine::fit_wide(x, y);
    };
    let spread = (&x - &mean).iter().map(|v| v * v).sum::<f64>() / inputs as f64;
    // Two rows for each input, mean ± its length: the means stay, the squares grow by ridge x spread.
    let length = (0.5 * ridge * spread).sqrt();
    let mut more = Array2::zeros((2 * inputs, inputs));
    for i in 0..inputs {
        more[[2 * i, i]] = length;
        more[[2 * i + 1, i]] = -length;
    }
    let more = more + &mean;
    let x = concatenate(Axis(0), &[x, more.view()]).expect("as many columns");
    let y_mean = y.mean_axis(Axis(0)).expect("as many tokens as inputs have");
    let mut wide = Array2::zeros((x.nrows(), y.ncols()));
    wide.slice_mut(s![..tokens, ..]).assign(&y);
    wide.slice_mut(s![tokens.., ..]).assign(&y_mean);
    Affine::fit_wide(x.view(), wide.view())
}
