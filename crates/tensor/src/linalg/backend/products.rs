//! Products by faer.

use std::num::NonZeroUsize;

use faer::linalg::matmul::{matmul, triangular as tri};
use faer::traits::ComplexField;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::bridge::{mat, mat_mut};
use crate::linalg::Par;

pub(super) fn gemm<T: ComplexField>(
    c: ArrayViewMut2<'_, T>,
    accumulate: bool,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    alpha: T,
    par: Par,
) {
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
