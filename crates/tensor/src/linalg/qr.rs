//! QR factorisation.

use ndarray::{Array2, ArrayView2};

use super::{Real, check_finite};
use crate::Result;

/// A = Q R with orthonormal columns of Q and R upper triangular.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Qr<T> {
    /// `[m, k]`, orthonormal columns, also where A lacks rank.
    pub q: Array2<T>,
    /// `[k, n]`, zero below the diagonal; the diagonal may have any sign.
    pub r: Array2<T>,
}

/// Thin QR of A `[m, n]` by Householder reflections: k = min(m, n).
///
/// About 4mn² - 4n³/3 operations for m >= n, Q included. One thread: see the module's notes.
///
/// # Errors
/// Numerical, if an entry is not finite.
pub fn qr<T: Real>(a: ArrayView2<'_, T>) -> Result<Qr<T>> {
    check_finite("QR", a)?;
    let (q, r) = T::qr(a);
    Ok(Qr { q, r })
}
