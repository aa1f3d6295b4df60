//! LAPACK (through `ndarray-linalg` and a system OpenBLAS) behind the functions of [`linalg`](super).
//!
//! A second, independent backend: to cross-check the first, and for those who trust LAPACK's algorithms more. Same
//! shapes, same results up to rounding and the signs of singular vectors, eigenvectors and rows of R, same errors
//! for bad input. Not the same guarantees: the number of threads and the bytes are the BLAS library's business.

use ndarray::{Array2, ArrayView2};
use ndarray_linalg::{
    CholeskyInto, Diag, Eigh, FactorizeCInto, InverseCInto, JobSvd, Lapack, QRInto, SVDDCInto,
    Scalar, SolveTriangular, UPLO,
};

use super::cholesky::zero_above;
use super::least_squares::{check_arguments, from_svd};
use super::{
    LeastSquares, Par, Qr, Real, Svd, SymmetricEigen, Triangle, check_finite, check_square,
};
use crate::{Error, Result};

/// Elements that LAPACK knows: [`f32`] and [`f64`].
pub trait Element: Real + Lapack + Scalar<Real = Self> {}

impl Element for f32 {}
impl Element for f64 {}

/// As [`linalg::cholesky`](super::cholesky), by `potrf`.
///
/// # Errors
/// As there.
pub fn cholesky<T: Element>(a: ArrayView2<'_, T>) -> Result<Array2<T>> {
    check("Cholesky", a)?;
    if a.is_empty() {
        return Ok(row_major(a));
    }
    let mut l = row_major(a).cholesky_into(UPLO::Lower).map_err(error("Cholesky"))?;
    zero_above(l.view_mut());
    Ok(row_major(l.view()))
}

/// As [`linalg::inverse_cholesky_factor`](super::inverse_cholesky_factor), by its textbook definition: `potrf`,
/// `potri`, `potrf`.
///
/// # Errors
/// As there.
pub fn inverse_cholesky_factor<T: Element>(h: ArrayView2<'_, T>) -> Result<Array2<T>> {
    const WHAT: &str = "inverse factor";
    check(WHAT, h)?;
    if h.is_empty() {
        return Ok(row_major(h));
    }
    let factor = row_major(h).factorizec_into(UPLO::Upper).map_err(error(WHAT))?;
    let inverse = factor.invc_into().map_err(error(WHAT))?;
    let u = inverse.cholesky_into(UPLO::Upper).map_err(error(WHAT))?;
    let mut u = row_major(u.view());
    zero_above(u.view_mut().reversed_axes());
    Ok(u)
}

/// As [`linalg::solve_triangular`](super::solve_triangular), by `trtrs`; gives X instead of overwriting B.
///
/// # Errors
/// As there.
pub fn solve_triangular<T: Element>(
    t: ArrayView2<'_, T>,
    triangle: Triangle,
    b: ArrayView2<'_, T>,
) -> Result<Array2<T>> {
    const WHAT: &str = "triangular solve";
    check(WHAT, t)?;
    if b.nrows() != t.nrows() {
        let message = format!("{WHAT}: {} rows left, {} right", t.nrows(), b.nrows());
        return Err(Error::shape(message));
    }
    check_finite(WHAT, b)?;
    if b.is_empty() {
        return Ok(row_major(b));
    }
    let uplo = match triangle {
        Triangle::Lower => UPLO::Lower,
        Triangle::Upper => UPLO::Upper,
    };
    let x = row_major(t).solve_triangular(uplo, Diag::NonUnit, &row_major(b));
    Ok(row_major(x.map_err(error(WHAT))?.view()))
}

/// As [`linalg::svd`](super::svd), by divide and conquer (`gesdd`).
///
/// # Errors
/// As there.
pub fn svd<T: Element>(a: ArrayView2<'_, T>) -> Result<Svd<T>> {
    check_finite("SVD", a)?;
    if a.is_empty() {
        return super::svd(a);
    }
    match row_major(a).svddc_into(JobSvd::Some).map_err(error("SVD"))? {
        (Some(u), s, Some(vt)) => Ok(Svd::new(row_major(u.view()), s, row_major(vt.view()))),
        _ => Err(Error::numerical("SVD: LAPACK gave no singular vectors")),
    }
}

/// As [`linalg::symmetric_eigen`](super::symmetric_eigen), by `syev`.
///
/// # Errors
/// As there.
pub fn symmetric_eigen<T: Element>(a: ArrayView2<'_, T>) -> Result<SymmetricEigen<T>> {
    check("eigenvalues", a)?;
    if a.is_empty() {
        return super::symmetric_eigen(a);
    }
    let (values, vectors) = row_major(a).eigh(UPLO::Lower).map_err(error("eigenvalues"))?;
    Ok(SymmetricEigen { values, vectors: row_major(vectors.view()) })
}

/// As [`linalg::qr`](super::qr), by `geqrf` and `orgqr`.
///
/// # Errors
/// As there.
pub fn qr<T: Element>(a: ArrayView2<'_, T>) -> Result<Qr<T>> {
    check_finite("QR", a)?;
    if a.is_empty() {
        return super::qr(a);
    }
    let (q, r) = row_major(a).qr_into().map_err(error("QR"))?;
    Ok(Qr { q: row_major(q.view()), r: row_major(r.view()) })
}

/// As [`linalg::least_squares`](super::least_squares), from [`svd`]. (LAPACK's own `gelsd` would take a cut-off of
/// epsilon here, below the rounding errors of a matrix that lacks rank, and give huge solutions.)
///
/// # Errors
/// As there.
pub fn least_squares<T: Element>(
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    cutoff: Option<T>,
) -> Result<LeastSquares<T>> {
    check_arguments(a, b, cutoff)?;
    Ok(from_svd(svd(a)?, b, cutoff, Par::Seq))
}

fn check<T: Element>(what: &str, a: ArrayView2<'_, T>) -> Result<()> {
    check_square(what, a)?;
    check_finite(what, a)
}

fn error(what: &str) -> impl Fn(ndarray_linalg::error::LinalgError) -> Error {
    move |error| Error::numerical(format!("{what}: {error}"))
}

fn row_major<T: Clone>(a: ArrayView2<'_, T>) -> Array2<T> {
    a.as_standard_layout().into_owned()
}
