//! Triangular systems and inverses.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::{Par, Real, check_finite, check_square};
use crate::{Error, Result};

/// Which triangle of a matrix counts; the other is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Triangle {
    /// The diagonal and what is below it.
    Lower,
    /// The diagonal and what is above it.
    Upper,
}

/// Solves T X = B in the memory of B: T `[n, n]`, B `[n, k]`. For Tᵀ X = B give `t.t()` and the other triangle.
///
/// n²k operations. The bytes do not depend on `par`.
///
/// # Errors
/// Shape, if T is not square or B has another number of rows. Numerical, if an entry is not finite or the diagonal
/// has a zero.
pub fn solve_triangular<T: Real>(
    t: ArrayView2<'_, T>,
    triangle: Triangle,
    b: ArrayViewMut2<'_, T>,
    par: Par,
) -> Result<()> {
    const WHAT: &str = "triangular solve";
    let n = check_triangular(WHAT, t, triangle)?;
    if b.nrows() != n {
        let message = format!("{WHAT}: {n} x {n} matrix, {} rows on the right", b.nrows());
        return Err(Error::shape(message));
    }
    check_finite(WHAT, b.view())?;
    match triangle {
        Triangle::Lower => T::solve_lower(t, b, par),
        Triangle::Upper => {
            T::solve_lower(t.slice_move(s![..;-1, ..;-1]), b.slice_move(s![..;-1, ..]), par);
        }
    }
    Ok(())
}

/// The inverse of a triangular matrix, in its memory; the other triangle becomes zero.
///
/// n³/3 operations, no second matrix. The bytes do not depend on `par`.
///
/// # Errors
/// Shape, if T is not square. Numerical, if an entry is not finite or the diagonal has a zero.
pub fn invert_triangular<T: Real>(
    mut t: Array2<T>,
    triangle: Triangle,
    par: Par,
) -> Result<Array2<T>> {
    check_triangular("triangular inverse", t.view(), triangle)?;
    let mut lower = t.view_mut();
    if triangle == Triangle::Upper {
        lower = lower.slice_move(s![..;-1, ..;-1]);
    }
    T::invert_lower(lower.view_mut(), par);
    super::cholesky::zero_above(lower);
    Ok(t)
}

fn check_triangular<T: Real>(
    what: &str,
    t: ArrayView2<'_, T>,
    triangle: Triangle,
) -> Result<usize> {
    let n = check_square(what, t)?;
    for (i, row) in t.rows().into_iter().enumerate() {
        let row = match triangle {
            Triangle::Lower => row.slice_move(s![..=i]),
            Triangle::Upper => row.slice_move(s![i..]),
        };
        if !row.iter().all(|v| v.is_finite()) {
            return Err(Error::numerical(format!("{what}: row {i} has NaN or infinity")));
        }
        if t[[i, i]] == T::zero() {
            return Err(Error::numerical(format!("{what}: the diagonal is 0 at {i}")));
        }
    }
    Ok(n)
}
