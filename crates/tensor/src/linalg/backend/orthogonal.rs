//! SVD, symmetric eigenvalues and QR: always on one thread, since faer's parallel versions give other bytes.

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::householder;
use faer::linalg::qr::no_pivoting::factor as qr_factor;
use faer::linalg::svd::{self as faer_svd, ComputeSvdVectors};
use faer::traits::RealField;
use faer::{Conj, Mat, Par};
use ndarray::{Array1, Array2, ArrayView2, LinalgScalar, ShapeBuilder};

use super::bridge::{mat, mat_mut};

/// See `Sealed::svd`.
pub(super) fn svd<T: RealField + LinalgScalar>(
    a: ArrayView2<'_, T>,
) -> Option<(Array2<T>, Array1<T>, Array2<T>)> {
    let (m, n) = a.dim();
    let size = m.min(n);
    // Column-major, as faer prefers; the transpose of V is then row-major as it stands.
    let mut u = Array2::<T>::zeros((m, size).f());
    let mut s = vec![T::zero_impl(); size];
    let mut v = Array2::<T>::zeros((n, size).f());
    if size > 0 {
        let thin = ComputeSvdVectors::Thin;
        let scratch = faer_svd::svd_scratch::<T>(m, n, thin, thin, Par::Seq, Default::default());
        faer_svd::svd(
            mat(a),
            DiagMut::from_slice_mut(&mut s),
            Some(mat_mut(u.view_mut())),
            Some(mat_mut(v.view_mut())),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        )
        .ok()?;
    }
    Some((row_major(u), Array1::from_vec(s), v.reversed_axes()))
}

/// See `Sealed::eigen`.
pub(super) fn eigen<T: RealField + LinalgScalar>(
    a: ArrayView2<'_, T>,
) -> Option<(Array1<T>, Array2<T>)> {
    let n = a.nrows();
    let mut values = vec![T::zero_impl(); n];
    let mut vectors = Array2::<T>::zeros((n, n).f());
    if n > 0 {
        let yes = ComputeEigenvectors::Yes;
        let scratch = evd::self_adjoint_evd_scratch::<T>(n, yes, Par::Seq, Default::default());
        evd::self_adjoint_evd(
            mat(a),
            DiagMut::from_slice_mut(&mut values),
            Some(mat_mut(vectors.view_mut())),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        )
        .ok()?;
    }
    Some((Array1::from_vec(values), row_major(vectors)))
}

/// See `Sealed::qr`.
pub(super) fn qr<T: RealField + LinalgScalar>(a: ArrayView2<'_, T>) -> (Array2<T>, Array2<T>) {
    let (m, n) = a.dim();
    let size = m.min(n);
    let mut q = Array2::<T>::zeros((m, size).f());
    let mut r = Array2::<T>::zeros((size, n));
    if size == 0 {
        return (row_major(q), r);
    }
    let block = qr_factor::recommended_block_size::<T>(m, n);
    let mut factors = mat(a).to_owned();
    let mut coefficients = Mat::<T>::zeros(block, size);
    let scratch = qr_factor::qr_in_place_scratch::<T>(m, n, block, Par::Seq, Default::default());
    qr_factor::qr_in_place(
        factors.as_mut(),
        coefficients.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    for ((i, j), v) in r.indexed_iter_mut() {
        if i <= j {
            *v = factors[(i, j)];
        }
    }
    q.diag_mut().fill(T::one_impl());
    let scratch = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(
        m, block, size,
    );
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        factors.as_ref().subcols(0, size),
        coefficients.as_ref(),
        Conj::No,
        mat_mut(q.view_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    (row_major(q), r)
}

fn row_major<T: Clone>(a: Array2<T>) -> Array2<T> {
    if a.is_standard_layout() { a } else { a.as_standard_layout().into_owned() }
}
