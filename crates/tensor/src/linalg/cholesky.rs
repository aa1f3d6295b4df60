//! Cholesky factorisation.

use ndarray::{Array2, ArrayViewMut2};

use super::{Par, Real, check_finite, check_square};
use crate::{Error, Result};

/// The lower triangular L with A = L Lᵀ, computed in the memory of `a`.
///
/// A is `[n, n]` and symmetric; only its lower triangle is used, and L is zero above the diagonal. n³/3 operations,
/// no second matrix. The bytes do not depend on `par`.
///
/// # Errors
/// Shape, if A is not square. Numerical, if an entry is not finite, or if A is not positive definite: the message
/// names the first pivot that is not positive.
pub fn cholesky<T: Real>(mut a: Array2<T>, par: Par) -> Result<Array2<T>> {
    check_square("Cholesky", a.view())?;
    check_finite("Cholesky", a.view())?;
    let n = a.nrows();
    T::llt(a.view_mut(), par).map_err(|pivot| not_positive("Cholesky", pivot, n))?;
    zero_above(a.view_mut());
    Ok(a)
}

/// [`cholesky`] of A + damp I.
///
/// # Errors
/// Those of [`cholesky`]; an invalid argument if `damp` is negative or not finite.
pub fn cholesky_damped<T: Real>(mut a: Array2<T>, damp: T, par: Par) -> Result<Array2<T>> {
    if !(damp.is_finite() && damp >= T::zero()) {
        return Err(Error::invalid(format!("damp = {damp}: must be finite and at least 0")));
    }
    check_square("Cholesky", a.view())?;
    a.diag_mut().mapv_inplace(|v| v + damp);
    cholesky(a, par)
}

pub(super) fn not_positive(what: &str, pivot: usize, n: usize) -> Error {
    Error::numerical(format!("{what}: pivot {pivot} of {n} is not positive; damp the diagonal"))
}

pub(super) fn zero_above<T: Real>(mut a: ArrayViewMut2<'_, T>) {
    for (i, mut row) in a.rows_mut().into_iter().enumerate() {
        row.slice_mut(ndarray::s![i + 1..]).fill(T::zero());
    }
}
