//! The only place that sees faer: ndarray views in, faer's kernels inside. Without the feature `faer` there are products
//! alone, by ndarray.
//!
//! [`Sealed`] and `Factors` list the kernels the rest of `linalg` is written with. They are methods of the element type, so that
//! faer's generic code is compiled once, here, and not again in every crate that factors a matrix.

#[cfg(feature = "faer")]
mod bridge;
#[cfg(feature = "faer")]
mod factors;
#[cfg(feature = "faer")]
mod orthogonal;
#[cfg(any(not(feature = "faer"), test))]
mod plain;
#[cfg(feature = "faer")]
mod products;
#[cfg(feature = "faer")]
mod triangular;

use std::fmt::{Debug, Display};
use std::ops::{AddAssign, MulAssign, SubAssign};

use ndarray::{ArrayView2, ArrayViewMut2, LinalgScalar, ScalarOperand};

use super::Par;
#[cfg(feature = "faer")]
pub use factors::Factors;
#[cfg(not(feature = "faer"))]
use plain as products;

/// Element type of the matrices: [`f32`] or [`f64`]. Sealed.
#[cfg(feature = "faer")]
pub trait Real: Factors {}

/// Element type of the matrices: [`f32`] or [`f64`]. Sealed.
#[cfg(not(feature = "faer"))]
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
                products::gemm(c, accumulate, a, b, alpha, par);
            }
            fn gemm_lower(
                c: ArrayViewMut2<'_, Self>,
                accumulate: bool,
                a: ArrayView2<'_, Self>,
                b: ArrayView2<'_, Self>,
                par: Par,
            ) {
                products::gemm_lower(c, accumulate, a, b, par);
            }
        }
    )*};
}
sealed!(f32 f64);
