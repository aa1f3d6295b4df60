//! Products by ndarray, on one thread, for builds without faer.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, LinalgScalar};

use crate::linalg::Par;

pub(super) fn gemm<T: LinalgScalar>(
    mut c: ArrayViewMut2<'_, T>,
    accumulate: bool,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    alpha: T,
    _: Par,
) {
    let beta = if accumulate { T::one() } else { T::zero() };
    general_mat_mul(alpha, &a, &b, beta, &mut c);
}

pub(super) fn gemm_lower<T: LinalgScalar>(
    mut c: ArrayViewMut2<'_, T>,
    accumulate: bool,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    par: Par,
) {
    let mut all = Array2::zeros(c.dim());
    gemm(all.view_mut(), false, a, b, T::one(), par);
    for ((i, j), value) in all.indexed_iter().filter(|((i, j), _)| j <= i) {
        c[[i, j]] = if accumulate { c[[i, j]] + *value } else { *value };
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::{gemm, gemm_lower};
    use crate::linalg::{Par, gram_lower, matmul};

    #[test]
    fn products_are_those_of_the_other_backend() {
        let a = Array2::from_shape_fn((13, 7), |(i, j)| ((i * 5 + j * 3) % 11) as f64 - 5.0);
        let b = Array2::from_shape_fn((7, 9), |(i, j)| ((i * 2 + j * 7) % 13) as f64 - 6.0);
        for accumulate in [false, true] {
            let mut ours = Array2::from_elem((13, 9), if accumulate { 2.0 } else { f64::NAN });
            let mut theirs = ours.clone();
            gemm(ours.view_mut(), accumulate, a.view(), b.view(), 1.0, Par::Seq);
            matmul(a.view(), b.view(), theirs.view_mut(), accumulate, Par::Seq);
            assert_eq!(ours, theirs);
            let mut ours = Array2::from_elem((7, 7), 3.0);
            let mut theirs = ours.clone();
            gemm_lower(ours.view_mut(), accumulate, a.t(), a.view(), Par::Seq);
            gram_lower(a.view(), theirs.view_mut(), accumulate, Par::Seq);
            assert_eq!(ours, theirs);
            assert_eq!(ours.slice(s![0, 1..]).to_vec(), [3.0; 6], "above the diagonal");
        }
    }
}
