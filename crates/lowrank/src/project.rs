use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::{self, Par, RandomizedSvd, Svd};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};

use crate::metric::Root;
use crate::rank::Rank;

/// How singular vectors are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Solver {
    /// Randomised where the rank is at most an eighth of the smaller side of a matrix of at least 512, else exact.
    #[default]
    Auto,
    /// All of them, from a full decomposition.
    Exact,
    /// The leading ones, from random directions ([`linalg::svd_randomized`]); exact where the rank is chosen by energy.
    Randomized {
        /// Power iterations: more are closer to the optimum on spectra that fall slowly. 2 is usual.
        power_iterations: usize,
    },
}

/// From here on a randomised decomposition is worth its error.
const LARGE: usize = 512;

impl Solver {
    fn solve(self, a: ArrayView2<'_, f32>, rank: Rank, seed: u64, par: Par) -> Result<Svd<f32>> {
        let shape = [a.nrows(), a.ncols()];
        let least = shape[0].min(shape[1]);
        let iterations = match (self, rank.of_shape(shape)) {
            (Self::Auto, Some(rank)) if least >= LARGE && rank <= least / 8 => Some(4),
            (Self::Randomized { power_iterations }, Some(_)) => Some(power_iterations),
            _ => None,
        };
        match (iterations, rank.of_shape(shape)) {
            (Some(iterations), Some(rank)) => {
                let how = RandomizedSvd::rank(rank)
                    .with_power_iterations(iterations)
                    .with_oversample((rank / 8).max(10))
                    .with_seed(seed);
                linalg::svd_randomized(a, how, par)
            }
            _ => {
                let svd = linalg::svd(a)?;
                let rank = rank.of_spectrum(shape, svd.s.as_slice().expect("contiguous"));
                Ok(svd.truncate(rank))
            }
        }
    }
}

/// W ~ U V.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Projection {
    /// U `[out, rank]`.
    pub left: Array2<f32>,
    /// V `[rank, in]`.
    pub right: Array2<f32>,
}

/// The factors of this rank that lose least: U = P, V = Pᵀ W with P the leading left singular vectors of W S, scaled so
/// that column k of U and row k of V have the same length.
///
/// # Errors
/// `Numerical` if an entry is not finite, `ShapeMismatch`.
pub fn project(
    weight: ArrayView2<'_, f32>,
    root: &Root,
    rank: Rank,
    solver: Solver,
    seed: u64,
    par: Par,
) -> Result<Projection> {
    let seen = root.apply(weight, par)?;
    let mut left = solver.solve(seen.view(), rank, seed, par)?.u;
    let mut right = Array2::zeros((left.ncols(), weight.ncols()));
    linalg::matmul_tn(left.view(), weight, right.view_mut(), false, par);
    // Equal lengths keep both factors in the range of narrow types and quantise best.
    for (mut column, mut row) in left.columns_mut().into_iter().zip(right.rows_mut()) {
        let length = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if length > 0.0 {
            let share = length.sqrt();
            column.mapv_inplace(|v| (f64::from(v) * share) as f32);
            row.mapv_inplace(|v| (f64::from(v) / share) as f32);
        }
    }
    Ok(Projection { left, right })
}
