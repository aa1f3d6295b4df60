use ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result};

use super::align::{Align, LinearMap};
use crate::hints::Place;

/// Windows of a grid of tokens as one token of more channels (LaCo: *Efficient Layer-wise Compression of Visual Tokens for
/// Multimodal Large Language Models*, 2025). Nothing is lost until a projection brings the channels back; beside
/// that, the window's mean passes by. (The shortcut's form is from the abstract alone.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceToChannel {
    /// Rows and columns of tokens of the grid.
    pub grid: Place,
    /// Rows and columns of a window.
    pub window: Place,
}

impl SpaceToChannel {
    /// Windows of 2 x 2 tokens of a grid of `rows` x `cols`.
    ///
    /// # Errors
    /// `InvalidArgument` unless the grid is made of whole windows.
    pub fn new(rows: usize, cols: usize) -> Result<Self> {
        Self { grid: [rows, cols], window: [2, 2] }.checked()
    }

    /// Windows of another size.
    ///
    /// # Errors
    /// As [`SpaceToChannel::new`].
    pub fn with_window(mut self, rows: usize, cols: usize) -> Result<Self> {
        self.window = [rows, cols];
        self.checked()
    }

    fn checked(self) -> Result<Self> {
        let whole = |axis: usize| {
            self.window[axis] > 0 && self.grid[axis].is_multiple_of(self.window[axis])
        };
        if whole(0) && whole(1) {
            return Ok(self);
        }
        let message = format!("windows of {:?} tokens of a grid of {:?}", self.window, self.grid);
        Err(Error::invalid(message))
    }

    /// Tokens before, and after.
    #[must_use]
    pub fn tokens(&self) -> [usize; 2] {
        let (all, window) = (self.grid[0] * self.grid[1], self.window[0] * self.window[1]);
        [all, all / window]
    }

    /// Where a window's tokens stand: the token before of (token after, place in the window).
    fn source(&self, after: usize, place: usize) -> usize {
        let across = self.grid[1] / self.window[1];
        let row = after / across * self.window[0] + place / self.window[1];
        let col = after % across * self.window[1] + place % self.window[1];
        row * self.grid[1] + col
    }

    /// Tokens `[rows x cols, d]`, row by row, as `[windows, window x d]`: a window's tokens one after another, row by row.
    ///
    /// # Errors
    /// `ShapeMismatch` for another number of tokens.
    pub fn gather(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let [before, after] = self.tokens();
        if x.nrows() != before {
            return Err(Error::shape(format!("{} tokens, the grid has {before}", x.nrows())));
        }
        let d = x.ncols();
        let width = self.window[0] * self.window[1] * d;
        Ok(Array2::from_shape_fn((after, width), |(t, c)| x[[self.source(t, c / d), c % d]]))
    }

    /// The way back from [`SpaceToChannel::gather`], exact.
    ///
    /// # Errors
    /// `ShapeMismatch` for another number of tokens, or channels that are not whole tokens.
    pub fn scatter(&self, z: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let ([before, after], window) = (self.tokens(), self.window[0] * self.window[1]);
        if z.nrows() != after || !z.ncols().is_multiple_of(window) {
            let dim = z.dim();
            return Err(Error::shape(format!("{dim:?}, there are {after} windows of {window}")));
        }
        let d = z.ncols() / window;
        let mut out = Array2::zeros((before, d));
        for ((token, c), value) in z.indexed_iter() {
            out[[self.source(token, c / d), c % d]] = *value;
        }
        Ok(out)
    }

    /// The mean of each window's tokens `[windows, d]`. Sums are f64.
    ///
    /// # Errors
    /// As [`SpaceToChannel::gather`].
    pub fn mean(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        let (wide, d) = (self.gather(x)?, x.ncols());
        let window = self.window[0] * self.window[1];
        Ok(Array2::from_shape_fn((wide.nrows(), d), |(t, c)| {
            let values = (0..window).map(|place| f64::from(wide[[t, place * d + c]]));
            (values.sum::<f64>() / window as f64) as f32
        }))
    }

    /// The windows projected back to d channels, plus their mean.
    ///
    /// # Errors
    /// As [`SpaceToChannel::gather`], and those of the projection; `ShapeMismatch` if it does not lead to d channels.
    pub fn compress(&self, x: ArrayView2<'_, f32>, projection: &dyn Align) -> Result<Array2<f32>> {
        let mean = self.mean(x)?;
        let out = projection.align(self.gather(x)?.view())?;
        if out.dim() != mean.dim() {
            let (out, mean) = (out.dim(), mean.dim());
            return Err(Error::shape(format!("the projection leads to {out:?}, not {mean:?}")));
        }
        Ok(out + mean)
    }

    /// The projection with which [`SpaceToChannel::compress`] is nearest to `target` `[windows, d]`, by least squares on what
    /// the mean leaves over, with a ridge as [`LinearMap::fit`]'s.
    ///
    /// # Errors
    /// As [`SpaceToChannel::gather`] and [`LinearMap::fit`].
    pub fn fit(
        &self,
        x: ArrayView2<'_, f32>,
        target: ArrayView2<'_, f32>,
        ridge: f64,
    ) -> Result<LinearMap> {
        let mean = self.mean(x)?;
        if target.dim() != mean.dim() {
            let (target, mean) = (target.dim(), mean.dim());
            return Err(Error::shape(format!("a target of {target:?}, the windows are {mean:?}")));
        }
        LinearMap::fit(self.gather(x)?.view(), (&target - &mean).view(), ridge)
    }
}
