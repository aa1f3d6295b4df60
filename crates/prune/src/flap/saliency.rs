use tensorpress_tensor::ndarray::{Array1, ArrayView2, Axis};
use tensorpress_tensor::stats::Moments;
use tensorpress_tensor::{Error, Result};

use crate::pattern::count;

/// What is known of the channels of an input: one value a channel each.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct InputStatistics {
    /// Mean: the bias that makes good for a channel is made of it.
    pub mean: Array1<f64>,
    /// How much a channel moves about its mean; the scale is the same for all channels and does not matter.
    pub fluctuation: Array1<f64>,
    /// Sum or mean of squares; the scale is the same for all channels and does not matter.
    pub energy: Array1<f64>,
}

impl InputStatistics {
    /// Statistics that were collected elsewhere, as by the recurrences of the official code.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there are as many of each; `Numerical` unless all are finite.
    pub fn new(mean: Array1<f64>, fluctuation: Array1<f64>, energy: Array1<f64>) -> Result<Self> {
        let lengths = [mean.len(), fluctuation.len(), energy.len()];
        if lengths != [mean.len(); 3] {
            let message = format!("mean, fluctuation and energy of {lengths:?} channels");
            return Err(Error::shape(message));
        }
        let all = [&mean, &fluctuation, &energy];
        if let Some(i) = (0..mean.len()).find(|i| !all.iter().all(|v| v[*i].is_finite())) {
            return Err(Error::numerical(format!("statistics of channel {i} are not finite")));
        }
        Ok(Self { mean, fluctuation, energy })
    }
}

/// The exact mean, variance and sum of squares of all tokens. The official code updates them batch by batch in a way
/// that weighs batches unevenly and leaves the first out of the variance.
impl From<&Moments> for InputStatistics {
    fn from(moments: &Moments) -> Self {
        Self {
            mean: moments.mean().to_owned(),
            fluctuation: moments.variance(),
            energy: moments.sum_of_squares().to_owned(),
        }
    }
}

/// How much an input channel of a matrix matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ChannelMetric {
    /// Weighted input feature variance: Var(x_j) ‖W_:j‖², the output's variance that goes with the channel (eq. 4).
    #[default]
    Wifv,
    /// Input feature variance: Var(x_j).
    Ifv,
    /// Weighted input feature norm: mean over the rows of |w_ij| ‖x_j‖, Wanda's score of the column.
    Wifn,
}

impl ChannelMetric {
    /// Scores of the inputs of W `[out, in]`, 0 and more. Sums are f64.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for a weight that is not finite.
    pub fn scores(
        self,
        weight: ArrayView2<'_, f32>,
        inputs: &InputStatistics,
    ) -> Result<Array1<f64>> {
        if weight.ncols() != inputs.mean.len() {
            return Err(Error::shape(format!(
                "statistics of {} channels for {} inputs",
                inputs.mean.len(),
                weight.ncols()
            )));
        }
        let squares = Self::by_weight(weight)?;
        Ok(match self {
            Self::Wifv => squares * &inputs.fluctuation,
            Self::Ifv => inputs.fluctuation.clone(),
            Self::Wifn => {
                let rows = weight.nrows().max(1) as f64;
                let sums = weight.map(|w| f64::from(w.abs())).sum_axis(Axis(0));
                sums / rows * &inputs.energy.mapv(f64::sqrt)
            }
        })
    }

    /// ‖W_:j‖²: what is left to judge by where nothing is known of the inputs.
    ///
    /// # Errors
    /// `Numerical` for a weight that is not finite.
    pub fn by_weight(weight: ArrayView2<'_, f32>) -> Result<Array1<f64>> {
        if let Some(((row, col), w)) = weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
            return Err(Error::numerical(format!("weight [{row}, {col}] is {w}")));
        }
        let mut squares = Array1::zeros(weight.ncols());
        for row in weight.rows() {
            squares.zip_mut_with(&row, |sum: &mut f64, w| *sum += f64::from(*w) * f64::from(*w));
        }
        Ok(squares)
    }
}

/// The ⌊n x fraction⌋ lowest scores, never all of them: `true` where a score goes. Of equal ones those that come first
/// go first. (The official rule keeps what is not below the score of that rank: the same where no scores tie, and with
/// ties not the number that was asked for.)
#[must_use]
pub fn least_salient(scores: &[f64], fraction: f64) -> Vec<bool> {
    lowest(scores, count(scores.len(), fraction).min(scores.len().saturating_sub(1)))
}

/// The `number` lowest scores.
pub(super) fn lowest(scores: &[f64], number: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    let mut gone = vec![false; scores.len()];
    order[..number].iter().for_each(|i| gone[*i] = true);
    gone
}

/// Scores minus their mean, over their standard deviation (unbiased); 0 where all are equal.
pub(super) fn standardised(scores: &[f64]) -> Vec<f64> {
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let spread = scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>();
    let deviation = (spread / (n - 1.0)).sqrt();
    let usable = deviation.is_finite() && deviation > 0.0;
    scores.iter().map(|s| if usable { (s - mean) / deviation } else { 0.0 }).collect()
}
