use ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result, ndarray};

/// How many levels a token's numbers are rounded to: symbols 0 to `bins` - 2, the middle one is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bins(usize);

impl Bins {
    /// So many levels.
    ///
    /// # Errors
    /// `InvalidArgument` for odd numbers, and others than 4 to 256.
    pub fn new(bins: usize) -> Result<Self> {
        if (4..=256).contains(&bins) && bins.is_multiple_of(2) {
            return Ok(Self(bins));
        }
        Err(Error::invalid(format!("bins = {bins}: allowed are even numbers from 4 to 256")))
    }

    /// How many symbols there are.
    #[must_use]
    pub fn symbols(self) -> usize {
        self.0 - 1
    }

    fn most(self) -> f32 {
        (self.0 / 2 - 1) as f32
    }

    /// The largest magnitude of each row `[tokens]`.
    #[must_use]
    pub fn largest(x: ArrayView2<'_, f32>) -> Vec<f32> {
        x.rows().into_iter().map(|row| row.fold(0.0, |a: f32, b| a.max(b.abs()))).collect()
    }

    /// Symbols `[tokens, channels]` of rows whose largest magnitudes are given; a row of zeros is all middle.
    #[must_use]
    pub fn quantise(self, x: ArrayView2<'_, f32>, largest: &[f32]) -> Array2<u8> {
        let mut symbols = Array2::zeros(x.dim());
        for ((mut to, row), most) in symbols.rows_mut().into_iter().zip(x.rows()).zip(largest) {
            let factor = if *most > 0.0 { self.most() / most } else { 0.0 };
            for (to, x) in to.iter_mut().zip(row) {
                let level = (x * factor + self.most()).round_ties_even();
                *to = level.clamp(0.0, 2.0 * self.most()) as u8;
            }
        }
        symbols
    }

    /// What symbols stand for.
    #[must_use]
    pub fn dequantise(self, symbols: ArrayView2<'_, u8>, largest: &[f32]) -> Array2<f32> {
        let mut x = Array2::zeros(symbols.dim());
        for ((mut to, row), most) in x.rows_mut().into_iter().zip(symbols.rows()).zip(largest) {
            for (to, symbol) in to.iter_mut().zip(row) {
                *to = (f32::from(*symbol) - self.most()) / self.most() * most;
            }
        }
        x
    }
}
