//! Walsh-Hadamard transforms.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut1, ArrayViewMut2, Axis};

use super::{Par, Real};

/// The largest power of two that divides `n`: the block that [`hadamard`] transforms. 0 for 0.
///
/// Channels of models are often 2^a x odd (11008 = 2⁸ x 43): a transform of whole rows then needs a Hadamard matrix
/// of odd order's multiple; blocks spread outliers over 2^a channels at a fraction of the cost.
#[must_use]
pub fn hadamard_block(n: usize) -> usize {
    n & n.wrapping_neg()
}

/// x := H x in place with the orthonormal Walsh-Hadamard matrix H, block by block: blocks of [`hadamard_block`]
/// consecutive values, so the whole slice if its length is a power of two.
///
/// H is symmetric and H H = I, so the transform is its own inverse. Natural (Sylvester) order: `H[i][j]` = +-1/sqrt(b)
/// with the sign of the parity of i & j. n log2(b) additions. NaN and infinity spread over their block.
pub fn hadamard<T: Real>(x: &mut [T]) {
    let block = hadamard_block(x.len());
    if block > 1 {
        x.chunks_exact_mut(block).for_each(transform);
    }
}

/// [`hadamard`] of every row, in blocks of `block` values. The bytes do not depend on `par`.
///
/// # Panics
/// Unless `block` is a power of two that divides the number of columns.
pub fn hadamard_rows<T: Real>(mut x: ArrayViewMut2<'_, T>, block: usize, par: Par) {
    let n = x.ncols();
    let fits = block.is_power_of_two() && n.is_multiple_of(block);
    assert!(fits, "{n} columns do not divide into Hadamard blocks of {block}");
    if block == 1 || x.is_empty() {
        return;
    }
    let threads = par.threads();
    if threads == 1 {
        x.rows_mut().into_iter().for_each(|row| transform_row(row, block));
        return;
    }
    let rows = x.nrows().div_ceil(threads);
    x.axis_chunks_iter_mut(Axis(0), rows).into_par_iter().for_each(|mut chunk| {
        chunk.rows_mut().into_iter().for_each(|row| transform_row(row, block));
    });
}

fn transform_row<T: Real>(mut row: ArrayViewMut1<'_, T>, block: usize) {
    if let Some(slice) = row.as_slice_mut() {
        slice.chunks_exact_mut(block).for_each(transform);
        return;
    }
    let mut copy = row.to_vec();
    copy.chunks_exact_mut(block).for_each(transform);
    row.iter_mut().zip(copy).for_each(|(v, c)| *v = c);
}

/// Transforms a slice whose length is a power of two of at least 2.
fn transform<T: Real>(x: &mut [T]) {
    let n = x.len();
    let scale = T::from_f64((n as f64).sqrt().recip());
    let mut half = 1;
    // The first strides are shorter than a vector register: three of them at once, in registers.
    if n >= 8 {
        for chunk in x.chunks_exact_mut(8) {
            transform_8(chunk.try_into().expect("chunks of 8"));
        }
        half = 8;
    }
    while half < n {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    x.iter_mut().for_each(|v| *v *= scale);
}

#[inline(always)]
fn transform_8<T: Real>(x: &mut [T; 8]) {
    let mut y = *x;
    for half in [1, 2, 4] {
        let z = y;
        for i in 0..8 {
            let partner = i ^ half;
            y[i] = if i & half == 0 { z[i] + z[partner] } else { z[partner] - z[i] };
        }
    }
    *x = y;
}
