use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::node::InputRounding;
use tensorpress_tensor::{Error, Result, kernels};

/// Rows of signed bytes, each with a scale: tokens, or the output channels of a matrix.
///
/// A product of two is summed in integers, exactly, and scaled once: what W8A8 arithmetic computes.
///
/// ```
/// use tensorpress_quant::activation::Int8Rows;
/// use tensorpress_tensor::linalg::Par;
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::node::InputRounding;
///
/// let by_row = InputRounding::by_token(8)?;
/// let x = Int8Rows::round(array![[1.27, -0.5]].view(), by_row)?;
/// let w = Int8Rows::round(array![[0.127, 0.02], [1.27, 0.0]].view(), by_row)?;
/// let y = x.product(&w, Par::Seq)?;
/// assert!((y[[0, 0]] - 0.15129).abs() < 1e-6 && (y[[0, 1]] - 1.6129).abs() < 1e-6);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Rows {
    columns: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

/// Products summed in 32 bits at a time.
const EXACT: usize = 1 << 16;

impl Int8Rows {
    /// The nearest codes of the rows of X `[rows, columns]`.
    ///
    /// # Errors
    /// `Numerical` for numbers that are not finite.
    pub fn round(x: ArrayView2<'_, f32>, rounding: InputRounding) -> Result<Self> {
        if let Some(((row, column), x)) = x.indexed_iter().find(|(_, x)| !x.is_finite()) {
            return Err(Error::numerical(format!("entry [{row}, {column}] is {x}")));
        }
        let mut codes = Vec::with_capacity(x.len());
        let mut scales = Vec::with_capacity(x.nrows());
        for row in x.as_standard_layout().rows() {
            let scale = rounding.scale(row.as_slice().expect("standard layout"));
            codes.extend(row.iter().map(|x| rounding.code(*x, scale)));
            scales.push(scale);
        }
        Ok(Self { columns: x.ncols(), codes, scales })
    }

    /// `[rows, columns]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.scales.len(), self.columns]
    }

    /// Codes, row-major.
    #[must_use]
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The scale of each row.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Bytes that codes and scales take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }

    /// The rows, `scale * code`.
    #[must_use]
    pub fn decode(&self) -> Array2<f32> {
        let [rows, columns] = self.shape();
        Array2::from_shape_fn((rows, columns), |(r, c)| {
            f32::from(self.codes[r * columns + c]) * self.scales[r]
        })
    }

    /// X Wᵀ `[rows of X, rows of W]` for these rows X and those of `weights`: integers summed exactly, times both scales.
    ///
    /// # Errors
    /// `ShapeMismatch` if they are of different length.
    pub fn product(&self, weights: &Self, par: Par) -> Result<Array2<f32>> {
        if self.columns != weights.columns {
            let message = format!("rows of {} by rows of {}", self.columns, weights.columns);
            return Err(Error::shape(message));
        }
        let (columns, outputs) = (self.columns, weights.scales.len());
        let mut y = Array2::zeros((self.scales.len(), outputs));
        par.for_each(y.axis_iter_mut(Axis(0)).enumerate(), |(t, mut y)| {
            let x = &self.codes[t * columns..][..columns];
            for (o, y) in y.iter_mut().enumerate() {
                let w = &weights.codes[o * columns..][..columns];
                let pieces = x.chunks(EXACT).zip(w.chunks(EXACT));
                let sum: i64 = pieces.map(|(x, w)| i64::from(kernels::dot_i8(x, w))).sum();
                let scale = f64::from(self.scales[t]) * f64::from(weights.scales[o]);
                *y = (sum as f64 * scale) as f32;
            }
        });
        Ok(y)
    }
}
