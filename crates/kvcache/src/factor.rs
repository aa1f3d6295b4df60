//! Factorisations, which take the feature `fitted`; without it whatever wants one is refused when it is made.

use tensorpress_tensor::{Error, Result};

#[cfg(feature = "fitted")]
pub(crate) use tensorpress_tensor::linalg::{
    Svd, Triangle, cholesky, cholesky_damped, invert_triangular, qr, solve_triangular, svd,
    symmetric_eigen,
};
#[cfg(not(feature = "fitted"))]
pub(crate) use without::{
    Svd, Triangle, cholesky, cholesky_damped, invert_triangular, qr, solve_triangular, svd,
    symmetric_eigen,
};

/// Whether what fits bases or predictors can be had.
pub(crate) fn check(what: &str) -> Result<()> {
    if cfg!(feature = "fitted") {
        return Ok(());
    }
    Err(Error::unsupported(format!("{what} factorises matrices: build with the feature `fitted`")))
}

#[cfg(not(feature = "fitted"))]
mod without {
    use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};
    use tensorpress_tensor::linalg::Par;
    use tensorpress_tensor::{Result, ndarray};

    use super::check;

    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Triangle {
        Lower,
        Upper,
    }

    pub(crate) struct Svd<T> {
        pub(crate) u: Array2<T>,
        pub(crate) s: Array1<T>,
        pub(crate) vt: Array2<T>,
    }

    impl<T> Svd<T> {
        pub(crate) fn truncate(self, _: usize) -> Self {
            self
        }
    }

    pub(crate) struct Qr<T> {
        pub(crate) q: Array2<T>,
    }

    pub(crate) struct SymmetricEigen {
        pub(crate) values: Array1<f64>,
        pub(crate) vectors: Array2<f64>,
    }

    /// Nothing comes of it.
    fn none<T>(what: &str) -> Result<T> {
        check(what).and_then(|()| unreachable!("the feature is off"))
    }

    pub(crate) fn svd<T>(_: ArrayView2<'_, T>) -> Result<Svd<T>> {
        none("an SVD")
    }

    pub(crate) fn qr<T>(_: ArrayView2<'_, T>) -> Result<Qr<T>> {
        none("a QR decomposition")
    }

    pub(crate) fn symmetric_eigen(_: ArrayView2<'_, f64>) -> Result<SymmetricEigen> {
        none("an eigenvalue")
    }

    pub(crate) fn cholesky(_: Array2<f64>, _: Par) -> Result<Array2<f64>> {
        none("a Cholesky factor")
    }

    pub(crate) fn cholesky_damped(_: Array2<f64>, _: f64, _: Par) -> Result<Array2<f64>> {
        none("a Cholesky factor")
    }

    pub(crate) fn invert_triangular(_: Array2<f64>, _: Triangle, _: Par) -> Result<Array2<f64>> {
        none("a triangular inverse")
    }

    pub(crate) fn solve_triangular(
        _: ArrayView2<'_, f64>,
        _: Triangle,
        _: ArrayViewMut2<'_, f64>,
        _: Par,
    ) -> Result<()> {
        none("a triangular solve")
    }
}
