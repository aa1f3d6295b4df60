//! Cosine similarities, a tile at a time: nothing of the size of tokens x tokens is ever held.

use ndarray::{Array2, ArrayView2, Axis, Slice, s};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::{Result, kernels};

use crate::reduce::check_row;
use crate::screen;

/// Some rows divided by their lengths, in standard layout, as is `x`. A row of length 0 stays 0: it is as similar to all
/// as to none. An error for rows that are not finite, found on the way.
pub(crate) fn unit_rows(x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(rows.len() * x.ncols());
    for &token in rows {
        let row = x.row(token);
        let row = row.to_slice().expect("standard layout");
        let square = kernels::dot(row, row);
        if (1e-20..1e20).contains(&square) {
            let scale = 1.0 / square.sqrt();
            out.extend(row.iter().map(|v| v * scale));
            continue;
        }
        // Lengths whose square f32 does not hold.
        check_row(token, row.into())?;
        let length = kernels::dot_f64(row, row).sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        out.extend(row.iter().map(|v| (f64::from(*v) * scale) as f32));
    }
    Ok(out)
}

/// [`unit_rows`] as a matrix, of a matrix in any layout.
pub(crate) fn normalised(x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Array2<f32>> {
    let values = unit_rows(x.as_standard_layout().view(), rows)?;
    Ok(Array2::from_shape_vec((rows.len(), x.ncols()), values).expect("a value a place"))
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

/// For each token of `from` its most similar one of `to`, the first of equals, as a place in `to` after its cosine; -inf
/// where there is none. `x` `[tokens, channels]` is in standard layout. An error for tokens that are not finite.
pub(crate) fn nearest(
    x: ArrayView2<'_, f32>,
    from: &[usize],
    to: &[usize],
) -> Result<Vec<(f32, usize)>> {
    /// Products of fewer operations are not worth two steps.
    const LARGE: usize = 1 << 24;
    let operations = from.len().saturating_mul(to.len()).saturating_mul(x.ncols());
    let screened = if operations < LARGE { None } else { screen::nearest(x, from, to)? };
    let exact =
        |from: &[usize]| Ok(nearest_exact(normalised(x, from)?.view(), normalised(x, to)?.view()));
    let Some(screened) = screened else { return exact(from) };
    let open = from.iter().zip(&screened).filter(|(_, best)| best.is_none());
    let open: Vec<usize> = open.map(|(token, _)| *token).collect();
    let mut rest = if open.is_empty() { Vec::new() } else { exact(&open)? }.into_iter();
    let best = screened.into_iter().map(|best| best.or_else(|| rest.next()).expect("one a row"));
    Ok(best.collect())
}

fn nearest_exact(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Vec<(f32, usize)> {
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
