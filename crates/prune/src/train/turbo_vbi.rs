mod chain;
mod special;

use tensorpress_tensor::linalg::{self, Par, Triangle};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::{Error, Result};

pub use chain::MarkovChain;

use special::{digamma, ln_gamma};

/// A Gamma distribution by shape and rate; its mean is shape / rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gamma {
    /// Above 0.
    pub shape: f64,
    /// Above 0.
    pub rate: f64,
}

/// Turbo-VBI on a linear layer (Xia, Tsang, Lau, "Structured Bayesian Compression for Deep Neural Networks Based on The
/// Turbo-VBI Approach", 2023): weights W `[out, in]` with Y ≈ X Wᵀ, of which few are not 0, and those next to each
/// other.
///
/// The prior has three layers, p(s) p(ρ | s) p(w | ρ): the support s of each output is a Markov chain along its inputs
/// ([`MarkovChain`]); the precision ρ is drawn from one Gamma distribution where s is 1 and from another, of large
/// mean, where it is 0; w ~ N(0, 1 / ρ). Two modules take turns: variational updates of q(w), q(ρ) and q(s) in closed
/// form, with each support by itself; and exact sum and product along the chain, which hands each support what all
/// others say of it.
///
/// Each output takes a Cholesky factor of `in x in` an iteration: for small layers.
///
/// ```
/// use tensorpress_prune::train::TurboVbi;
/// use tensorpress_tensor::linalg::{Par, gaussian};
/// use tensorpress_tensor::ndarray::Array2;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let x = Array2::from_shape_fn((40, 10), |(t, c)| gaussian(c as u64, t as u64) as f32);
/// // One output, of inputs 3 to 5.
/// let y = Array2::from_shape_fn((40, 1), |(t, _)| x[[t, 3]] - x[[t, 4]] + x[[t, 5]]);
/// let fit = TurboVbi::default().fit(x.view(), y.view(), Par::Seq)?;
/// assert_eq!((0..10).filter(|c| fit.mask().keeps(0, *c)).collect::<Vec<_>>(), [3, 4, 5]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TurboVbi {
    /// The support's prior. Default: a tenth of the weights, persistence 0.8.
    pub chain: MarkovChain,
    /// Precision of weights that are there. Default 1, 1.
    pub on: Gamma,
    /// Precision of those that are not. Default 1, 0.003: a standard
    /// deviation near 0.05.
    pub off: Gamma,
    /// Variance of the outputs' noise. Default 0.01.
    pub noise: f64,
    /// Turns before the supports are asked, with precisions as if no weight were there (automatic relevance
    /// determination): q(s) and q(ρ) each hold the other where it starts, so they have to start near. Default 10.
    pub warm: usize,
    /// Turns at most after those. Default 50.
    pub iterations: usize,
    /// Ends when no support's probability moves by more. Default 1e-4.
    pub tolerance: f64,
}

impl Default for TurboVbi {
    fn default() -> Self {
        Self {
            chain: MarkovChain { density: 0.1, persistence: 0.8 },
            on: Gamma { shape: 1.0, rate: 1.0 },
            off: Gamma { shape: 1.0, rate: 3e-3 },
            noise: 0.01,
            warm: 10,
            iterations: 50,
            tolerance: 1e-4,
        }
    }
}

/// What Turbo-VBI found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TurboFit {
    /// Means of the weights, `[out, in]`.
    pub mean: Array2<f64>,
    /// Their variances, `[out, in]`.
    pub variance: Array2<f64>,
    /// Probabilities that they are there, `[out, in]`.
    pub support: Array2<f64>,
}

impl TurboFit {
    /// The weights that are more likely there than not.
    #[must_use]
    pub fn mask(&self) -> Mask {
        Mask::from_bools(self.support.mapv(|p| p > 0.5).view())
    }
}

impl TurboVbi {
    /// Sets the support's prior.
    #[must_use]
    pub fn with_chain(mut self, chain: MarkovChain) -> Self {
        self.chain = chain;
        self
    }

    /// Sets the precisions of weights that are there, and of those that are not.
    #[must_use]
    pub fn with_precisions(mut self, on: Gamma, off: Gamma) -> Self {
        (self.on, self.off) = (on, off);
        self
    }

    /// Sets the variance of the noise.
    #[must_use]
    pub fn with_noise(mut self, noise: f64) -> Self {
        self.noise = noise;
        self
    }

    /// Sets the turns before the supports are asked.
    #[must_use]
    pub fn with_warm(mut self, warm: usize) -> Self {
        self.warm = warm;
        self
    }

    /// Sets the most turns, and the movement that ends them.
    #[must_use]
    pub fn with_iterations(mut self, iterations: usize, tolerance: f64) -> Self {
        (self.iterations, self.tolerance) = (iterations, tolerance);
        self
    }

    fn check(&self) -> Result<()> {
        self.chain.check()?;
        for (name, value) in [
            ("on.shape", self.on.shape),
            ("on.rate", self.on.rate),
            ("off.shape", self.off.shape),
            ("off.rate", self.off.rate),
            ("noise", self.noise),
        ] {
            if !(1e-30..=1e30).contains(&value) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 1e-30 to 1e30")));
            }
        }
        if self.iterations == 0 {
            return Err(Error::invalid("iterations = 0: allowed are 1 and more"));
        }
        match self.tolerance >= 0.0 {
            true => Ok(()),
            false => {
                let message = format!("tolerance = {}: allowed are 0 and more", self.tolerance);
                Err(Error::invalid(message))
            }
        }
    }

    /// Fits a layer to inputs X `[samples, in]` and outputs Y `[samples, out]`. Threads do not change a byte.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters, `ShapeMismatch`, `Numerical` for values that are not finite or beyond f64's
    /// reach.
    pub fn fit(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<TurboFit> {
        self.check()?;
        if x.nrows() != y.nrows() {
            let (inputs, outputs) = (x.nrows(), y.nrows());
            return Err(Error::shape(format!("{inputs} samples in and {outputs} out")));
        }
        for (what, of) in [("input", x), ("output", y)] {
            if let Some(((sample, at), v)) = of.indexed_iter().find(|(_, v)| !v.is_finite()) {
                return Err(Error::numerical(format!("{what} {at} of sample {sample} is {v}")));
            }
        }
        let (x, y) = (x.mapv(f64::from), y.mapv(f64::from));
        let gram = x.t().dot(&x) / self.noise;
        let cross = y.t().dot(&x) / self.noise;
        let mut rows: Vec<Result<Row>> = (0..y.ncols()).map(|_| Ok(Row::default())).collect();
        par.for_each(rows.iter_mut().enumerate(), |(output, row)| {
            *row = self.row(gram.view(), cross.row(output));
        });
        let dim = (y.ncols(), x.ncols());
        let mut fit = TurboFit {
            mean: Array2::zeros(dim),
            variance: Array2::zeros(dim),
            support: Array2::zeros(dim),
        };
        for (output, row) in rows.into_iter().enumerate() {
            let row = row?;
            fit.mean.row_mut(output).assign(&row.mean);
            fit.variance.row_mut(output).assign(&row.variance);
            fit.support.row_mut(output).assign(&row.support);
        }
        Ok(fit)
    }

    /// One output, from XᵀX / noise and Xᵀy / noise.
    fn row(&self, gram: ArrayView2<'_, f64>, cross: ArrayView1<'_, f64>) -> Result<Row> {
        let n = cross.len();
        let mut row =
            Row { mean: Array1::zeros(n), variance: Array1::zeros(n), support: Array1::zeros(n) };
        // Wide at first, and nobody says anything of anybody.
        let mut precision = Array1::from_elem(n, self.on.mean());
        let mut prior = vec![self.chain.density; n];
        for _ in 0..self.warm {
            self.weights(gram, cross, &precision, &mut row)?;
            for (i, precision) in precision.iter_mut().enumerate() {
                *precision = self.precision(0.0, row.square(i)).mean();
            }
        }
        for _ in 0..self.iterations {
            self.weights(gram, cross, &precision, &mut row)?;
            let mut evidence = vec![0.0; n];
            let mut moved = 0.0f64;
            for i in 0..n {
                let p = row.support[i];
                let found = self.precision(p, row.square(i));
                precision[i] = found.mean();
                let log = digamma(found.shape) - found.rate.ln();
                evidence[i] = self.on.expected_log(precision[i], log)
                    - self.off.expected_log(precision[i], log);
                let support = chain::posterior(prior[i], evidence[i]);
                moved = moved.max((support - p).abs());
                row.support[i] = support;
            }
            prior = self.chain.extrinsic(&evidence)?;
            if moved <= self.tolerance {
                break;
            }
        }
        Ok(row)
    }

    /// q(ρ) of a weight that is there with probability p, from E w².
    fn precision(&self, p: f64, square: f64) -> Gamma {
        let Self { on, off, .. } = self;
        Gamma {
            shape: p * on.shape + (1.0 - p) * off.shape + 0.5,
            rate: p * on.rate + (1.0 - p) * off.rate + 0.5 * square,
        }
    }

    /// q(w) = N(μ, Σ): Σ⁻¹ = XᵀX / noise + diag(ρ), μ = Σ Xᵀy / noise.
    fn weights(
        &self,
        gram: ArrayView2<'_, f64>,
        cross: ArrayView1<'_, f64>,
        precision: &Array1<f64>,
        row: &mut Row,
    ) -> Result<()> {
        let mut inverse = gram.to_owned();
        inverse.diag_mut().zip_mut_with(precision, |d, p| *d += p);
        let factor = linalg::cholesky(inverse, Par::Seq)?;
        let root = linalg::invert_triangular(factor, Triangle::Lower, Par::Seq)?;
        row.variance = (&root * &root).sum_axis(Axis(0));
        row.mean = root.t().dot(&root.dot(&cross));
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Row {
    mean: Array1<f64>,
    variance: Array1<f64>,
    support: Array1<f64>,
}

impl Row {
    /// E w².
    fn square(&self, at: usize) -> f64 {
        self.mean[at] * self.mean[at] + self.variance[at]
    }
}

impl Gamma {
    fn mean(&self) -> f64 {
        self.shape / self.rate
    }

    /// E ln p(ρ) from E ρ and E ln ρ.
    fn expected_log(&self, mean: f64, log: f64) -> f64 {
        let Self { shape, rate } = *self;
        shape * rate.ln() - ln_gamma(shape) + (shape - 1.0) * log - rate * mean
    }
}
