//! Symmetric systems of equations, without the linear algebra that rooms which engines embed leave off.

use ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

/// The lower triangular L with A = L Lᵀ of a symmetric positive definite A, in f64.
pub(crate) fn cholesky(mut a: Array2<f64>) -> Result<Array2<f64>> {
    let n = a.nrows();
    for i in 0..n {
        for j in 0..=i {
            let (row, other) = (a.row(i), a.row(j));
            let below: f64 = row.iter().zip(other).take(j).map(|(a, b)| a * b).sum();
            let rest = a[[i, j]] - below;
            a[[i, j]] = match i == j {
                false => rest / a[[j, j]],
                true if rest > 0.0 => rest.sqrt(),
                true => {
                    let message = format!("pivot {i} of {n} is not positive: a larger ridge");
                    return Err(Error::numerical(message));
                }
            };
        }
        a.row_mut(i).iter_mut().skip(i + 1).for_each(|v| *v = 0.0);
    }
    Ok(a)
}

/// X of L Lᵀ X = B.
pub(crate) fn solve(l: &Array2<f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    let (n, mut x) = (l.nrows(), b.to_owned());
    for column in 0..x.ncols() {
        for i in 0..n {
            let below: f64 = (0..i).map(|j| l[[i, j]] * x[[j, column]]).sum();
            x[[i, column]] = (x[[i, column]] - below) / l[[i, i]];
        }
        for i in (0..n).rev() {
            let above: f64 = (i + 1..n).map(|j| l[[j, i]] * x[[j, column]]).sum();
            x[[i, column]] = (x[[i, column]] - above) / l[[i, i]];
        }
    }
    x
}
