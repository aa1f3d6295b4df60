//! Randomised truncated SVD.

use ndarray::{Array2, ArrayView2};

use super::rng::gaussian;
use super::{Par, Real, Svd, check_finite, matmul, matmul_tn, svd_truncated};
use crate::{Error, Result};

/// How [`svd_randomized`] searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RandomizedSvd {
    /// Singular triplets wanted.
    pub rank: usize,
    /// Extra random directions; 10 makes failures as rare as 1e-10 for most spectra (Halko et al., section 10.3).
    pub oversample: usize,
    /// Power iterations; 2 suits the slowly falling spectra of weights and of their quantisation errors.
    pub power_iterations: usize,
    /// Seed of the random directions.
    pub seed: u64,
}

impl RandomizedSvd {
    /// `rank` triplets with 10 extra directions, 2 power iterations and seed 0.
    #[must_use]
    pub fn rank(rank: usize) -> Self {
        Self { rank, oversample: 10, power_iterations: 2, seed: 0 }
    }

    /// Another number of extra directions.
    #[must_use]
    pub fn with_oversample(mut self, oversample: usize) -> Self {
        self.oversample = oversample;
        self
    }

    /// Another number of power iterations.
    #[must_use]
    pub fn with_power_iterations(mut self, power_iterations: usize) -> Self {
        self.power_iterations = power_iterations;
        self
    }

    /// Another seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// About the `rank` largest singular triplets of A `[m, n]`, from random directions.
///
/// Halko, Martinsson, Tropp, *Finding structure with randomness* (2011), algorithms 4.4 and 5.1: an orthonormal Q
/// near the range of (A Aᵀ)^q A Ω, Ω Gaussian, re-orthonormalised by QR after every product; then the SVD of Qᵀ A.
/// With l = rank + oversample and q power iterations: (4q + 4) mnl operations in products, which run with `par`,
/// and about (2q + 1) 4 max(m, n) l² in QR, on one thread. If l reaches min(m, n), the answer is [`svd_truncated`].
///
/// The same `how`, the same bytes, for any `par`.
///
/// # Errors
/// Numerical, if an entry is not finite, if a product overflows or if the iteration does not converge.
pub fn svd_randomized<T: Real>(
    a: ArrayView2<'_, T>,
    how: RandomizedSvd,
    par: Par,
) -> Result<Svd<T>> {
    const WHAT: &str = "randomised SVD";
    let (m, n) = a.dim();
    let directions = how.rank.saturating_add(how.oversample);
    if directions >= m.min(n) {
        return svd_truncated(a, how.rank);
    }
    check_finite(WHAT, a)?;

    let mut omega = Array2::<T>::zeros((n, directions));
    for (i, v) in omega.iter_mut().enumerate() {
        *v = T::from_f64(gaussian(how.seed, i as u64));
    }
    let mut range = Array2::<T>::zeros((m, directions));
    matmul(a, omega.view(), range.view_mut(), false, par);
    let mut q = orthonormal(WHAT, range)?;
    let mut domain = omega;
    for _ in 0..how.power_iterations {
        matmul_tn(a, q.view(), domain.view_mut(), false, par);
        domain = orthonormal(WHAT, domain)?;
        matmul(a, domain.view(), q.view_mut(), false, par);
        q = orthonormal(WHAT, q)?;
    }
    let mut small = Array2::<T>::zeros((directions, n));
    matmul_tn(q.view(), a, small.view_mut(), false, par);
    let small = svd_truncated(small.view(), how.rank)?;
    let mut u = Array2::<T>::zeros((m, small.s.len()));
    matmul(q.view(), small.u.view(), u.view_mut(), false, par);
    Ok(Svd::new(u, small.s, small.vt))
}

fn orthonormal<T: Real>(what: &str, a: Array2<T>) -> Result<Array2<T>> {
    if a.iter().all(|v| v.is_finite()) {
        Ok(T::qr(a.view()).0)
    } else {
        Err(Error::numerical(format!("{what}: a product overflows; scale the matrix down")))
    }
}
