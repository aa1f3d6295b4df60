//! Singular value decomposition.

use ndarray::{Array1, Array2, ArrayView2, s};

use super::{Par, Real, check_finite};
use crate::{Error, Result};

/// A = U diag(s) Vᵀ with orthonormal columns of U and rows of Vᵀ, and s falling.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Svd<T> {
    /// `[m, k]`, orthonormal columns.
    pub u: Array2<T>,
    /// `[k]`, not negative, falling.
    pub s: Array1<T>,
    /// `[k, n]`, orthonormal rows.
    pub vt: Array2<T>,
}

impl<T: Real> Svd<T> {
    pub(super) fn new(u: Array2<T>, s: Array1<T>, vt: Array2<T>) -> Self {
        Self { u, s, vt }
    }

    /// U diag(s) Vᵀ.
    #[must_use]
    pub fn reconstruct(&self) -> Array2<T> {
        let mut a = Array2::zeros((self.u.nrows(), self.vt.ncols()));
        let scaled = &self.u * &self.s;
        super::matmul(scaled.view(), self.vt.view(), a.view_mut(), false, Par::Seq);
        a
    }

    /// Keeps the `rank` largest singular values (all, if there are fewer): of all matrices of that rank the closest
    /// to A in the Frobenius and spectral norms (Eckart, Young, 1936).
    #[must_use]
    pub fn truncate(self, rank: usize) -> Self {
        let rank = rank.min(self.s.len());
        if rank == self.s.len() {
            return self;
        }
        Self {
            u: self.u.slice(s![.., ..rank]).as_standard_layout().into_owned(),
            s: self.s.slice(s![..rank]).to_owned(),
            vt: self.vt.slice(s![..rank, ..]).to_owned(),
        }
    }

    /// How many singular values are above `relative` times the largest. [`Svd::default_cutoff`] is the usual choice.
    #[must_use]
    pub fn rank(&self, relative: T) -> usize {
        let Some(&largest) = self.s.first() else { return 0 };
        self.s.iter().filter(|&&v| v > relative * largest).count()
    }

    /// max(m, n) x epsilon: relative to the largest, singular values below it may be rounding errors.
    #[must_use]
    pub fn default_cutoff(&self) -> T {
        T::from_f64(self.u.nrows().max(self.vt.ncols()) as f64) * T::EPSILON
    }
}

/// Thin SVD of A `[m, n]`: k = min(m, n) singular triplets.
///
/// About 6mn² + 16n³ operations for m >= n (the transpose otherwise). One thread: see the module's notes. The signs
/// of the singular vectors are the algorithm's.
///
/// # Errors
/// Numerical, if an entry is not finite or the iteration does not converge.
pub fn svd<T: Real>(a: ArrayView2<'_, T>) -> Result<Svd<T>> {
    check_finite("SVD", a)?;
    let (u, s, vt) = T::svd(a).ok_or_else(|| Error::numerical("SVD: no convergence"))?;
    Ok(Svd { u, s, vt })
}

/// The `rank` largest singular triplets (all, if there are fewer), from a full SVD.
///
/// The best approximation of that rank; the cost of [`svd`]. For ranks far below min(m, n),
/// [`svd_randomized`](super::svd_randomized) is much faster and nearly as close.
///
/// # Errors
/// Those of [`svd`].
pub fn svd_truncated<T: Real>(a: ArrayView2<'_, T>, rank: usize) -> Result<Svd<T>> {
    Ok(svd(a)?.truncate(rank))
}
