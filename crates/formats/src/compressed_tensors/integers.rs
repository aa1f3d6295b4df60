use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{DType, Result};

use super::scales::Scales;
use crate::parts::expect;

/// Signed integers with scales: what the formats of integers hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Integers {
    /// The integers, `[N, K]`.
    pub values: Array2<i8>,
    /// Where zero lies on the grid, in the shape of the scales; none: at 0.
    pub zeros: Option<Array2<i8>>,
    /// Scales.
    pub scales: Scales,
}

impl Integers {
    pub(super) fn check(&self) -> Result<[usize; 2]> {
        let (rows, cols) = self.values.dim();
        self.scales.check([rows, cols])?;
        if let Some(zeros) = &self.zeros {
            let (height, width) = self.scales.values.dim();
            expect("weight_zero_point", [zeros.nrows(), zeros.ncols()], [height, width])?;
        }
        Ok([rows, cols])
    }

    /// The weight `[N, K]`: `scale * (value - zero)` in f32, which is exact for scales of 16 bits, then rounded once to
    /// `dtype`: that of the scales gives what the official package gives.
    ///
    /// # Errors
    /// `ShapeMismatch` or `InvalidArgument`, naming the part, if parts do not belong together.
    pub fn decode(&self, dtype: DType) -> Result<Array2<f32>> {
        let [rows, cols] = self.check()?;
        let place = self.scales.place(cols);
        Ok(Array2::from_shape_fn((rows, cols), |(row, col)| {
            let at = place(row, col);
            let zero = self.zeros.as_ref().map_or(0, |zeros| i16::from(zeros[at]));
            let steps = i16::from(self.values[[row, col]]) - zero;
            dtype.round(self.scales.values[at] * f32::from(steps))
        }))
    }
}
