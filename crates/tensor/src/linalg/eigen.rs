//! Eigenvalues of symmetric matrices.

use ndarray::{Array1, Array2, ArrayView2};

use super::{Real, check_finite, check_square};
use crate::{Error, Result};

/// A = Q diag(values) Qᵀ.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SymmetricEigen<T> {
    /// `[n]`, rising.
    pub values: Array1<T>,
    /// `[n, n]`, eigenvectors as orthonormal columns.
    pub vectors: Array2<T>,
}

/// Eigenvalues and eigenvectors of a symmetric A `[n, n]`, of which the lower triangle is used.
///
/// About 9n³ operations. One thread: see the module's notes. The signs of the vectors are the algorithm's.
///
/// # Errors
/// Shape, if A is not square. Numerical, if an entry is not finite or the iteration does not converge.
pub fn symmetric_eigen<T: Real>(a: ArrayView2<'_, T>) -> Result<SymmetricEigen<T>> {
    check_square("eigenvalues", a)?;
    check_finite("eigenvalues", a)?;
    let (values, vectors) =
        T::eigen(a).ok_or_else(|| Error::numerical("eigenvalues: no convergence"))?;
    Ok(SymmetricEigen { values, vectors })
}
