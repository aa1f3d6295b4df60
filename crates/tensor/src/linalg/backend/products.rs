//! Products by faer.

use std::num::NonZeroUsize;

use faer::linalg::matmul::{matmul, triangular as tri};
use faer::traits::ComplexField;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use super::bridge::{mat, mat_mut};
use crate::linalg::Par;

/// Entries of a product of one row or column that a thread takes at a time.
const STRIP: usize = 1024;

pub(super) fn gemm<T: ComplexField>(
    mut c: ArrayViewMut2<'_, T>,
    accumulate: bool,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    alpha: T,
    par: Par,
) {
    let seq = |c: ArrayViewMut2<'_, T>, a: ArrayView2<'_, T>, b: ArrayView2<'_, T>| {
        matmul(mat_mut(c), accum(accumulate), mat(a), mat(b), alpha.clone(), faer::Par::Seq);
    };
    // faer cuts the sums of vectors by the number of threads. Whole sums are shared out here.
    if c.nrows() == 1 && c.ncols() > 1 {
        let strips = c.axis_chunks_iter_mut(Axis(1), STRIP).zip(b.axis_chunks_iter(Axis(1), STRIP));
        return par.for_each(strips, |(c, b)| seq(c, a, b));
    }
    if c.ncols() == 1 {
        let strips = c.axis_chunks_iter_mut(Axis(0), STRIP).zip(a.axis_chunks_iter(Axis(0), STRIP));
        return par.for_each(strips, |(c, a)| seq(c, a, b));
    }
    matmul(mat_mut(c), accum(accumulate), mat(a), mat(b), alpha, threads(par));
}

pub(super) fn gemm_lower<T: ComplexField>(
    c: ArrayViewMut2<'_, T>,
    accumulate: bool,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    par: Par,
) {
    let (lower, full) = (tri::BlockStructure::TriangularLower, tri::BlockStructure::Rectangular);
    let (beta, one) = (accum(accumulate), faer::traits::math_utils::one::<T>());
    tri::matmul(mat_mut(c), lower, beta, mat(a), full, mat(b), full, one, threads(par));
}

fn accum(accumulate: bool) -> faer::Accum {
    if accumulate { faer::Accum::Add } else { faer::Accum::Replace }
}

pub(super) fn threads(par: Par) -> faer::Par {
    match NonZeroUsize::new(par.threads()) {
        Some(n) if n.get() > 1 => faer::Par::Rayon(n),
        _ => faer::Par::Seq,
    }
}
