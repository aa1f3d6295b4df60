//! The column sweep of the optimal-brain family (GPTQ, SparseGPT and their joint form).
//!
//! Columns are decided from first to last; the error of each is spread over the columns not yet decided, weighted
//! by the inverse Hessian. With H⁻¹ = UᵀU (U upper triangular), deciding column j of a row w for the value q gives
//! e = (w_j - q) / U_jj and w_k -= e U_jk for k > j (Frantar & Alistarh, "GPTQ", eq. 2-3 in Cholesky form). Updates
//! are lazy: exact inside a block of columns, applied to the rest of the matrix as one matrix product a block.

mod exact;
mod factor;
mod prepare;
mod rows;
mod tile;

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use crate::error::{Error, Result};
use crate::linalg::{self, Par};
use tile::{Block, TileBuffers};

pub use exact::{ExactRow, Inverse};
pub use factor::{Damping, Factor};
pub use prepare::Prepared;
pub use rows::RowFactor;

/// Rows decided together: the lanes of a tile.
pub const LANES: usize = 16;

/// One value for each row of a tile.
pub type Lanes = [f32; LANES];

/// What a rule decides for one column of a tile.
#[derive(Debug, Clone, Copy)]
pub struct Decision {
    /// The values the column will have.
    pub value: Lanes,
    /// Their codes (or anything else of 8 bits the rule wants back).
    pub code: [u8; LANES],
}

impl Default for Decision {
    fn default() -> Self {
        Self { value: [0.0; LANES], code: [0; LANES] }
    }
}

/// A rule decides what each weight becomes: it may mask, round, or mask and then round.
pub trait ColumnRule: Sync {
    /// State carried along the columns of one block, for one tile of rows.
    type Tile: Default + Send;

    /// Called before the columns `columns` are swept, with all weights as they stand and the diagonal of U.
    ///
    /// # Errors
    /// Whatever makes the rule impossible.
    fn begin_block(
        &mut self,
        weight: ArrayView2<'_, f32>,
        columns: Range<usize>,
        diagonal: &[f32],
        par: Par,
    ) -> Result<()>;

    /// Decides column `column` for the rows `row .. row + LANES` (rows past the end hold zeros and are ignored).
    /// `ahead[0]` is that column with all updates applied, `ahead[1..]` the rest of the block.
    fn decide(
        &self,
        tile: &mut Self::Tile,
        row: usize,
        column: usize,
        ahead: &[Lanes],
        decision: &mut Decision,
    );
}

/// What a sweep leaves.
#[derive(Debug)]
#[must_use]
pub struct Swept {
    /// The decided values.
    pub weight: Array2<f32>,
    /// Their codes.
    pub codes: Array2<u8>,
    /// Sum of e² over all decisions: tr(D H Dᵀ) for D = W - Q and the (damped) H behind U.
    pub loss: f64,
}

/// Sweeps `weight` (`[out, in]`, columns in the order of decision) with the upper factor `u` of H⁻¹, and the factor of the
/// outputs' matrix where rows are to feed each other, in bands of [`LANES`] rows: these are decided one band after another then.
///
/// Needs 1 + 1/4 copies of the weight beside it. The result does not depend on the number of threads.
///
/// # Errors
/// `ShapeMismatch`; those of the rule.
pub fn sweep<R: ColumnRule>(
    mut weight: Array2<f32>,
    u: ArrayView2<'_, f32>,
    outputs: Option<&RowFactor>,
    block: usize,
    rule: &mut R,
    par: Par,
) -> Result<Swept> {
    let (rows, cols) = weight.dim();
    if u.dim() != (cols, cols) {
        return Err(Error::shape(format!("factor {:?} for {cols} columns", u.dim())));
    }
    if let Some(shape) = outputs.map(RowFactor::shape).filter(|shape| *shape != (rows, LANES)) {
        return Err(Error::shape(format!(
            "rows and those of a band {shape:?} for {:?}",
            (rows, LANES)
        )));
    }
    if block == 0 {
        return Err(Error::invalid("block = 0: allowed are 1 and more"));
    }
    if !weight.is_standard_layout() {
        weight = weight.as_standard_layout().into_owned();
    }
    let mut codes = Array2::<u8>::zeros((rows, cols));
    let mut errors = Array2::<f32>::zeros((rows, block.min(cols)));
    let diagonal: Vec<f32> = u.diag().to_vec();
    let mut loss = 0.0f64;
    for start in (0..cols).step_by(block) {
        let end = (start + block).min(cols);
        rule.begin_block(weight.view(), start..end, &diagonal[start..end], par)?;
        let factor = u.slice(s![start..end, start..end]).as_standard_layout().into_owned();
        let block_view = Block { start, factor: factor.view() };
        let decide = |tile: usize,
                      before: Option<ArrayView2<'_, f32>>,
                      w: ArrayViewMut2<'_, f32>,
                      c: ArrayViewMut2<'_, u8>,
                      e: ArrayViewMut2<'_, f32>| {
            let mut buffers = TileBuffers::<R>::new(end - start);
            tile::sweep_tile(&*rule, &block_view, tile * LANES, before, w, c, e, &mut buffers)
        };
        let mut losses = vec![0.0; rows.div_ceil(LANES)];
        let tiles = weight
            .axis_chunks_iter_mut(Axis(0), LANES)
            .zip(codes.axis_chunks_iter_mut(Axis(0), LANES))
            .zip(&mut losses);
        match outputs {
            None => {
                let tiles = tiles.zip(errors.axis_chunks_iter_mut(Axis(0), LANES)).enumerate();
                par.for_each(tiles, |(tile, (((w, c), loss), e))| {
                    *loss = decide(tile, None, w, c, e);
                });
            }
            Some(outputs) => {
                for (tile, ((w, c), loss)) in tiles.enumerate() {
                    let (done, mut e) = errors.view_mut().split_at(Axis(0), tile * LANES);
                    let mut before = Array2::zeros((w.nrows(), end - start));
                    let done = done.slice(s![.., ..end - start]);
                    outputs.before(tile, done, before.view_mut(), par);
                    let e = e.slice_mut(s![..w.nrows(), ..]);
                    *loss = decide(tile, Some(before.view()), w, c, e);
                }
            }
        }
        loss += losses.iter().sum::<f64>();
        if end < cols {
            // `errors` holds -e, so that the update of the rest is one accumulating product.
            linalg::matmul(
                errors.slice(s![.., ..end - start]),
                u.slice(s![start..end, end..]),
                weight.slice_mut(s![.., end..]),
                true,
                par,
            );
        }
    }
    Ok(Swept { weight, codes, loss })
}
