use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use super::{Accum, Input, Node, Scratch, check_matmul};
use crate::error::Result;
use crate::kernels::{self, Isa};
use crate::linalg::{self, Par};

/// Values decoded at a time: enough for a good matrix product, small enough for the second cache.
const VALUES: usize = 64 * 1024;

/// From so many tokens on inputs are worth packing for each tile, which is then so tall that this is a small part of the work.
const MANY: usize = 48;
const MANY_VALUES: usize = 4 << 20;
/// Rows of such tiles: threads share no tile, so that a matrix has some; each packs the inputs anew.
const TALL: Range<usize> = 128..1024;

/// The default multiplication: tiles of some rows are decoded and multiplied, each by one thread.
///
/// # Errors
/// As [`Node::decode_rows`].
///
/// # Panics
/// If a shape does not fit.
pub fn matmul_by_tiles<N: Node + ?Sized>(
    node: &N,
    rows: Range<usize>,
    x: &Input<'_>,
    mut y: ArrayViewMut2<'_, f32>,
    accum: Accum,
    scratch: &mut Scratch,
) -> Result<()> {
    check_matmul(node.shape(), &rows, x, &y);
    let (inp, shape) = (node.shape()[1], x.view().dim());
    // Small tiles: a general product would pack all inputs anew for each; but it brings vectors of its own.
    let many = x.tokens() >= MANY;
    let unpacked = !many && Isa::detect() != Isa::Generic;
    scratch.with_matrix(if unpacked { shape } else { (0, 0) }, |mut lines, scratch| {
        let x = if unpacked {
            lines.assign(&x.view());
            lines.view()
        } else {
            x.view()
        };
        let height = match many {
            true => (rows.len() / 8).min(MANY_VALUES / inp.max(1)).clamp(TALL.start, TALL.end),
            false => (VALUES / inp.max(1)).clamp(8, 1024),
        };
        let tile = |(i, y): (usize, ArrayViewMut2<'_, f32>), scratch: &mut Scratch| {
            let first = rows.start + i * height;
            let rows = first..first + y.ncols();
            scratch.with_matrix((rows.len(), inp), |mut w, scratch| {
                node.decode_rows(rows, w.view_mut(), Accum::Replace, scratch)?;
                if unpacked {
                    multiply_unpacked(x, w.view(), y, accum, scratch);
                } else {
                    linalg::matmul_nt(x, w.view(), y, accum == Accum::Add, Par::Seq);
                }
                Ok(())
            })
        };
        let par = scratch.par();
        let mut tiles = y.axis_chunks_iter_mut(Axis(1), height).enumerate();
        if par.threads() <= 1 {
            return tiles.try_for_each(|y| tile(y, scratch));
        }
        let failed = Mutex::new(Ok(()));
        par.for_each_init(tiles, Scratch::default, |scratch, y| {
            if let Err(error) = tile(y, scratch) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    })
}

/// Y = X Wᵀ or Y += X Wᵀ on this thread; X and W are row-major.
fn multiply_unpacked(
    x: ArrayView2<'_, f32>,
    w: ArrayView2<'_, f32>,
    mut y: ArrayViewMut2<'_, f32>,
    accum: Accum,
    scratch: &mut Scratch,
) {
    let ((rows, inp), tokens) = (w.dim(), x.nrows());
    scratch.with_matrix((tokens, rows), |mut products, _| {
        let out = products.as_slice_mut().expect("contiguous");
        let [x, w] = [x, w].map(|m| m.to_slice().expect("contiguous"));
        kernels::gemm_nt(x, w, tokens, rows, inp, out, false);
        match accum {
            Accum::Replace => y.assign(&products),
            Accum::Add => y += &products,
        }
    });
}
