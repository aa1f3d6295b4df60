//! What an error of a weight costs: roots S of the second moments of the inputs, so that the cost is ‖(W - Ŵ) S‖².

use std::fmt::Debug;

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{Calibration, Gram, Moments, Needs};
use tensorpress_tensor::{Error, Result, Usable};

use crate::aim::Aim;
use crate::project::{exponent, power_of_two};

/// A root of the inputs' second moments.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Root {
    /// Every weight counts alike.
    Identity,
    /// diag(s).
    Diagonal(Vec<f32>),
    /// S `[in, in]`.
    Full(Array2<f32>),
}

impl Root {
    /// The power of two that its entries are about as large as, if that is unusual.
    pub(crate) fn exponent(&self) -> i32 {
        match self {
            Self::Identity => 0,
            Self::Diagonal(s) => exponent(s.iter()),
            Self::Full(s) => exponent(s.iter()),
        }
    }

    /// M S for M `[rows, in]`.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn apply(&self, m: ArrayView2<'_, f32>, par: Par) -> Result<Array2<f32>> {
        let fits = |inputs: usize| match inputs == m.ncols() {
            true => Ok(()),
            false => Err(Error::shape(format!("statistics of {inputs} inputs for {}", m.ncols()))),
        };
        match self {
            Self::Identity => Ok(m.to_owned()),
            Self::Diagonal(s) => {
                fits(s.len())?;
                let mut scaled = m.to_owned();
                for mut row in scaled.rows_mut() {
                    row.iter_mut().zip(s).for_each(|(w, s)| *w *= s);
                }
                Ok(scaled)
            }
            Self::Full(s) => {
                fits(s.nrows())?;
                let mut product = Array2::zeros((m.nrows(), s.ncols()));
                linalg::matmul(m, s.view(), product.view_mut(), false, par);
                Ok(product)
            }
        }
    }
}

/// What is known of the inputs: a root, their mean where the metric is about deviations from it, and what is factored.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Weighing {
    /// S.
    pub root: Root,
    /// The mean input; what a factorisation loses of its output becomes a bias.
    pub mean: Option<Vec<f32>>,
    /// What is factored, and by which directions.
    pub aim: Aim,
    /// Tokens that S Sᵀ is the sum of, where it is one.
    pub tokens: Option<u64>,
    /// Why it is less than the metric asks for, if it is.
    pub note: Option<String>,
}

impl Weighing {
    /// By a root alone.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self { root, mean: None, aim: Aim::Weight, tokens: None, note: None }
    }

    /// Sets the mean input.
    #[must_use]
    pub fn with_mean(mut self, mean: Option<Vec<f32>>) -> Self {
        self.mean = mean;
        self
    }

    /// Sets what is factored.
    #[must_use]
    pub fn with_aim(mut self, aim: Aim) -> Self {
        self.aim = aim;
        self
    }

    /// Says that S Sᵀ is the sum of so many tokens' moments.
    #[must_use]
    pub fn with_tokens(mut self, tokens: u64) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Says why it is less than the metric asks for.
    #[must_use]
    pub fn with_note(mut self, note: Option<String>) -> Self {
        self.note = note;
        self
    }

    /// Every weight counts alike.
    pub(crate) fn plain() -> Self {
        Self::new(Root::Identity)
    }
}

/// What an error costs.
pub trait Metric: Debug + Send + Sync {
    /// Name of the method that factors by it.
    fn id(&self) -> &'static str;
    /// Statistics it uses.
    fn needs(&self) -> Needs;
    /// Its own knobs; none by default.
    ///
    /// # Errors
    /// Those of `keys`.
    fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
        Ok(())
    }
    /// The mean goes into a bias. False by default.
    fn corrects_bias(&self) -> bool {
        false
    }
    /// The weighing of a shared input, if the statistics can be used.
    ///
    /// # Errors
    /// `MissingCalibration`, `ShapeMismatch`.
    fn weighing(&self, calibration: &Calibration, par: Par) -> Result<Usable<Weighing>>;
}

/// S = I: the error of the weights themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plain;

impl Metric for Plain {
    fn id(&self) -> &'static str {
        "svd"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn weighing(&self, _: &Calibration, _: Par) -> Result<Usable<Weighing>> {
        Ok(Usable::Yes(Weighing::plain()))
    }
}

/// How active an input channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activity {
    /// The mean of its absolute values.
    #[default]
    AbsMean,
    /// The largest of its absolute values.
    AbsMax,
}

/// S = diag(a_j^alpha + 1e-6), a_j the mean or the maximum of |x_j| (ASVD: Yuan et al., 2023, section 3.2; `abs_mean` and
/// `abs_max` of the official code).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InputScale {
    /// How much activity counts, 0 (not at all) to 1. The paper's choice is 0.5.
    pub alpha: f32,
    /// What activity is. Default the mean.
    pub activity: Activity,
}

impl Default for InputScale {
    fn default() -> Self {
        Self { alpha: 0.5, activity: Activity::AbsMean }
    }
}

impl Metric for InputScale {
    fn id(&self) -> &'static str {
        "asvd"
    }

    fn needs(&self) -> Needs {
        Needs::MOMENTS
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("alpha", &mut self.alpha, 0.0..=4.0, "how much activity counts")?;
        let kinds = [("abs_mean", Activity::AbsMean), ("abs_max", Activity::AbsMax)];
        let about = "of a channel over all tokens: what its activity is";
        keys.choice("activity", &mut self.activity, &kinds, about)
    }

    fn weighing(&self, calibration: &Calibration, _: Par) -> Result<Usable<Weighing>> {
        if !(self.alpha.is_finite() && self.alpha >= 0.0) {
            return Err(Error::invalid(format!("alpha = {}: allowed are 0 and more", self.alpha)));
        }
        let scale = |activity: f64| activity.powf(f64::from(self.alpha)) + 1e-6;
        Ok(calibration.usable::<Moments>()?.map(|moments| {
            let activity = match self.activity {
                Activity::AbsMean => moments.mean_abs(),
                Activity::AbsMax => moments.abs_max().mapv(f64::from),
            };
            Weighing::new(Root::Diagonal(narrow(activity.mapv(scale).to_vec())))
        }))
    }
}

/// In f32, divided by a power of two, which changes no projection, where the largest would be out of its range.
fn narrow(scales: Vec<f64>) -> Vec<f32> {
    let most = scales.iter().copied().fold(0.0, f64::max);
    let unit = if most > 1e30 { power_of_two(most.log2().floor() as i32) } else { 1.0 };
    scales.iter().map(|s| (s / unit) as f32).collect()
}

/// S Sᵀ = XᵀX: the error of the outputs over the calibration (SVD-LLM: Wang et al., 2024, section 3.1; EoRA: Liu et
/// al., 2024; LoRD: Kaushal et al., 2023, whose eigenvectors of the outputs' second moments are the same P).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InputGram;

impl Metric for InputGram {
    fn id(&self) -> &'static str {
        "svd_llm"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM
    }

    fn weighing(&self, calibration: &Calibration, par: Par) -> Result<Usable<Weighing>> {
        let root = calibration.usable::<Gram>()?.and_then(|gram| root_of(gram.clone(), par));
        Ok(root.map(|root| Weighing::new(root).with_tokens(calibration.tokens())))
    }
}

/// [`InputGram`] of inputs as the layers before make them once they are compressed, in the same block too (LLM-ROM: Chavan
/// et al., 2023).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SequentialGram;

impl Metric for SequentialGram {
    fn id(&self) -> &'static str {
        "rom"
    }

    fn needs(&self) -> Needs {
        InputGram.needs().true_sequentially()
    }

    fn weighing(&self, calibration: &Calibration, par: Par) -> Result<Usable<Weighing>> {
        InputGram.weighing(calibration, par)
    }
}

/// S Sᵀ = XᵀX - n μ μᵀ: the error of the outputs' deviations from their mean, which a bias carries (feature
/// mimicking: Yu and Wu, 2024).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InputCovariance;

impl Metric for InputCovariance {
    fn id(&self) -> &'static str {
        "feature_mimicking"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM.union(Needs::MOMENTS)
    }

    fn corrects_bias(&self) -> bool {
        true
    }

    fn weighing(&self, calibration: &Calibration, par: Par) -> Result<Usable<Weighing>> {
        let both = calibration.usable::<Gram>()?.and(calibration.usable::<Moments>()?);
        Ok(both.and_then(|(gram, moments)| {
            let (mean, tokens) = (moments.mean(), calibration.tokens() as f64);
            let mut covariance = gram.clone();
            for ((i, j), g) in covariance.indexed_iter_mut() {
                *g = (f64::from(*g) - tokens * mean[i] * mean[j]) as f32;
            }
            let mean = Some(mean.iter().map(|m| *m as f32).collect());
            root_of(covariance, par)
                .map(|root| Weighing::new(root).with_mean(mean).with_tokens(calibration.tokens()))
        }))
    }
}

/// A root of a symmetric matrix without negative eigenvalues: the Cholesky factor, or from eigenvalues where it is
/// singular (those below 0 by rounding count as 0).
pub(crate) fn root_of(moments: Array2<f32>, par: Par) -> Usable<Root> {
    if moments.iter().any(|v| !v.is_finite()) {
        return Usable::no("its second moments are not finite");
    }
    if moments.diag().iter().all(|v| *v <= 0.0) {
        return Usable::no("all its inputs were zero or constant");
    }
    let lower = linalg::cholesky(moments.clone(), par);
    if let Some(lower) = lower.ok().filter(|lower| lower.iter().all(|v| v.is_finite())) {
        return Usable::Yes(Root::Full(lower));
    }
    // In double precision: a root is as wrong as the root of the error.
    match linalg::symmetric_eigen(moments.mapv(f64::from).view()) {
        Ok(eigen) => {
            let scale = eigen.values.mapv(|value| value.max(0.0).sqrt());
            Usable::Yes(Root::Full((eigen.vectors * scale).mapv(|v| v as f32)))
        }
        Err(e) => Usable::no(e.message()),
    }
}
