//! The Gram matrix XᵀX of a stream.

use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, s};

use super::NonFinite;
use super::statistic::{Ask, Batch, Statistic, Via};
use crate::linalg::{Par, matmul_tn, mirror_lower};
use crate::node::{Channels, Map, Side};
use crate::usable::Usable;
use crate::{Error, Result};

/// Side of a tile: 512 x 512 f64 values are 2 MiB.
const TILE: usize = 512;
/// Rows multiplied in f32 before the product is added in f64: few enough that f32 sums stay accurate to about 1e-6.
const ROWS: usize = 256;

/// G = XᵀX of a stream X `[tokens, channels]`: half the Hessian of a linear layer's squared output error.
///
/// Blocks of 256 rows are multiplied in f32 and added in f64, so the error does not grow with the length of the
/// stream. Only the lower triangle is kept, in tiles: about 4n² bytes, and 1 KiB per channel for rows that wait for
/// their block. The sum is not divided by the number of tokens.
///
/// n² operations per token (n² + 512n near the diagonal). The bytes depend neither on how the stream is cut into
/// updates nor on `par`.
#[derive(Debug, Clone)]
pub struct Gram {
    channels: usize,
    tokens: u64,
    /// Lower triangle of tiles, row after row of tiles.
    tiles: Vec<Tile>,
    /// Rows that do not fill a block yet.
    pending: Vec<f32>,
    non_finite: Option<NonFinite>,
}

#[derive(Debug, Clone)]
struct Tile {
    row: usize,
    col: usize,
    sum: Array2<f64>,
}

impl Gram {
    /// No tokens yet.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        let side = |start: usize| TILE.min(channels - start);
        let mut tiles = Vec::new();
        for row in (0..channels).step_by(TILE) {
            for col in (0..=row).step_by(TILE) {
                tiles.push(Tile { row, col, sum: Array2::zeros((side(row), side(col))) });
            }
        }
        Self { channels, tokens: 0, tiles, pending: Vec::new(), non_finite: None }
    }

    /// Adds the tokens X `[tokens, channels]`.
    ///
    /// # Panics
    /// If X has another number of channels.
    pub fn update(&mut self, x: ArrayView2<'_, f32>, par: Par) {
        assert_eq!(x.ncols(), self.channels, "channels of a Gram matrix");
        if self.non_finite.is_none() {
            self.non_finite = NonFinite::find(x, self.tokens);
        }
        self.tokens += x.nrows() as u64;
        if self.non_finite.is_some() || self.channels == 0 {
            self.pending = Vec::new();
            return;
        }
        let mut rest = x;
        while rest.nrows() > 0 {
            let waiting = self.pending.len() / self.channels;
            let (now, later) = rest.split_at(Axis(0), rest.nrows().min(ROWS - waiting));
            rest = later;
            if now.nrows() == ROWS {
                self.add_block(now, par);
                continue;
            }
            self.pending.reserve_exact(ROWS * self.channels - self.pending.len());
            now.rows().into_iter().for_each(|row| self.pending.extend(row));
            if waiting + now.nrows() == ROWS {
                self.flush(par);
            }
        }
    }

    /// Adds what `other` has seen.
    ///
    /// # Panics
    /// If the numbers of channels differ.
    pub fn merge(&mut self, mut other: Self) {
        assert_eq!(self.channels, other.channels, "channels of merged Gram matrices");
        let later = other.non_finite.map(|bad| NonFinite { token: bad.token + self.tokens, ..bad });
        self.non_finite = self.non_finite.or(later);
        self.tokens += other.tokens;
        if self.non_finite.is_some() {
            return;
        }
        self.flush(Par::Seq);
        other.flush(Par::Seq);
        for (mine, theirs) in self.tiles.iter_mut().zip(other.tiles.drain(..)) {
            mine.sum += &theirs.sum;
        }
    }

    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Columns of X.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// No NaN or infinity was seen.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.non_finite.is_none()
    }

    /// The sum of squares of each channel.
    ///
    /// # Errors
    /// Numerical, if the stream had NaN or infinity.
    pub fn diagonal(&self) -> Result<Array1<f64>> {
        self.check()?;
        let on_diagonal = self.tiles.iter().filter(|t| t.row == t.col);
        let mut diagonal: Array1<f64> = on_diagonal.flat_map(|t| t.sum.diag().to_vec()).collect();
        for row in self.pending.chunks_exact(self.channels.max(1)) {
            diagonal.iter_mut().zip(row).for_each(|(d, &v)| *d += f64::from(v) * f64::from(v));
        }
        Ok(diagonal)
    }

    /// XᵀX `[channels, channels]`, rounded to f32. The statistics stay and can grow on; copies them, 12n² bytes at
    /// the peak.
    ///
    /// # Errors
    /// Those of [`Gram::into_matrix`].
    pub fn matrix(&self) -> Result<Array2<f32>> {
        self.clone().into_matrix()
    }

    /// XᵀX `[channels, channels]`, rounded to f32. Tiles are freed as they are copied: the peak is about 8n² bytes.
    ///
    /// # Errors
    /// Numerical, if the stream had NaN or infinity, or if a sum of squares is beyond the range of f32: the message
    /// names the channel.
    pub fn into_matrix(mut self) -> Result<Array2<f32>> {
        self.check()?;
        self.flush(Par::Seq);
        let mut matrix = Array2::zeros((self.channels, self.channels));
        for tile in self.tiles.drain(..) {
            place(&tile, &mut matrix);
        }
        check_range(matrix)
    }

    fn check(&self) -> Result<()> {
        self.non_finite.map_or(Ok(()), |bad| Err(bad.error("Gram matrix")))
    }

    fn flush(&mut self, par: Par) {
        let rows = std::mem::take(&mut self.pending);
        if !rows.is_empty() {
            let shape = (rows.len() / self.channels, self.channels);
            let block = ArrayView2::from_shape(shape, &rows).expect("whole rows");
            self.add_block(block, par);
            self.pending = rows;
            self.pending.clear();
        }
    }

    /// Adds XᵀX of at most [`ROWS`] rows. Threads share the tiles out, so each sum has one order.
    fn add_block(&mut self, x: ArrayView2<'_, f32>, par: Par) {
        let add = |product: &mut Vec<f32>, tile: &mut Tile| {
            let (rows, cols) = tile.sum.dim();
            product.resize(rows * cols, 0.0);
            let mut product = ArrayViewMut2::from_shape((rows, cols), product).expect("tile shape");
            let left = x.slice(s![.., tile.row..tile.row + rows]);
            let right = x.slice(s![.., tile.col..tile.col + cols]);
            matmul_tn(left, right, product.view_mut(), false, Par::Seq);
            tile.sum.zip_mut_with(&product, |sum, &p| *sum += f64::from(p));
        };
        par.for_each_init(self.tiles.iter_mut(), Vec::new, add);
    }
}

/// Writes a tile and its mirror image.
fn place(tile: &Tile, matrix: &mut Array2<f32>) {
    let (rows, cols) = tile.sum.dim();
    let (row, col) = (tile.row, tile.col);
    let mut lower = matrix.slice_mut(s![row..row + rows, col..col + cols]);
    lower.zip_mut_with(&tile.sum, |v, &sum| *v = sum as f32);
    if row == col {
        // Not the product's own upper half: symmetry must hold to the last bit.
        mirror_lower(lower);
        return;
    }
    let upper = matrix.slice_mut(s![col..col + cols, row..row + rows]);
    let mut upper = upper.reversed_axes();
    upper.zip_mut_with(&tile.sum, |v, &sum| *v = sum as f32);
}

/// By Cauchy and Schwarz, a finite diagonal means a finite matrix.
fn check_range(matrix: Array2<f32>) -> Result<Array2<f32>> {
    match matrix.diag().iter().position(|v| !v.is_finite()) {
        None => Ok(matrix),
        Some(channel) => {
            let message = format!("Gram matrix: channel {channel} is too large for f32 squares");
            Err(Error::numerical(message))
        }
    }
}

impl Statistic for Gram {
    type Value = Array2<f32>;
    const WHAT: &'static str = "the Gram matrix";

    fn begin(ask: Ask) -> Self {
        Self::new(ask.channels)
    }

    fn update(&mut self, batch: &Batch<'_>, par: Par) {
        self.update(batch.input, par);
    }

    fn merge(&mut self, other: Self) {
        self.merge(other);
    }

    fn finish(self) -> Result<Array2<f32>> {
        self.into_matrix()
    }

    fn through(value: &Arc<Array2<f32>>, via: &Via<'_>) -> Usable<Arc<Array2<f32>>> {
        match via.side {
            Side::In => Usable::Yes(Arc::new(through(value.view(), via.map, via.par))),
            Side::Out => Usable::Yes(value.clone()),
        }
    }
}

/// XᵀX as the inputs are behind a map: T XᵀX Tᵀ.
pub(super) fn through(gram: ArrayView2<'_, f32>, map: &dyn Map, par: Par) -> Array2<f32> {
    match map.channels() {
        Channels::Scaled(s) => {
            let mut gram = gram.to_owned();
            for (mut row, &si) in gram.rows_mut().into_iter().zip(s) {
                // One rounded product per pair, the same on both sides of the diagonal.
                row.iter_mut().zip(s).for_each(|(g, &sj)| *g /= si * sj);
            }
            gram
        }
        Channels::Moved(index) => {
            let index: Vec<usize> = index.iter().map(|i| *i as usize).collect();
            gram.select(Axis(0), &index).select(Axis(1), &index)
        }
        Channels::Mixed => {
            let right = map.inputs(gram, par);
            let mut both = map.inputs(right.t(), par);
            mirror_lower(both.view_mut());
            both
        }
    }
}
