use std::ops::Range;

use tensorpress_tensor::Result;
use tensorpress_tensor::grid::{Affine, IntGrid};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{ArrayView2, s};
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::obs::{ColumnRule, Decision, LANES, Lanes};

use super::{PADDING, columns_of};

/// Rows whose grids a thread fits at a time.
const FEW: usize = 16;

/// Rounds each column on the grid of its group. A group's grid is fitted when its first column's block begins, on
/// the weights as they stand then (the convention of the official code), or before the sweep.
pub(super) struct GptqRule<'a> {
    grid: IntGrid,
    group: usize,
    rows: usize,
    cols: usize,
    /// Grids by group, then row, rows padded to whole tiles; separate arrays, so that a tile's lanes are adjacent.
    scales: Vec<f32>,
    zeros: Vec<f32>,
    /// Fitted before the sweep, on stored columns.
    fixed: bool,
    mask: Option<&'a Mask>,
    order: Option<&'a [usize]>,
}

impl<'a> GptqRule<'a> {
    pub(super) fn new(
        grid: IntGrid,
        group: usize,
        rows: usize,
        cols: usize,
        mask: Option<&'a Mask>,
        order: Option<&'a [usize]>,
    ) -> Self {
        let len = cols.div_ceil(group) * rows.next_multiple_of(LANES);
        let (scales, zeros) = (vec![PADDING.scale; len], vec![PADDING.zero; len]);
        Self { grid, group, rows, cols, scales, zeros, fixed: false, mask, order }
    }

    fn padded_rows(&self) -> usize {
        self.rows.next_multiple_of(LANES)
    }

    /// Fits every group (or one grid for all) on `weight`, columns in stored order.
    pub(super) fn fit_all(&mut self, weight: ArrayView2<'_, f32>, per_tensor: bool, par: Par) {
        self.fixed = true;
        if per_tensor {
            let all = weight.as_standard_layout();
            let whole = self.grid.fit(all.as_slice().expect("standard layout"));
            self.scales.fill(whole.scale);
            self.zeros.fill(whole.zero);
        } else {
            for group in 0..self.cols.div_ceil(self.group) {
                self.fit_group(weight, group, par);
            }
        }
    }

    fn fit_group(&mut self, weight: ArrayView2<'_, f32>, group: usize, par: Par) {
        let columns = weight.slice(s![.., columns_of(group, self.group, self.cols)]);
        let at = group * self.padded_rows();
        let scales = &mut self.scales[at..at + self.rows];
        let zeros = &mut self.zeros[at..at + self.rows];
        let grid = self.grid;
        let fit = |row: usize, scale: &mut f32, zero: &mut f32| {
            let row = columns.row(row);
            let fitted = match row.as_slice() {
                Some(row) => grid.fit(row),
                None => grid.fit(&row.to_vec()),
            };
            (*scale, *zero) = (fitted.scale, fitted.zero);
        };
        // A few rows at a time: a row alone is soon done.
        let pieces = scales.chunks_mut(FEW).zip(zeros.chunks_mut(FEW)).enumerate();
        par.for_each(pieces, |(piece, (scales, zeros))| {
            let rows = piece * FEW..;
            rows.zip(scales).zip(zeros).for_each(|((row, scale), zero)| fit(row, scale, zero));
        });
    }

    /// The grid of a group of a row.
    pub(super) fn param(&self, row: usize, group: usize) -> Affine {
        let at = group * self.padded_rows() + row;
        Affine { scale: self.scales[at], zero: self.zeros[at] }
    }

    /// All grids, `[rows, groups]`.
    pub(super) fn params(&self) -> Vec<Affine> {
        let groups = self.cols.div_ceil(self.group);
        (0..self.rows)
            .flat_map(|r| (0..groups).map(move |g| (r, g)))
            .map(|(r, g)| self.param(r, g))
            .collect()
    }
}

impl ColumnRule for GptqRule<'_> {
    type Tile = ();

    fn begin_block(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        _: &[f32],
        par: Par,
    ) -> Result<()> {
        if !self.fixed {
            let first = columns.start.div_ceil(self.group);
            for group in first..columns.end.div_ceil(self.group) {
                self.fit_group(weight, group, par);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn decide(
        &self,
        (): &mut (),
        row: usize,
        column: usize,
        ahead: &[Lanes],
        decision: &mut Decision,
    ) {
        let stored = self.order.map_or(column, |order| order[column]);
        let group = if self.fixed { stored } else { column } / self.group;
        let at = group * self.padded_rows() + row;
        let scales: &Lanes = self.scales[at..at + LANES].try_into().expect("a tile of lanes");
        let zeros: &Lanes = self.zeros[at..at + LANES].try_into().expect("a tile of lanes");
        let max_code = self.grid.max_code();
        for lane in 0..LANES {
            let grid = Affine { scale: scales[lane], zero: zeros[lane] };
            let code = grid.code(ahead[0][lane], max_code);
            decision.code[lane] = code as u8;
            decision.value[lane] = grid.level(code);
        }
        if let Some(mask) = self.mask {
            for lane in 0..LANES.min(self.rows - row) {
                if !mask.keeps(row + lane, stored) {
                    decision.code[lane] = zeros[lane] as u8;
                    decision.value[lane] = 0.0;
                }
            }
        }
    }
}
