//! Dense linear algebra over ndarray views.
//!
//! One-call functions for what compression methods need: products, Cholesky factors and the inverse factor of the
//! optimal-brain family, singular values, symmetric eigenvalues, QR, least squares and Walsh-Hadamard transforms.
//! The engine behind them is [faer](https://docs.rs/faer); no faer type appears here. Matrices are [`f32`] or
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
mod cholesky;
mod eigen;
mod hadamard;
mod inverse_factor;
mod lanes;
#[cfg(feature = "lapack")]
pub mod lapack;
mod least_squares;
mod paley;
mod product;
mod qr;
mod randomized;
mod rng;
mod svd;
mod triangular;

use ndarray::ArrayView2;

pub use backend::Real;
pub use cholesky::{cholesky, cholesky_damped};
pub use eigen::{SymmetricEigen, symmetric_eigen};
pub use hadamard::{hadamard, hadamard_block, hadamard_rows};
pub use inverse_factor::{DampedFactor, damped_inverse_factor, inverse_cholesky_factor};
pub use lanes::{hadamard_lanes, hadamard_lanes_of};
pub use least_squares::{LeastSquares, least_squares};
pub use paley::hadamard_matrix;
pub use product::{gram_lower, matmul, matmul_nt, matmul_tn, mirror_lower};
pub use qr::{Qr, qr};
pub use randomized::{RandomizedSvd, svd_randomized};
pub use rng::{SplitMix, gaussian};
pub use svd::{Svd, svd, svd_truncated};
pub use tensorpress_kernels::Par;
pub use triangular::{Triangle, invert_triangular, solve_triangular};

use crate::{Error, Result};

/// A numerical error naming the first entry of `a` that is NaN or infinite.
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
fn check_square<T: Real>(what: &str, a: ArrayView2<'_, T>) -> Result<usize> {
    let (m, n) = a.dim();
    if m == n {
        Ok(n)
    } else {
        Err(Error::shape(format!("{what}: the matrix must be square, not {m} x {n}")))
    }
}
