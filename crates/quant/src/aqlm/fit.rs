use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};

use super::AdditiveCodes;

/// Steps of conjugate gradients in a fit.
const STEPS: usize = 20;

impl AdditiveCodes {
    /// Fits codebooks, then scales, to the codes: least squares of the outputs' errors, by conjugate gradients for the
    /// codebooks and in closed form for the scales. The loss does not grow but by rounding.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn fit(&mut self, weight: ArrayView2<'_, f32>, gram: ArrayView2<'_, f64>, par: Par) {
        self.fit_codebooks(weight, gram, par);
        self.fit_scales(weight, gram, par);
    }

    fn fit_codebooks(&mut self, weight: ArrayView2<'_, f32>, gram: ArrayView2<'_, f64>, par: Par) {
        let through = |rest: &Array2<f64>| {
            let mut slope = Array2::zeros(rest.dim());
            linalg::matmul(rest.view(), gram, slope.view_mut(), false, par);
            slope
        };
        let rest = (&weight - &self.decode()).mapv(f64::from);
        let mut residual = self.gather(&through(&rest));
        let curvature = self.curvature(gram);
        let precondition = |residual: &Array2<f64>| {
            let mut out = residual.clone();
            out.zip_mut_with(&curvature, |v, c| *v = if *c > 0.0 { *v / c } else { 0.0 });
            out
        };
        let dot =
            |a: &Array2<f64>, b: &Array2<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut better = Array2::<f64>::zeros(residual.dim());
        let mut direction = precondition(&residual);
        let mut slope = dot(&residual, &direction);
        let enough = 1e-8 * slope;
        for _ in 0..STEPS {
            if slope <= enough {
                break;
            }
            let curved = self.gather(&through(&self.scatter(&direction)));
            let length = dot(&direction, &curved);
            if length <= 0.0 {
                break;
            }
            let step = slope / length;
            better.scaled_add(step, &direction);
            residual.scaled_add(-step, &curved);
            let next = precondition(&residual);
            let steeper = dot(&residual, &next);
            direction = &next + &(&direction * (steeper / slope));
            slope = steeper;
        }
        self.codebooks.zip_mut_with(&better, |value, by| *value = (f64::from(*value) + by) as f32);
    }

    /// Each row's best factor.
    fn fit_scales(&mut self, weight: ArrayView2<'_, f32>, gram: ArrayView2<'_, f64>, par: Par) {
        let mut coded = Array2::<f32>::zeros(weight.dim());
        for (row, mut coded) in coded.rows_mut().into_iter().enumerate() {
            self.unscaled(row, coded.as_slice_mut().expect("standard layout"));
        }
        let coded = coded.mapv(f64::from);
        let mut slope = Array2::zeros(coded.dim());
        linalg::matmul(coded.view(), gram, slope.view_mut(), false, par);
        for (row, scale) in self.scales.iter_mut().enumerate() {
            let along = |values: &mut dyn Iterator<Item = f64>| -> f64 {
                values.zip(slope.row(row)).map(|(v, s)| v * s).sum()
            };
            let whole = along(&mut coded.row(row).iter().copied());
            let part = along(&mut weight.row(row).iter().map(|w| f64::from(*w)));
            let best = (part / whole) as f32;
            if best.is_finite() && whole > 0.0 {
                *scale = best;
            }
        }
    }

    /// Calls `f` with row, column, and place in the codebooks of every term of every weight.
    fn each_term(&self, mut f: impl FnMut(usize, usize, [usize; 2])) {
        let (size, entries) = (self.size(), self.entries());
        for ((row, place), code) in self.codes.indexed_iter() {
            let (vector, book) = (place / self.books, place % self.books);
            let entry = book * entries + usize::from(*code);
            let first = vector * size;
            (first..(first + size).min(self.cols)).for_each(|c| f(row, c, [entry, c - first]));
        }
    }

    /// What the matrix changes by, for a change of the codebooks.
    fn scatter(&self, change: &Array2<f64>) -> Array2<f64> {
        let mut out = Array2::zeros((self.codes.nrows(), self.cols));
        self.each_term(|row, column, at| {
            out[[row, column]] += f64::from(self.scales[row]) * change[at];
        });
        out
    }

    /// The transpose of [`Self::scatter`].
    fn gather(&self, slope: &Array2<f64>) -> Array2<f64> {
        let mut out = Array2::zeros(self.codebooks.dim());
        self.each_term(|row, column, at| {
            out[at] += f64::from(self.scales[row]) * slope[[row, column]];
        });
        out
    }

    /// Diagonal of the curvature, up to what vectors of one entry share: 0 for entries without a code.
    fn curvature(&self, gram: ArrayView2<'_, f64>) -> Array2<f64> {
        let mut out = Array2::zeros(self.codebooks.dim());
        self.each_term(|row, column, at| {
            out[at] += f64::from(self.scales[row]).powi(2) * gram[[column, column]];
        });
        out
    }
}
