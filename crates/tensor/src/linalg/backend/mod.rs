//! The only place that sees faer: ndarray views in, faer's kernels inside.
//!
//! [`Sealed`] lists the kernels the rest of `linalg` is written with. They are methods of the element type, so that
//! faer's generic code is compiled once, here, and not again in every crate that factors a matrix.

mod bridge;
mod orthogonal;
mod triangular;

use std::fmt::{Debug, Display};
use std::num::NonZeroUsize;
use std::ops::{AddAssign, MulAssign, SubAssign};

use faer::linalg::matmul::{matmul, triangular as tri};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, LinalgScalar, ScalarOperand};

use super::Par;
use bridge::{mat, mat_mut};

/// Element type of the matrices: [`f32`] or [`f64`]. Sealed.
pub trait Real: Sealed {}

impl Real for f32 {}
impl Real for f64 {}

/// Kernels per element type. Shapes are the caller's duty: faer panics on those that do not fit.
pub trait Sealed:
    LinalgScalar
    + ScalarOperand
    + PartialOrd
    + Debug
    + Display
    + AddAssign
    + SubAssign
    + MulAssign
    + std::ops::Neg<Output = Self>
    + Send
    + Sync
{
    /// Distance from 1 to the next larger number.
    const EPSILON: Self;

    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Widening conversion.
    fn to_f64(self) -> f64;
    /// Rounding conversion.
    fn from_f64(v: f64) -> Self;

    /// C = alpha A B, or C += alpha A B.
    fn gemm(
        c: ArrayViewMut2<'_, Self>,
        accumulate: bool,
        a: ArrayView2<'_, Self>,
        b: ArrayView2<'_, Self>,
        alpha: Self,
        par: Par,
    );
    /// Lower triangle of C = A B, or of C += A B; what lies above the diagonal is untouched.
    fn gemm_lower(
        c: ArrayViewMut2<'_, Self>,
        accumulate: bool,
        a: ArrayView2<'_, Self>,
        b: ArrayView2<'_, Self>,
        par: Par,
    );
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

macro_rules! sealed {
    ($($t:ty)*) => {$(
        impl Sealed for $t {
            const EPSILON: Self = <$t>::EPSILON;

            #[inline]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
            #[inline]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline]
            fn from_f64(v: f64) -> Self {
                v as $t
            }
            fn gemm(
                c: ArrayViewMut2<'_, Self>,
                accumulate: bool,
                a: ArrayView2<'_, Self>,
                b: ArrayView2<'_, Self>,
                alpha: Self,
                par: Par,
            ) {
                matmul(mat_mut(c), accum(accumulate), mat(a), mat(b), alpha, threads(par));
            }
            fn gemm_lower(
                c: ArrayViewMut2<'_, Self>,
                accumulate: bool,
                a: ArrayView2<'_, Self>,
                b: ArrayView2<'_, Self>,
                par: Par,
            ) {
                let (lower, full) =
                    (tri::BlockStructure::TriangularLower, tri::BlockStructure::Rectangular);
                let beta = accum(accumulate);
                let (a, b) = (mat(a), mat(b));
                tri::matmul(mat_mut(c), lower, beta, a, full, b, full, 1.0, threads(par));
            }
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
sealed!(f32 f64);

fn accum(accumulate: bool) -> faer::Accum {
    if accumulate { faer::Accum::Add } else { faer::Accum::Replace }
}

fn threads(par: Par) -> faer::Par {
    match NonZeroUsize::new(par.threads()) {
        Some(n) if n.get() > 1 => faer::Par::Rayon(n),
        _ => faer::Par::Seq,
    }
}
