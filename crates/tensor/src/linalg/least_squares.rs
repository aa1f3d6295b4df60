//! Least squares.

use ndarray::{Array2, ArrayView2};

use super::{Par, Real, Svd, check_finite, matmul_tn, svd};
use crate::{Error, Result};

/// What [`least_squares`] gives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LeastSquares<T> {
    /// `[n, p]`, the shortest of the minimisers.
    pub solution: Array2<T>,
    /// Numerical rank of A.
    pub rank: usize,
}

/// The X of least norm among those that minimise ||A X - B||: A `[m, n]`, B `[m, p]`, X `[n, p]`.
///
/// Any shape and rank: singular values up to `cutoff` times the largest count as zero; `None` takes max(m, n) x
/// epsilon. The cost of [`svd`] and 2(m + n) min(m, n) p; products run with `par`. A zero matrix gives X = 0.
///
/// # Errors
/// Shape, if A and B differ in rows. Invalid argument, if `cutoff` is negative or not finite. Numerical, if an entry
/// is not finite or the SVD does not converge.
pub fn least_squares<T: Real>(
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    cutoff: Option<T>,
    par: Par,
) -> Result<LeastSquares<T>> {
    check_arguments(a, b, cutoff)?;
    Ok(from_svd(svd(a)?, b, cutoff, par))
}

/// X = V diag(1/s) Uᵀ B over the singular values that count.
pub(super) fn from_svd<T: Real>(
    svd: Svd<T>,
    b: ArrayView2<'_, T>,
    cutoff: Option<T>,
    par: Par,
) -> LeastSquares<T> {
    let rank = svd.rank(cutoff.unwrap_or_else(|| svd.default_cutoff()));
    let svd = svd.truncate(rank);
    let mut projected = Array2::zeros((rank, b.ncols()));
    matmul_tn(svd.u.view(), b, projected.view_mut(), false, par);
    for (mut row, &s) in projected.rows_mut().into_iter().zip(&svd.s) {
        row.mapv_inplace(|v| v / s);
    }
    let mut solution = Array2::zeros((svd.vt.ncols(), b.ncols()));
    matmul_tn(svd.vt.view(), projected.view(), solution.view_mut(), false, par);
    LeastSquares { solution, rank }
}

pub(super) fn check_arguments<T: Real>(
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    cutoff: Option<T>,
) -> Result<()> {
    if a.nrows() != b.nrows() {
        let message = format!("least squares: {} rows left, {} right", a.nrows(), b.nrows());
        return Err(Error::shape(message));
    }
    if let Some(cutoff) = cutoff.filter(|c| !(c.is_finite() && *c >= T::zero())) {
        let message = format!("cutoff = {cutoff}: must be finite and at least 0");
        return Err(Error::invalid(message));
    }
    check_finite("least squares, left side", a)?;
    check_finite("least squares, right side", b)
}
