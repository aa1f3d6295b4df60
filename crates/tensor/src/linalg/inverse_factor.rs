//! The inverse Cholesky factor: the one matrix that GPTQ, SparseGPT and their kin need of the Hessian.
//!
//! The optimal-brain column sweep uses, for each column j, row j of the upper triangular U with H⁻¹ = UᵀU (Frantar
//! et al., *GPTQ*, 2023, section 4.3). The textbook route is Cholesky, inverse, Cholesky again: n³/3 + 2n³/3 + n³/3
//! operations. Reversing the order of the indices gives it in half: with P the reversal, P H P = L Lᵀ means
//! H = (P L P)(P L P)ᵀ with P L P upper triangular, so U = (P L P)⁻¹ = P L⁻¹ P: a Cholesky factor and a triangular
//! inverse, n³/3 each, both in the memory of H. P is a view with negative strides, never a copy.

use ndarray::{Array2, ArrayViewMut2, s};

use super::cholesky::not_positive;
use super::product::copy_triangle;
use super::{Par, Real, check_finite, check_square};
use crate::{Error, Result};

/// The upper triangular U with H⁻¹ = UᵀU, computed in the memory of `h`; zero below the diagonal.
///
/// H is `[n, n]` and symmetric; only its upper triangle is used. 2n³/3 operations; the peak beside H is one panel of
/// 256 x n/2 values. The bytes do not depend on `par`.
///
/// # Errors
/// Shape, if H is not square. Numerical, if an entry is not finite, or H is not positive definite: the message names
/// the pivot (pivots are taken from the last to the first). [`damped_inverse_factor`] does not fail there.
pub fn inverse_cholesky_factor<T: Real>(mut h: Array2<T>, par: Par) -> Result<Array2<T>> {
    let n = check_square("inverse factor", h.view())?;
    check_finite("inverse factor", h.view())?;
    factor_in_place(h.view_mut(), par)
        .map_err(|failure| failure.into_error("inverse factor", n))?;
    zero_below(h.view_mut());
    Ok(h)
}

/// What [`damped_inverse_factor`] gives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DampedFactor<T> {
    /// The upper triangular U with (H + damp I)⁻¹ = UᵀU.
    pub factor: Array2<T>,
    /// What was added to the diagonal.
    pub damp: T,
    /// How often the first damping was not enough; 0 in the usual case.
    pub retries: u32,
}

/// [`inverse_cholesky_factor`] of H + damp I with damp = `damp_fraction` x mean(diag H), as GPTQ does.
///
/// If the damped matrix is still not positive definite, the damping is multiplied by 10 until it is; what was used is
/// in the result. No second matrix is needed for that: only the upper triangle is overwritten, and the lower one
/// still holds the entries. So H must be symmetric in full. Give dead channels (a zero on the diagonal) a 1 first:
/// they take part in the mean otherwise.
///
/// # Errors
/// Shape, if H is not square. Invalid argument, if `damp_fraction` is negative or not finite. Numerical, if an entry
/// is not finite, or if no finite damping works (an overflow).
pub fn damped_inverse_factor<T: Real>(
    mut h: Array2<T>,
    damp_fraction: f64,
    par: Par,
) -> Result<DampedFactor<T>> {
    const WHAT: &str = "damped inverse factor";
    if !(damp_fraction.is_finite() && damp_fraction >= 0.0) {
        let message = format!("damp = {damp_fraction}: must be finite and at least 0");
        return Err(Error::invalid(message));
    }
    let n = check_square(WHAT, h.view())?;
    check_finite(WHAT, h.view())?;
    let diagonal = h.diag().to_owned();
    let mean = diagonal.iter().map(|v| v.abs().to_f64()).sum::<f64>() / n.max(1) as f64;
    let mean = if mean > 0.0 { mean } else { 1.0 };
    let mut damp = T::from_f64(damp_fraction * mean);
    let mut retries = 0;
    loop {
        h.diag_mut().iter_mut().zip(&diagonal).for_each(|(h, &d)| *h = d + damp);
        let failure = match factor_in_place(h.view_mut(), par) {
            Ok(()) => {
                zero_below(h.view_mut());
                return Ok(DampedFactor { factor: h, damp, retries });
            }
            Err(failure) => failure,
        };
        // From no damping at all, start at the size of rounding errors in the diagonal.
        let least = T::EPSILON.to_f64() * mean;
        damp = T::from_f64(10.0 * damp.to_f64().max(least));
        retries += 1;
        if !damp.is_finite() {
            return Err(failure.into_error(WHAT, n));
        }
        copy_triangle(&mut h.view_mut(), false);
    }
}

enum Failure {
    /// A pivot was not positive.
    Pivot(usize),
    /// The inverse is beyond the range of the type.
    Overflow,
}

impl Failure {
    fn into_error(self, what: &str, n: usize) -> Error {
        match self {
            Self::Pivot(pivot) => not_positive(what, pivot, n),
            Self::Overflow => {
                Error::numerical(format!("{what}: the inverse overflows; damp the diagonal"))
            }
        }
    }
}

/// Overwrites the upper triangle of `h` by U, leaving what is below the diagonal as it was.
fn factor_in_place<T: Real>(mut h: ArrayViewMut2<'_, T>, par: Par) -> Result<(), Failure> {
    let n = h.nrows();
    let mut reversed = h.slice_mut(s![..;-1, ..;-1]);
    T::llt(reversed.view_mut(), par).map_err(|pivot| Failure::Pivot(n - 1 - pivot))?;
    T::invert_lower(reversed, par);
    let finite = |i: usize| h.slice(s![i, i..]).iter().all(|v| v.is_finite());
    if (0..n).all(finite) { Ok(()) } else { Err(Failure::Overflow) }
}

fn zero_below<T: Real>(mut a: ArrayViewMut2<'_, T>) {
    for (i, mut row) in a.rows_mut().into_iter().enumerate() {
        row.slice_mut(s![..i]).fill(T::zero());
    }
}
