//! Matrix products.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{Par, Real};

/// C = A B, or C += A B with `accumulate`: A `[m, k]`, B `[k, n]`, C `[m, n]`, any strides.
///
/// 2mnk operations. The bytes do not depend on `par`. NaN and infinity propagate. Without `accumulate` the old
/// content of C is not read.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<T: Real>(
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    c: ArrayViewMut2<'_, T>,
    accumulate: bool,
    par: Par,
) {
    let fits = a.ncols() == b.nrows() && a.nrows() == c.nrows() && b.ncols() == c.ncols();
    assert!(fits, "product of {:?} and {:?} into {:?}", a.dim(), b.dim(), c.dim());
    T::gemm(c, accumulate, a, b, T::one(), par);
}

/// Y = X Wᵀ, or Y += X Wᵀ: X `[tokens, in]`, W `[out, in]`, Y `[tokens, out]`. A linear layer. See [`matmul`].
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_nt<T: Real>(
    x: ArrayView2<'_, T>,
    w: ArrayView2<'_, T>,
    y: ArrayViewMut2<'_, T>,
    accumulate: bool,
    par: Par,
) {
    matmul(x, w.reversed_axes(), y, accumulate, par);
}

/// C = Aᵀ B, or C += Aᵀ B: A `[k, m]`, B `[k, n]`, C `[m, n]`. See [`matmul`].
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_tn<T: Real>(
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    c: ArrayViewMut2<'_, T>,
    accumulate: bool,
    par: Par,
) {
    matmul(a.reversed_axes(), b, c, accumulate, par);
}

/// Lower triangle of G = XᵀX, or of G += XᵀX: X `[k, n]`, G `[n, n]`. Entries above the diagonal stay as they are.
///
/// kn² operations, half of the full product; [`mirror_lower`] fills the rest. The bytes do not depend on `par`.
///
/// # Panics
/// If the shapes do not fit.
pub fn gram_lower<T: Real>(
    x: ArrayView2<'_, T>,
    g: ArrayViewMut2<'_, T>,
    accumulate: bool,
    par: Par,
) {
    let n = x.ncols();
    assert!(g.dim() == (n, n), "Gram matrix of {:?} into {:?}", x.dim(), g.dim());
    T::gemm_lower(g, accumulate, x.reversed_axes(), x, par);
}

/// Copies what lies below the diagonal to above it.
///
/// # Panics
/// If the matrix is not square.
pub fn mirror_lower<T: Real>(mut a: ArrayViewMut2<'_, T>) {
    assert!(a.is_square(), "mirror of {:?}", a.dim());
    copy_triangle(&mut a, false);
}

/// Reflects the lower triangle into the upper (or back, `from_upper`), tile by tile to spare the cache.
pub(super) fn copy_triangle<T: Real>(a: &mut ArrayViewMut2<'_, T>, from_upper: bool) {
    const TILE: usize = 32;
    let n = a.nrows();
    for i0 in (0..n).step_by(TILE) {
        for j0 in (0..=i0).step_by(TILE) {
            for i in i0..(i0 + TILE).min(n) {
                for j in j0..(j0 + TILE).min(i) {
                    if from_upper {
                        a[[i, j]] = a[[j, i]];
                    } else {
                        a[[j, i]] = a[[i, j]];
                    }
                }
            }
        }
    }
}
