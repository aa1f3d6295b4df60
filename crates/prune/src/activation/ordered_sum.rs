//! ACM (Wójcik, Devoto, Pustelnik, Minervini, Scardapane: "Adaptive Computation Modules: Granular Conditional Computation
//! For Efficient Inference", 2023).

use tensorpress_tensor::linalg::{gaussian, svd_truncated};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result};

use super::affine::{Affine, fit_ridge};
use super::{check_columns, check_finite};

/// What each learner of an [`OrderedSum`] is; both are fitted in closed form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Learners {
    /// An affine map of this rank: the nearest of all such to the residual (reduced-rank regression, least squares behind
    /// which the best directions of what it gives are kept).
    Linear {
        /// 1 and more.
        rank: usize,
    },
    /// a(A x + c) behind which least squares with a ridge chooses the second layer; A and c are random, drawn for the spread
    /// of the inputs.
    Relu {
        /// Hidden channels, 1 and more.
        width: usize,
        /// What is added to the normal equations' diagonal, in parts of its mean; 0 and above.
        ridge: f64,
    },
}

/// How a layer is replaced by an ordered sum of small learners.
///
/// Learner i is fitted to what the ones before leave of the layer's outputs, y - Σ_{j<i} f_j(x): each prefix is an
/// approximation of its own, and a token may stop where it likes.
///
/// ```
/// use tensorpress_prune::activation::{Learners, OrderedSumFit};
/// use tensorpress_tensor::ndarray::Array2;
///
/// // A map of rank 2 takes two learners of rank 1.
/// let x = Array2::from_shape_fn((40, 6), |(t, i)| ((t * 7 + i * i * 3 + t * t * i) % 13) as f32 - 6.0);
/// let second = x.column(0).to_owned() + x.column(3);
/// let y = Array2::from_shape_fn((40, 2), |(t, o)| if o == 0 { 5.0 * x[[t, 1]] } else { second[t] });
/// let fit = OrderedSumFit::default().with_learners(3).with_kind(Learners::Linear { rank: 1 });
/// let sum = fit.fit(x.view(), y.view())?;
/// assert!(sum.smallest(x.view(), y.view(), 1e-3)?.iter().all(|count| *count <= 2));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct OrderedSumFit {
    /// Number of learners, 1 and more. Default 4.
    pub learners: usize,
    /// What they are. Default `Relu` of width 32, ridge 10⁻³.
    pub kind: Learners,
    /// Of the random layers. Default 0.
    pub seed: u64,
}

impl Default for OrderedSumFit {
    fn default() -> Self {
        Self { learners: 4, kind: Learners::Relu { width: 32, ridge: 1e-3 }, seed: 0 }
    }
}

/// f(x) = W a(A x + c) + b, a ReLU or nothing between.
#[derive(Debug, Clone, PartialEq)]
struct Learner {
    first: Affine,
    is_relu: bool,
    second: Affine,
}

impl Learner {
    fn apply(&self, x: ArrayView2<'_, f64>) -> Array2<f64> {
        self.second.apply_wide(hidden(&self.first, self.is_relu, x).view())
    }
}

fn hidden(first: &Affine, is_relu: bool, x: ArrayView2<'_, f64>) -> Array2<f64> {
    let hidden = first.apply_wide(x);
    if is_relu { hidden.mapv_into(|h| if h < 0.0 { 0.0 } else { h }) } else { hidden }
}

impl OrderedSumFit {
    /// Sets the number of learners.
    #[must_use]
    pub fn with_learners(mut self, learners: usize) -> Self {
        self.learners = learners;
        self
    }

    /// Sets what they are.
    #[must_use]
    pub fn with_kind(mut self, kind: Learners) -> Self {
        self.kind = kind;
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Fits learners to a layer's inputs X `[tokens, inputs]` and outputs Y `[tokens, outputs]`, in f64. Without tokens they
    /// are all 0.
    ///
    /// # Errors
    /// `InvalidArgument`; `ShapeMismatch`; `Numerical` for values that are not finite.
    pub fn fit(&self, x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>) -> Result<OrderedSum> {
        let least_one = |name, value| match value {
            0 => Err(Error::invalid(format!("{name} = 0: allowed are 1 and more"))),
            _ => Ok(()),
        };
        least_one("learners", self.learners)?;
        match self.kind {
            Learners::Linear { rank } => least_one("rank", rank)?,
            Learners::Relu { width, ridge } => {
                least_one("width", width)?;
                if !(ridge >= 0.0 && ridge.is_finite()) {
                    let what = format!("ridge = {ridge}: allowed are 0 and above");
                    return Err(Error::invalid(what));
                }
            }
        }
        if x.nrows() != y.nrows() {
            let (x, y) = (x.nrows(), y.nrows());
            return Err(Error::shape(format!("inputs of {x} tokens, outputs of {y}")));
        }
        check_finite("inputs", x)?;
        check_finite("outputs", y)?;
        let (x, mut residual) = (x.mapv(f64::from), y.mapv(f64::from));
        let mut learners = Vec::with_capacity(self.learners);
        for i in 0..self.learners {
            let learner = match self.kind {
                Learners::Linear { rank } => linear(x.view(), residual.view(), rank)?,
                Learners::Relu { width, ridge } => {
                    let first = random_layer(x.view(), width, self.seed, i);
                    let hidden = hidden(&first, true, x.view());
                    let second = fit_ridge(hidden.view(), residual.view(), ridge)?;
                    Learner { first, is_relu: true, second }
                }
            };
            residual -= &learner.apply(x.view());
            learners.push(learner);
        }
        Ok(OrderedSum { learners, inputs: x.ncols(), outputs: y.ncols() })
    }
}

/// The affine map of a rank that is nearest to Y on X: B of least squares, and V of the singular vectors of X B; x B V Vᵀ.
fn linear(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>, rank: usize) -> Result<Learner> {
    let Affine { weight, bias } = Affine::fit_wide(x, y)?;
    let mut given = x.dot(&weight.t());
    if let Some(mean) = given.mean_axis(Axis(0)) {
        given -= &mean;
    }
    let rank = rank.min(given.nrows()).min(given.ncols());
    let directions = svd_truncated(given.view(), rank)?.vt;
    let first = Affine { weight: directions.dot(&weight), bias: Array1::zeros(rank) };
    // What the directions left out had on average goes to the bias, so that means agree.
    let mean = x.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(x.ncols()));
    let whole = weight.dot(&mean) + &bias;
    let kept = directions.t().dot(&first.weight.dot(&mean));
    let second = Affine { weight: directions.t().to_owned(), bias: whole - kept };
    Ok(Learner { first, is_relu: false, second })
}

/// A layer whose outputs have about unit spread, and kinks among the inputs.
fn random_layer(x: ArrayView2<'_, f64>, width: usize, seed: u64, number: usize) -> Affine {
    let (tokens, inputs) = x.dim();
    let mean = x.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(inputs));
    let squares: f64 = (&x - &mean).iter().map(|v| v * v).sum();
    let spread = (squares / tokens.max(1) as f64).sqrt();
    let scale = if spread > 0.0 { 1.0 / spread } else { 0.0 };
    let from = (number * width * (inputs + 1)) as u64;
    let draw = |(unit, i): (usize, usize)| gaussian(seed, from + (unit * (inputs + 1) + i) as u64);
    let weight = Array2::from_shape_fn((width, inputs), |at| scale * draw(at));
    let kinks = Array1::from_shape_fn(width, |unit| draw((unit, inputs)));
    Affine { bias: kinks - weight.dot(&mean), weight }
}

/// y_k(x) = Σ_{i≤k} f_i(x): an ordered sum of learners, of which a token runs the first k.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderedSum {
    learners: Vec<Learner>,
    inputs: usize,
    outputs: usize,
}

impl OrderedSum {
    /// Number of learners.
    #[must_use]
    pub fn len(&self) -> usize {
        self.learners.len()
    }

    /// Never: there is one learner at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.learners.is_empty()
    }

    /// Runs the first `counts[t]` learners of each token t of X `[tokens, inputs]`, and gives `[tokens, outputs]`. A learner
    /// runs on the tokens that ask for it, all at once.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for more learners than there are.
    pub fn apply(&self, x: ArrayView2<'_, f32>, counts: &[usize]) -> Result<Array2<f32>> {
        check_columns("input of an ordered sum", x, self.inputs)?;
        check_columns("tokens' counts", x.t(), counts.len())?;
        if let Some(count) = counts.iter().find(|count| **count > self.len()) {
            let all = self.len();
            return Err(Error::invalid(format!("count = {count}: allowed are 0 to {all}")));
        }
        let mut y = Array2::<f64>::zeros((x.nrows(), self.outputs));
        for (i, learner) in self.learners.iter().enumerate() {
            let tokens: Vec<usize> = (0..counts.len()).filter(|t| counts[*t] > i).collect();
            let added = learner.apply(x.select(Axis(0), &tokens).mapv(f64::from).view());
            for (token, added) in tokens.into_iter().zip(added.rows()) {
                y.row_mut(token).zip_mut_with(&added, |y, a| *y += a);
            }
        }
        Ok(y.mapv(|v| v as f32))
    }

    /// The smallest k of each token with ‖y - y_k(x)‖ <= `tolerance` ‖y‖; all learners, where none does.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for a tolerance that is negative or not finite.
    pub fn smallest(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayView2<'_, f32>,
        tolerance: f64,
    ) -> Result<Vec<usize>> {
        check_columns("input of an ordered sum", x, self.inputs)?;
        check_columns("output of an ordered sum", y, self.outputs)?;
        check_columns("tokens' outputs", x.t(), y.nrows())?;
        if !(tolerance >= 0.0 && tolerance.is_finite()) {
            let what = format!("tolerance = {tolerance}: allowed are 0 and above");
            return Err(Error::invalid(what));
        }
        let norms = |m: &Array2<f64>| m.map_axis(Axis(1), |row| row.dot(&row).sqrt());
        let (x, mut left) = (x.mapv(f64::from), y.mapv(f64::from));
        let allowed = norms(&left) * tolerance;
        let mut counts = vec![self.len(); x.nrows()];
        for count in 0..self.len() {
            let errors = norms(&left);
            for (token, best) in counts.iter_mut().enumerate() {
                if *best > count && errors[token] <= allowed[token] {
                    *best = count;
                }
            }
            left -= &self.learners[count].apply(x.view());
        }
        Ok(counts)
    }

    /// A gate for tokens whose outputs are not known: which of 0 to all learners, an affine map fitted to the
    /// [smallest](OrderedSum::smallest) counts of calibration tokens, whose highest output decides (see
    /// [`choose`](super::choose)).
    ///
    /// # Errors
    /// As [`OrderedSum::smallest`].
    pub fn fit_gate(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayView2<'_, f32>,
        tolerance: f64,
    ) -> Result<Affine> {
        let counts = self.smallest(x, y, tolerance)?;
        let mut wanted = Array2::zeros((x.nrows(), self.len() + 1));
        counts.into_iter().enumerate().for_each(|(token, count)| wanted[[token, count]] = 1.0);
        Affine::fit(x, wanted.view())
    }
}
