//! ndarray views as faer views: same memory, same strides.
#![allow(unsafe_code)]

use faer::{MatMut, MatRef};
use ndarray::{ArrayView2, ArrayViewMut2};

/// The same elements as a faer view.
pub(super) fn mat<T>(a: ArrayView2<'_, T>) -> MatRef<'_, T> {
    let (rows, cols) = a.dim();
    let (row_stride, col_stride) = (a.strides()[0], a.strides()[1]);
    // SAFETY: an ndarray view points at its element [0, 0], and for every index within `dim` the element at
    // `index . strides` (in elements, negative and zero included) is initialised and borrowed for the view's
    // lifetime. faer's view has the same meaning of pointer, shape and strides, and takes that lifetime.
    unsafe { MatRef::from_raw_parts(a.as_ptr(), rows, cols, row_stride, col_stride) }
}

/// The same elements as a mutable faer view.
pub(super) fn mat_mut<T>(mut a: ArrayViewMut2<'_, T>) -> MatMut<'_, T> {
    let (rows, cols) = a.dim();
    let (row_stride, col_stride) = (a.strides()[0], a.strides()[1]);
    // SAFETY: as in `mat`; further, ndarray gives a mutable view only where distinct indices address distinct
    // elements and nothing else borrows them, and consuming the view hands that exclusive borrow on.
    unsafe { MatMut::from_raw_parts_mut(a.as_mut_ptr(), rows, cols, row_stride, col_stride) }
}
