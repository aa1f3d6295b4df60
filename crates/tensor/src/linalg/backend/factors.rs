//! Factorisations by faer.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use super::bridge::{mat, mat_mut};
use super::products::threads;
use super::{Sealed, orthogonal, triangular};
use crate::linalg::Par;

/// Factorisations per element type. Shapes are the caller's duty: faer panics on those that do not fit.
pub trait Factors: Sealed {
    /// Lower Cholesky factor in place, touching the lower triangle only; `Err(pivot)` if not positive definite.
    fn llt(a: ArrayViewMut2<'_, Self>, par: Par) -> Result<(), usize>;
    /// Inverse of a lower triangular matrix in place, touching the lower triangle only.
    fn invert_lower(a: ArrayViewMut2<'_, Self>, par: Par);
    /// B = L^-1 B for the lower triangle L.
    fn solve_lower(l: ArrayView2<'_, Self>, b: ArrayViewMut2<'_, Self>, par: Par);
    /// Thin U, singular values in falling order, and the transpose of thin V; `None` without convergence.
    fn svd(a: ArrayView2<'_, Self>) -> Option<(Array2<Self>, Array1<Self>, Array2<Self>)>;
    /// Eigenvalues in rising order and eigenvectors as columns, from the lower triangle.
    fn eigen(a: ArrayView2<'_, Self>) -> Option<(Array1<Self>, Array2<Self>)>;
    /// Thin Q and R.
    fn qr(a: ArrayView2<'_, Self>) -> (Array2<Self>, Array2<Self>);
}

macro_rules! factors {
    ($($t:ty)*) => {$(
        impl Factors for $t {
            fn llt(a: ArrayViewMut2<'_, Self>, par: Par) -> Result<(), usize> {
                triangular::llt(mat_mut(a), threads(par))
            }
            fn invert_lower(a: ArrayViewMut2<'_, Self>, par: Par) {
                triangular::invert_lower(mat_mut(a), threads(par));
            }
            fn solve_lower(l: ArrayView2<'_, Self>, b: ArrayViewMut2<'_, Self>, par: Par) {
                use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
                solve_lower_triangular_in_place(mat(l), mat_mut(b), threads(par));
            }
            fn svd(a: ArrayView2<'_, Self>) -> Option<(Array2<Self>, Array1<Self>, Array2<Self>)> {
                orthogonal::svd(a)
            }
            fn eigen(a: ArrayView2<'_, Self>) -> Option<(Array1<Self>, Array2<Self>)> {
                orthogonal::eigen(a)
            }
            fn qr(a: ArrayView2<'_, Self>) -> (Array2<Self>, Array2<Self>) {
                orthogonal::qr(a)
            }
        }
    )*};
}
factors!(f32 f64);
