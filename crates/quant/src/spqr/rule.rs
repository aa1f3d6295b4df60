use std::ops::Range;

use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::obs::{ColumnRule, Decision, LANES, Lanes};

use super::fit::{Quantised, Statistics, Tight};

/// Rows whose grids a thread fits at a time.
const FEW: usize = 16;

/// Rounds each column on the grids of its group, and leaves alone what that would cost too much. A group is a block of the
/// sweep: its grids are fitted when it begins, on the weights as they stand then.
pub(super) struct SpqrRule<'a> {
    max_code: f32,
    group: usize,
    shape: [usize; 2],
    statistics: Statistics,
    stores: [Quantised; 2],
    /// A squared error of more makes an outlier; infinite where there are none.
    cutoff: f64,
    /// Its root, which does not underflow.
    limit: f32,
    /// Whether grids are fitted without likely outliers.
    pub(super) leave_one_out: bool,
    mask: Option<&'a Mask>,
    pub(super) order: Option<&'a [usize]>,
    /// As decoded, by group, then row, rows padded to whole tiles; separate arrays, so that a tile's lanes are adjacent.
    scales: Vec<f32>,
    zeros: Vec<f32>,
    /// U_jj of the block's columns, and the first of these.
    diagonal: Vec<f32>,
    start: usize,
}

impl<'a> SpqrRule<'a> {
    pub(super) fn new(
        bits: u8,
        group: usize,
        shape: [usize; 2],
        statistics: Statistics,
        cutoff: f64,
        mask: Option<&'a Mask>,
    ) -> Self {
        let [rows, cols] = shape;
        let groups = cols.div_ceil(group);
        let len = groups * rows.next_multiple_of(LANES);
        Self {
            max_code: f32::from(u8::MAX >> (8 - bits)),
            group,
            shape,
            statistics,
            stores: statistics.stores([rows, groups]),
            cutoff,
            limit: cutoff.sqrt() as f32,
            leave_one_out: true,
            mask,
            order: None,
            scales: vec![Tight::NEUTRAL.scale; len],
            zeros: vec![Tight::NEUTRAL.zero; len],
            diagonal: Vec::new(),
            start: 0,
        }
    }

    fn at(&self, row: usize, column: usize) -> usize {
        column / self.group * self.shape[0].next_multiple_of(LANES) + row
    }

    fn stored_column(&self, column: usize) -> usize {
        self.order.map_or(column, |order| order[column])
    }

    /// The grid of one group of a row; `None` if all of it is 0 or goes.
    fn fit(&self, row: usize, weights: &mut Vec<(f32, f32)>) -> Option<Tight> {
        if let Some(mask) = self.mask {
            let mut column = self.start;
            weights.retain(|_| {
                column += 1;
                mask.keeps(row, self.stored_column(column - 1))
            });
        }
        if self.cutoff < f64::INFINITY && self.leave_one_out {
            self.drop_likely_outliers(weights);
        }
        Tight::fit(weights.iter().map(|(w, _)| *w), self.max_code)
    }

    /// Drops the weights (each with its U_jj) without which the group would lose more than the cutoff less.
    fn drop_likely_outliers(&self, weights: &mut Vec<(f32, f32)>) {
        let error = |grid: Tight, (w, diagonal): (f32, f32)| {
            let level = grid.level(grid.code(w, self.max_code));
            f64::from((level - w) / diagonal).powi(2)
        };
        let values = |skipped: usize| {
            weights.iter().enumerate().filter(move |(i, _)| *i != skipped).map(|(_, w)| *w)
        };
        let Some(grid) = Tight::fit(weights.iter().map(|(w, _)| *w), self.max_code) else { return };
        let mut gains: Vec<f64> = weights.iter().map(|w| error(grid, *w)).collect();
        let total: f64 = gains.iter().sum();
        // The range, and with it the grid, is another without its ends alone; else a weight takes its own error with it.
        let by_value = |a: &usize, b: &usize| weights[*a].0.total_cmp(&weights[*b].0);
        let ends = [(0..weights.len()).min_by(by_value), (0..weights.len()).max_by(by_value)];
        for end in ends.into_iter().flatten() {
            let rest = Tight::fit(values(end).map(|(w, _)| w), self.max_code);
            let rest: f64 = rest.map_or(0.0, |grid| values(end).map(|w| error(grid, w)).sum());
            gains[end] = total - rest;
        }
        let mut gains = gains.into_iter();
        weights.retain(|_| gains.next().is_some_and(|gain| gain <= self.cutoff));
    }

    /// What outliers add to the decoded codes, in the stored order of columns; 0 elsewhere.
    pub(super) fn outliers(&self, weight: &Array2<f32>, codes: &[u8]) -> Array2<f32> {
        let mut outliers = Array2::zeros(weight.dim());
        let cols = self.shape[1];
        for ((row, column), value) in weight.indexed_iter() {
            let at = self.at(row, column);
            let grid = Tight { scale: self.scales[at], zero: self.zeros[at] };
            let level = grid.level(f32::from(codes[row * cols + column]));
            let stored = self.stored_column(column);
            if *value != level && self.mask.is_none_or(|mask| mask.keeps(row, stored)) {
                outliers[[row, stored]] = self.statistics.round(value - level);
            }
        }
        outliers
    }

    /// Scales and zero points as they are stored.
    pub(super) fn into_statistics(self) -> [Quantised; 2] {
        self.stores
    }
}

impl ColumnRule for SpqrRule<'_> {
    type Tile = ();

    fn begin_block(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        diagonal: &[f32],
        par: Par,
    ) -> Result<()> {
        (self.start, self.diagonal) = (columns.start, diagonal.to_vec());
        let columns = weight.slice(s![.., columns]);
        let mut grids = vec![None; self.shape[0]];
        let this = &*self;
        par.for_each(grids.chunks_mut(FEW).enumerate(), |(piece, grids)| {
            let mut weights = Vec::with_capacity(this.group);
            for (row, grid) in (piece * FEW..).zip(grids) {
                weights.clear();
                weights.extend(columns.row(row).iter().copied().zip(this.diagonal.iter().copied()));
                *grid = this.fit(row, &mut weights);
            }
        });
        let group = self.start / self.group;
        let made = self.statistics.store(&grids, group, &mut self.stores);
        let at = self.at(0, self.start);
        for (row, grid) in made.into_iter().enumerate() {
            (self.scales[at + row], self.zeros[at + row]) = (grid.scale, grid.zero);
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
        let at = self.at(row, column);
        let scales: &Lanes = self.scales[at..at + LANES].try_into().expect("a tile of lanes");
        let zeros: &Lanes = self.zeros[at..at + LANES].try_into().expect("a tile of lanes");
        let diagonal = self.diagonal[column - self.start];
        let mut worst = 0.0f32;
        for lane in 0..LANES {
            let grid = Tight { scale: scales[lane], zero: zeros[lane] };
            let code = grid.code(ahead[0][lane], self.max_code);
            decision.code[lane] = code as u8;
            decision.value[lane] = grid.level(code);
            let error = (ahead[0][lane] - decision.value[lane]) / diagonal;
            worst = worst.max(error.abs());
        }
        if worst > self.limit {
            for lane in 0..LANES {
                let grid = Tight { scale: scales[lane], zero: zeros[lane] };
                let weight = ahead[0][lane];
                let error = (weight - decision.value[lane]) / diagonal;
                if error.abs() > self.limit {
                    // The code of 0 beside it, as in the official code.
                    let code = grid.code(0.0, self.max_code);
                    let level = grid.level(code);
                    decision.code[lane] = code as u8;
                    decision.value[lane] = level + self.statistics.round(weight - level);
                }
            }
        }
        if let Some(mask) = self.mask {
            let stored = self.stored_column(column);
            for lane in 0..LANES.min(self.shape[0] - row) {
                if !mask.keeps(row + lane, stored) {
                    let grid = Tight { scale: scales[lane], zero: zeros[lane] };
                    decision.code[lane] = grid.code(0.0, self.max_code) as u8;
                    decision.value[lane] = 0.0;
                }
            }
        }
    }
}
