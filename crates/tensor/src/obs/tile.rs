//! Sixteen rows through one block of columns, in registers and L1.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{ColumnRule, Decision, LANES, Lanes};
use crate::kernels::{Columns, Swept, sweep};

/// The block being swept.
pub(super) struct Block<'a> {
    pub(super) start: usize,
    /// U over the block's columns, contiguous.
    pub(super) factor: ArrayView2<'a, f32>,
}

/// Buffers of one tile.
pub(super) struct TileBuffers<R: ColumnRule> {
    columns: Vec<Lanes>,
    errors: Vec<Lanes>,
    codes: Vec<[u8; LANES]>,
    state: R::Tile,
}

impl<R: ColumnRule> TileBuffers<R> {
    pub(super) fn new(width: usize) -> Self {
        Self {
            columns: vec![[0.0; LANES]; width],
            errors: vec![[0.0; LANES]; width],
            codes: vec![[0; LANES]; width],
            state: R::Tile::default(),
        }
    }
}

/// Decides the block's columns for the rows of one tile; writes values, codes and -e, and returns the sum of e². What is
/// fed `before` by other rows' -e, `[rows, columns]`, is taken off the targets.
#[expect(clippy::too_many_arguments, reason = "a tile, taken apart")]
pub(super) fn sweep_tile<R: ColumnRule>(
    rule: &R,
    block: &Block<'_>,
    row: usize,
    before: Option<ArrayView2<'_, f32>>,
    weight: ArrayViewMut2<'_, f32>,
    codes: ArrayViewMut2<'_, u8>,
    errors: ArrayViewMut2<'_, f32>,
    buffers: &mut TileBuffers<R>,
) -> f64 {
    sweep(Tile { rule, block, row, before, weight, codes, errors, buffers })
}

/// Sixteen rows, a block of columns.
struct Tile<'a, 'b, R: ColumnRule> {
    rule: &'a R,
    block: &'a Block<'b>,
    row: usize,
    before: Option<ArrayView2<'a, f32>>,
    weight: ArrayViewMut2<'a, f32>,
    codes: ArrayViewMut2<'a, u8>,
    errors: ArrayViewMut2<'a, f32>,
    buffers: &'a mut TileBuffers<R>,
}

impl<R: ColumnRule> Swept for Tile<'_, '_, R> {
    type Output = f64;

    #[inline(always)]
    fn run(self, lanes: impl Columns) -> f64 {
        let Self { rule, block, row, before, mut weight, mut codes, mut errors, buffers } = self;
        let width = block.factor.ncols();
        let factor = block.factor.as_slice().expect("contiguous");
        let columns = &mut buffers.columns[..width];
        for (lane, w) in weight.rows().into_iter().enumerate() {
            let w = &w.to_slice().expect("contiguous rows")[block.start..block.start + width];
            for (column, value) in columns.iter_mut().zip(w) {
                column[lane] = *value;
            }
        }
        let mut loss = [0.0f32; LANES];
        let mut total = 0.0f64;
        let mut decision = Decision::default();
        for j in 0..width {
            let u_row = &factor[j * width..(j + 1) * width];
            let target = columns[j];
            if let Some(before) = before {
                // Errors of a column are -e times its diagonal entry.
                for (value, fed) in columns[j].iter_mut().zip(before.column(j)) {
                    *value -= fed * u_row[j];
                }
            }
            rule.decide(&mut buffers.state, row, block.start + j, &columns[j..], &mut decision);
            let mut error: Lanes = [0.0; LANES];
            for lane in 0..LANES {
                error[lane] = (decision.value[lane] - target[lane]) / u_row[j];
                loss[lane] += error[lane] * error[lane];
            }
            lanes.spread(&mut columns[j + 1..], &error, &u_row[j + 1..]);
            columns[j] = decision.value;
            buffers.errors[j] = error;
            buffers.codes[j] = decision.code;
        }
        for (lane, mut w) in weight.rows_mut().into_iter().enumerate() {
            let w = w.as_slice_mut().expect("contiguous rows");
            for (value, column) in w[block.start..block.start + width].iter_mut().zip(&*columns) {
                *value = column[lane];
            }
            total += f64::from(loss[lane]);
        }
        for (lane, mut e) in errors.rows_mut().into_iter().enumerate() {
            let e = e.as_slice_mut().expect("contiguous rows");
            e.iter_mut().zip(&buffers.errors).for_each(|(e, error)| *e = error[lane]);
        }
        for (lane, mut c) in codes.rows_mut().into_iter().enumerate() {
            let c = c.as_slice_mut().expect("contiguous rows");
            let c = &mut c[block.start..block.start + width];
            c.iter_mut().zip(&buffers.codes).for_each(|(c, code)| *c = code[lane]);
        }
        total
    }
}
