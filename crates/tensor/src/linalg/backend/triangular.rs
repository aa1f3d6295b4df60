//! In-place recursive Cholesky factorisation and triangular inverse.
//!
//! faer's own Cholesky needs column-major storage for its SIMD base case, and its triangular inverse needs a second
//! matrix for the result. These recursions work on any strides (row-major, reversed), need only small blocks beside
//! the matrix, and spend nearly all their time in products of large blocks, so they run close to the speed of GEMM.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::reborrow::{Reborrow, ReborrowMut};
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// Diagonal blocks up to this side are copied out and handled by faer's base cases.
const BASE: usize = 128;
/// Rows of a panel copied out while it is overwritten by its own product.
const PANEL: usize = 256;

/// First half of `n`, a multiple of 64 so that blocks meet the register tiles of the product kernels.
fn half(n: usize) -> usize {
    (n / 2).next_multiple_of(64).min(n - 1)
}

/// Overwrites the lower triangle of `a` by its Cholesky factor; `Err(index)` is the pivot that is not positive.
///
/// [A00 . ; A10 A11] -> L00 = chol(A00), L10 = A10 L00^-T, L11 = chol(A11 - L10 L10^T).
pub(super) fn llt<T: RealField>(mut a: MatMut<'_, T>, par: Par) -> Result<(), usize> {
    let n = a.nrows();
    if n <= BASE {
        let mut block = Mat::<T>::zeros(n, n);
        block.as_mut().copy_from_triangular_lower(a.rb());
        let mut memory =
            MemBuffer::new(cholesky_in_place_scratch::<T>(n, Par::Seq, Default::default()));
        let stack = MemStack::new(&mut memory);
        let block_mut = block.as_mut();
        cholesky_in_place(block_mut, Default::default(), Par::Seq, stack, Default::default())
            .map_err(|LltError::NonPositivePivot { index }| index)?;
        a.copy_from_triangular_lower(block.as_ref());
        return Ok(());
    }
    let m = half(n);
    let (mut a00, _, mut a10, mut a11) = a.split_at_mut(m, m);
    llt(a00.rb_mut(), par)?;
    solve_lower_triangular_in_place(a00.rb(), a10.rb_mut().transpose_mut(), par);
    subtract_square(a11.rb_mut(), a10.rb(), par);
    llt(a11, par).map_err(|index| m + index)
}

/// Lower triangle of C -= A A^T.
fn subtract_square<T: RealField>(c: MatMut<'_, T>, a: MatRef<'_, T>, par: Par) {
    const FULL: BlockStructure = BlockStructure::Rectangular;
    let n = c.nrows();
    if n <= 2 * PANEL {
        let lower = BlockStructure::TriangularLower;
        let minus = -T::one_impl();
        triangular::matmul(c, lower, Accum::Add, a, FULL, a.transpose(), FULL, minus, par);
        return;
    }
    let m = half(n);
    let (c00, _, c10, c11) = c.split_at_mut(m, m);
    let (a0, a1) = a.split_at_row(m);
    matmul(c10, Accum::Add, a1, a0.transpose(), -T::one_impl(), par);
    subtract_square(c00, a0, par);
    subtract_square(c11, a1, par);
}

/// Overwrites the lower triangle of `a` by that of its inverse.
///
/// [L00 . ; L10 L11]^-1 = [L00^-1 . ; -L11^-1 L10 L00^-1  L11^-1].
pub(super) fn invert_lower<T: RealField>(a: MatMut<'_, T>, par: Par) {
    let n = a.nrows();
    let mut panel = Vec::new();
    if n > BASE {
        panel.resize(PANEL.min(n) * half(n), T::zero_impl());
    }
    invert_lower_with(a, &mut panel, par);
}

fn invert_lower_with<T: RealField>(mut a: MatMut<'_, T>, panel: &mut [T], par: Par) {
    let n = a.nrows();
    if n <= BASE {
        let mut block = Mat::<T>::zeros(n, n);
        invert_lower_triangular(block.as_mut(), a.rb(), Par::Seq);
        a.copy_from_triangular_lower(block.as_ref());
        return;
    }
    let m = half(n);
    let (mut a00, _, mut a10, mut a11) = a.split_at_mut(m, m);
    invert_lower_with(a00.rb_mut(), panel, par);
    for start in (0..n - m).step_by(PANEL) {
        let rows = PANEL.min(n - m - start);
        let mut target = a10.rb_mut().subrows_mut(start, rows);
        let mut copy = MatMut::from_row_major_slice_mut(&mut panel[..rows * m], rows, m);
        copy.copy_from(target.rb());
        triangular::matmul(
            target.rb_mut(),
            BlockStructure::Rectangular,
            Accum::Replace,
            copy.rb(),
            BlockStructure::Rectangular,
            a00.rb(),
            BlockStructure::TriangularLower,
            -T::one_impl(),
            par,
        );
    }
    solve_lower_triangular_in_place(a11.rb(), a10, par);
    invert_lower_with(a11.rb_mut(), panel, par);
}
