//! Dense linear algebra over ndarray views.
//!
//! One-call functions for what compression methods need: products, Cholesky factors and the inverse factor of the
//! optimal-brain family, singular values, symmetric eigenvalues, QR, least squares and Walsh-Hadamard transforms.
//! The engine behind them is [faer](https://docs.rs/faer) (the feature of that name, on by default; without it there are
//! products alone, by ndarray on one thread); no faer type appears here. Matrices are [`f32`] or
//! [`f64`] ([`Real`]), of any strides; results are row-major.
//!
//! # What is guaranteed
//! - **Errors.** Products panic on shapes that do not fit (a programmer's error) and propagate NaN and infinity as
//!   IEEE 754 says. Factorisations return a shape error for shapes, a numerical error for NaN or infinity in their
//!   input (naming the entry), for a matrix that is not positive definite (naming the pivot), and for an iteration
//!   that does not converge.
//! - **Determinism.** With the same instruction set, products, Cholesky factors, triangular solves and inverses give
//!   the same bytes for any [`Par`]. The orthogonal factorisations (SVD, eigenvalues, QR) do not have that property
//!   in parallel, so they always run on one thread: be parallel over matrices instead.
//! - **Threads are an argument**, never a global setting.
//! - **Empty and 1 x 1 matrices** are valid everywhere.

mod backend;
#[cfg(feature = "faer")]
mod cholesky;
#[cfg(feature = "faer")]
mod eigen;
mod hadamard;
#[cfg(feature = "faer")]
mod inverse_factor;
mod lanes;
#[cfg(feature = "lapack")]
pub mod lapack;
#[cfg(feature = "faer")]
mod least_squares;
mod paley;
mod product;
#[cfg(feature = "faer")]
mod qr;
#[cfg(feature = "faer")]
mod randomized;
mod rng;
#[cfg(feature = "faer")]
mod svd;
#[cfg(feature = "faer")]
mod triangular;

#[cfg(feature = "faer")]
use ndarray::ArrayView2;

pub use backend::Real;
#[cfg(feature = "faer")]
pub use cholesky::{cholesky, cholesky_damped};
#[cfg(feature = "faer")]
pub use eigen::{SymmetricEigen, symmetric_eigen};
pub use hadamard::{hadamard, hadamard_block, hadamard_rows};
#[cfg(feature = "faer")]
pub use inverse_factor::{DampedFactor, damped_inverse_factor, inverse_cholesky_factor};
pub use lanes::hadamard_lanes;
#[cfg(feature = "faer")]
pub use least_squares::{LeastSquares, least_squares};
pub use paley::hadamard_matrix;
pub use product::{gram_lower, matmul, matmul_nt, matmul_tn, mirror_lower};
#[cfg(feature = "faer")]
pub use qr::{Qr, qr};
#[cfg(feature = "faer")]
pub use randomized::{RandomizedSvd, svd_randomized};
pub use rng::{SplitMix, gaussian};
#[cfg(feature = "faer")]
pub use svd::{Svd, svd, svd_truncated};
pub use tensorpress_kernels::Par;
#[cfg(feature = "faer")]
pub use triangular::{Triangle, invert_triangular, solve_triangular};

#[cfg(feature = "faer")]
use crate::{Error, Result};

/// A numerical error naming the first entry of `a` that is NaN or infinite.
#[cfg(feature = "faer")]
fn check_finite<T: Real>(what: &str, a: ArrayView2<'_, T>) -> Result<()> {
    for (i, row) in a.rows().into_iter().enumerate() {
        if row.iter().all(|v| v.is_finite()) {
            continue;
        }
        let j = row.iter().position(|v| !v.is_finite()).unwrap_or(0);
        let message = format!("{what}: entry [{i}, {j}] is {}", row[j].to_f64());
        return Err(Error::numerical(message));
    }
    Ok(())
}

/// The side of a square matrix, or a shape error.
#[cfg(feature = "faer")]
fn check_square<T: Real>(what: &str, a: ArrayView2<'_, T>) -> Result<usize> {
    let (m, n) = a.dim();
    if m == n {
        Ok(n)
    } else {
        Err(Error::shape(format!("{what}: the matrix must be square, not {m} x {n}")))
    }
}
