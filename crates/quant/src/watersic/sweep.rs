//! Columns are rounded one after another; the error of each is taken off those to come by the factor of the inputs' Gram
//! matrix, and with two sides off the rows to come too.

use tensorpress_tensor::kernels::{Columns, Swept, sweep};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use tensorpress_tensor::node::Mask;

use super::path::{Buffers, FARTHEST, Fed, LANES, Paths, ROWS};

/// Columns between two updates of the rest.
const BLOCK: usize = 64;

/// The largest code.
pub(super) const LARGEST: f32 = (1 << 30) as f32;

/// A mean size of codes below this counts as this, for what bits cost.
const LEAST_SIZE: f64 = 0.2;

/// One matrix, and all that decides its codes.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    /// `[out, in]`, contiguous.
    pub weight: ArrayView2<'a, f32>,
    /// Unit upper factor of the inputs' Gram matrix.
    pub inputs: ArrayView2<'a, f32>,
    /// Unit upper factor of the outputs' matrix, where rows feed each other.
    pub outputs: Option<ArrayView2<'a, f32>>,
    pub row_steps: &'a [f32],
    pub column_steps: &'a [f32],
    /// The trellis, and what a bit costs in squared steps.
    pub paths: Option<(&'a Paths, f32)>,
    /// Entries that may be other than 0. Not along a trellis.
    pub mask: Option<&'a Mask>,
    pub par: Par,
}

impl Sweep<'_> {
    /// The codes.
    pub(super) fn run(&self) -> Array2<i32> {
        let (rows, cols) = self.weight.dim();
        let mut targets = self.weight.to_owned();
        let mut codes = Array2::zeros((rows, cols));
        let mut errors = Array2::<f32>::zeros((rows, BLOCK.min(cols)));
        let mut fed = Array2::<f32>::zeros((if self.outputs.is_some() { rows } else { 0 }, BLOCK));
        let tile = self.rows_of_a_tile();
        for start in (0..cols).step_by(BLOCK) {
            let end = (start + BLOCK).min(cols);
            let block = Block {
                sweep: self,
                start,
                width: end - start,
                rates: self.rates(targets.view(), start..end),
            };
            match self.outputs {
                Some(outputs) => block.two_sided(
                    outputs,
                    targets.view(),
                    codes.view_mut(),
                    errors.view_mut(),
                    fed.view_mut(),
                ),
                None => {
                    let tiles = targets
                        .axis_chunks_iter(Axis(0), tile)
                        .zip(codes.axis_chunks_iter_mut(Axis(0), tile))
                        .zip(errors.axis_chunks_iter_mut(Axis(0), tile))
                        .enumerate();
                    self.par.for_each_init(
                        tiles,
                        || block.buffers(),
                        |buffers, (number, ((targets, codes), errors))| {
                            let first = number * tile;
                            sweep(Tile {
                                block: &block,
                                first,
                                targets,
                                codes,
                                errors,
                                buffers,
                                fed: None,
                            });
                        },
                    );
                }
            }
            if end < cols {
                linalg::matmul(
                    errors.slice(s![.., ..end - start]),
                    self.inputs.slice(s![start..end, end..]),
                    targets.slice_mut(s![.., end..]),
                    true,
                    self.par,
                );
            }
        }
        codes
    }

    /// Along a trellis, whole pieces, shared out evenly; else one piece.
    fn rows_of_a_tile(&self) -> usize {
        if self.paths.is_none() || self.outputs.is_some() {
            return ROWS;
        }
        let pieces = self.weight.nrows().div_ceil(ROWS).max(1);
        pieces.div_ceil(pieces.div_ceil(LANES)) * ROWS
    }

    /// What a code's size costs in each column of a block: bits of a Laplace distribution of the mean size there.
    fn rates(&self, targets: ArrayView2<'_, f32>, columns: std::ops::Range<usize>) -> Vec<f32> {
        let Some((_, cost)) = self.paths.filter(|(_, cost)| *cost > 0.0) else {
            return vec![0.0; columns.len()];
        };
        let mut sizes = vec![0.0f64; columns.len()];
        for (row, step) in targets.rows().into_iter().zip(self.row_steps) {
            for (size, target) in sizes.iter_mut().zip(row.slice(s![columns.clone()])) {
                *size += f64::from((target / step).abs());
            }
        }
        let rate = |(size, step): (f64, &f32)| {
            let size = (size / targets.nrows() as f64 / f64::from(*step)).max(LEAST_SIZE);
            (f64::from(cost) * std::f64::consts::LOG2_E / size) as f32
        };
        sizes.into_iter().zip(&self.column_steps[columns]).map(rate).collect()
    }
}

/// Some columns.
#[derive(Debug)]
struct Block<'b, 's> {
    sweep: &'b Sweep<'s>,
    start: usize,
    width: usize,
    rates: Vec<f32>,
}

/// What one thread works in.
#[derive(Debug)]
struct Work {
    targets: Vec<f32>,
    weights: Vec<f32>,
    paths: Option<Buffers>,
}

impl Block<'_, '_> {
    /// Places of a tile's column.
    fn places(&self) -> usize {
        if self.interleaved() { LANES * ROWS } else { ROWS }
    }

    /// Pieces of a column lie side by side.
    fn interleaved(&self) -> bool {
        self.sweep.paths.is_some() && self.sweep.outputs.is_none()
    }

    fn buffers(&self) -> Work {
        let len = self.places() * self.width;
        let paths = self.sweep.paths.map(|(paths, _)| paths.buffers());
        Work { targets: vec![0.0; len], weights: vec![0.0; len], paths }
    }

    /// Tiles one after another: what those before feed into one is a product of matrices, and known for all columns of the
    /// block when it begins.
    fn two_sided(
        &self,
        outputs: ArrayView2<'_, f32>,
        targets: ArrayView2<'_, f32>,
        mut codes: ArrayViewMut2<'_, i32>,
        mut errors: ArrayViewMut2<'_, f32>,
        mut fed: ArrayViewMut2<'_, f32>,
    ) {
        let rows = targets.nrows();
        let mut work = self.buffers();
        let mut before = Array2::<f32>::zeros((ROWS, self.width));
        let mut local = vec![0.0f32; ROWS * ROWS];
        for first in (0..rows).step_by(ROWS) {
            let end = (first + ROWS).min(rows);
            let (done, mut now) = fed.view_mut().split_at(Axis(0), first);
            let mut before = before.slice_mut(s![..end - first, ..]);
            linalg::matmul_tn(
                outputs.slice(s![..first, first..end]),
                done.slice(s![.., ..self.width]),
                before.view_mut(),
                false,
                self.sweep.par,
            );
            if first == 0 {
                before.fill(0.0);
            }
            let here = outputs.slice(s![first..end, first..end]);
            for (i, row) in here.rows().into_iter().enumerate() {
                local[i * ROWS..][..row.len()].iter_mut().zip(row).for_each(|(to, u)| *to = *u);
            }
            sweep(Tile {
                block: self,
                first,
                targets: targets.slice(s![first..end, ..]),
                codes: codes.slice_mut(s![first..end, ..]),
                errors: errors.slice_mut(s![first..end, ..]),
                buffers: &mut work,
                fed: Some(Feedback {
                    before: before.view(),
                    local: &local,
                    made: now.slice_mut(s![..end - first, ..]),
                }),
            });
        }
    }
}

/// What rows feed each other.
struct Feedback<'a> {
    /// From tiles before, by row and column of the block.
    before: ArrayView2<'a, f32>,
    /// The factor among the tile's rows, [`ROWS`] a row.
    local: &'a [f32],
    /// What the tile's rows feed on.
    made: ArrayViewMut2<'a, f32>,
}

/// Some rows of a block of columns.
struct Tile<'t, 'v, 'b, 's> {
    block: &'t Block<'b, 's>,
    first: usize,
    targets: ArrayView2<'v, f32>,
    codes: ArrayViewMut2<'v, i32>,
    /// W - Q.
    errors: ArrayViewMut2<'v, f32>,
    buffers: &'t mut Work,
    fed: Option<Feedback<'v>>,
}

impl Swept for Tile<'_, '_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Columns) {
        let Self { block, first, targets, mut codes, mut errors, buffers, mut fed } = self;
        let Block { sweep, start, width, rates, .. } = block;
        let (start, width) = (*start, *width);
        let (rows, places) = (targets.nrows(), block.places());
        let interleaved = block.interleaved();
        let place = |row: usize| match interleaved {
            true => row % ROWS * LANES + row / ROWS,
            false => row,
        };
        let columns = start..start + width;
        let Work { targets: ahead, weights, paths } = buffers;
        let mut row_steps = [1.0f32; LANES * ROWS];
        for row in 0..rows {
            let at = place(row);
            row_steps[at] = sweep.row_steps[first + row];
            let target = targets.slice(s![row, columns.clone()]);
            let weight = sweep.weight.slice(s![first + row, columns.clone()]);
            for (j, (target, weight)) in target.iter().zip(&weight).enumerate() {
                ahead[j * places + at] = *target;
                weights[j * places + at] = *weight;
            }
        }
        let piece = |lane: usize| rows.saturating_sub(lane * ROWS).min(ROWS);
        let pieces: [usize; LANES] = std::array::from_fn(piece);
        let mut chosen = [0i32; LANES * ROWS];
        let mut steps = [1.0f32; LANES * ROWS];
        let mut scaled = [0.0f32; LANES * ROWS];
        for j in 0..width {
            let (column, ahead) = ahead[j * places..].split_at_mut(places);
            let chosen = &mut chosen[..places];
            let steps = &mut steps[..places];
            for (step, row) in steps.iter_mut().zip(&row_steps) {
                *step = row * sweep.column_steps[start + j];
            }
            match (&mut fed, sweep.paths) {
                (None, None) => {
                    for ((code, x), step) in chosen.iter_mut().zip(&*column).zip(&*steps) {
                        *code = round(x / step);
                    }
                }
                (None, Some((trellis, _))) => {
                    let scaled = &mut scaled[..places];
                    for ((scaled, x), step) in scaled.iter_mut().zip(&*column).zip(&*steps) {
                        *scaled = (x / step).clamp(-FARTHEST, FARTHEST);
                    }
                    let buffers = paths.as_mut().expect("made for a trellis");
                    trellis.decide(buffers, scaled, rates[j], &pieces, chosen);
                }
                (Some(fed), paths_of) => {
                    let mut before = [0.0f32; ROWS];
                    for (to, before) in before.iter_mut().zip(fed.before.column(j)) {
                        *to = *before;
                    }
                    match paths_of {
                        Some((trellis, _)) => trellis.decide_fed(
                            paths.as_mut().expect("made for a trellis"),
                            &Fed {
                                targets: &column[..rows],
                                before: &before,
                                steps: &*steps,
                                feedback: fed.local,
                            },
                            rates[j],
                            &mut chosen[..rows],
                        ),
                        None => {
                            for i in 0..rows {
                                chosen[i] = round((column[i] - before[i]) / steps[i]);
                                let keeps = |mask: &Mask| mask.keeps(first + i, start + j);
                                if !sweep.mask.is_none_or(keeps) {
                                    chosen[i] = 0;
                                }
                                let error = chosen[i] as f32 * steps[i] - column[i];
                                let local = &fed.local[i * ROWS..i * ROWS + rows];
                                let rest = before[..rows].iter_mut().zip(local).skip(i + 1);
                                rest.for_each(|(before, u)| *before += error * u);
                            }
                        }
                    }
                    for i in 0..rows {
                        fed.made[[i, j]] = chosen[i] as f32 * steps[i] - column[i];
                    }
                }
            }
            if let Some(mask) = sweep.mask {
                for (row, code) in chosen[..rows].iter_mut().enumerate() {
                    if !mask.keeps(first + row, start + j) {
                        *code = 0;
                    }
                }
            }
            // The column's place now holds W - Q.
            let weights = &weights[j * places..(j + 1) * places];
            for (((x, weight), code), step) in
                column.iter_mut().zip(weights).zip(&*chosen).zip(&*steps)
            {
                *x = weight - *code as f32 * step;
            }
            for row in 0..rows {
                let at = place(row);
                codes[[row, start + j]] = chosen[at];
                errors[[row, j]] = column[at];
            }
            let factor = sweep.inputs.slice(s![start + j, start + j + 1..start + width]);
            for (target, u) in ahead.chunks_exact_mut(places).zip(&factor) {
                for (target, error) in target.iter_mut().zip(&*column) {
                    *target += error * u;
                }
            }
        }
    }
}

/// To the nearest integer, halves away from 0.
#[inline(always)]
fn round(x: f32) -> i32 {
    let size = (x.abs() + 0.5).min(LARGEST) as i32;
    if x < 0.0 { -size } else { size }
}
