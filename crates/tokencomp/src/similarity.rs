//! Cosine similarities, a tile at a time: nothing of the size of tokens x tokens is ever held.

use ndarray::{Array2, ArrayView2, Axis, Slice, s};
use tensorpress_tensor::kernels;
use tensorpress_tensor::linalg::{self, Par};

/// Rows divided by their lengths. A row of length 0 stays 0: it is as similar to all as to none.
pub(crate) fn normalised(x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut x = x.as_standard_layout().into_owned();
    for mut row in x.rows_mut() {
        let row = row.as_slice_mut().expect("standard layout");
        let length = kernels::dot_f64(row, row).sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
    }
    x
}

/// Rows of A and of B in a tile: 256 x 256 products stay in the second-level cache until they are looked at.
const TILE: usize = 256;

/// Calls `see(first row of A, first row of B, A Bᵀ of the tile)` for tiles that cover the product of A `[n, d]` and
/// B `[m, d]`; B's tiles rise within one of A.
pub(crate) fn tiles(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    mut see: impl FnMut(usize, usize, ArrayView2<'_, f32>),
) {
    let mut memory = Array2::zeros((TILE.min(a.nrows()), TILE.min(b.nrows())));
    for (i, a) in a.axis_chunks_iter(Axis(0), TILE).enumerate() {
        for start in (0..b.nrows()).step_by(TILE) {
            let end = (start + TILE).min(b.nrows());
            let b = b.slice_axis(Axis(0), Slice::from(start..end));
            let mut tile = memory.slice_mut(s![..a.nrows(), ..b.nrows()]);
            linalg::matmul_nt(a, b, tile.view_mut(), false, Par::Seq);
            see(i * TILE, start, tile.view());
        }
    }
}

/// For each row of A its most similar row of B, the first of equals; -inf where B has none.
pub(crate) fn nearest(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Vec<(f32, usize)> {
    let mut best = vec![(f32::NEG_INFINITY, 0); a.nrows()];
    tiles(a, b, |from_a, from_b, tile| {
        for (row, best) in tile.rows().into_iter().zip(&mut best[from_a..]) {
            let row = row.to_slice().expect("rows of a tile are contiguous");
            let (_, most) = kernels::minmax(row);
            if most > best.0 {
                let at = row.iter().position(|v| *v == most).unwrap_or(0);
                *best = (most, from_b + at);
            }
        }
    });
    best
}
