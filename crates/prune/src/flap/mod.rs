//! FLAP (An, Zhao, Yu, Tang, Wang: "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI
//! 2024): whole attention heads and feed-forward channels go, without retraining.
//!
//! - saliency: how much an input channel of the attention's output matrix, or of the feed-forward network's, moves
//!   about its mean, times how far that is felt ([`ChannelMetric`], eq. 4);
//! - structure: channels by themselves, heads as [`HeadLayout`] lets them go;
//! - allocation: the same fraction everywhere, or one threshold for the model ([`Flap::select`], section 3.3);
//! - repair: what a removed channel contributed on average goes into the bias ([`compensation`], eq. 5).

mod allocation;
mod heads;
mod rewrite;
mod saliency;

use tensorpress_tensor::ndarray::{Array1, ArrayView1, ArrayView2};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Error, Method, Result};

pub use allocation::{BlockScores, BlockSupport};
pub use heads::HeadLayout;
pub use saliency::{ChannelMetric, InputStatistics, least_salient};

/// FLAP: which heads and channels of every block stay.
///
/// ```
/// use tensorpress_prune::{ChannelMetric, Flap};
///
/// let flap = Flap::new(0.3).with_metric(ChannelMetric::Ifv).with_uniform(true);
/// assert!(flap.check().is_ok());
/// assert!(Flap::new(1.0).check().is_err(), "something must stay");
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Flap {
    /// Fraction that goes, 0 to below 1: of the heads and of the channels of every block if `uniform`, else of the
    /// weights of all blocks together.
    pub sparsity: f64,
    /// What a channel is judged by. Default: WIFV.
    pub metric: ChannelMetric,
    /// Every block loses as much (the paper's UL-UM); else scores are standardised within each module of each block
    /// and one threshold decides for the whole model (AL-AM). Default false.
    pub uniform: bool,
}

/// A fifth goes, by the adaptive form.
impl Default for Flap {
    fn default() -> Self {
        Self::new(0.2)
    }
}

impl Flap {
    /// The adaptive form, by weighted fluctuation.
    #[must_use]
    pub fn new(sparsity: f64) -> Self {
        Self { sparsity, metric: ChannelMetric::default(), uniform: false }
    }

    /// Sets what a channel is judged by.
    #[must_use]
    pub fn with_metric(mut self, metric: ChannelMetric) -> Self {
        self.metric = metric;
        self
    }

    /// Sets whether every block loses as much.
    #[must_use]
    pub fn with_uniform(mut self, uniform: bool) -> Self {
        self.uniform = uniform;
        self
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the parameter and what is allowed.
    pub fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.sparsity) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "sparsity = {}: allowed are 0 to below 1, for something must stay",
            self.sparsity
        )))
    }
}

impl Knobs for Flap {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("sparsity", &mut self.sparsity, 0.0..=1.0, "fraction that goes, below 1")?;
        let about = "every block loses as much: alone, it gives a plain folder; else one threshold for the whole model";
        keys.flag("uniform", &mut self.uniform, about)?;
        let metrics = [
            ("wifv", ChannelMetric::Wifv),
            ("ifv", ChannelMetric::Ifv),
            ("wifn", ChannelMetric::Wifn),
        ];
        let about = "a channel's score: weighted variance, variance, weighted norm";
        keys.choice("metric", &mut self.metric, &metrics, about)
    }

    fn check(&self) -> Result<()> {
        Flap::check(self)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::rewrite(
        "flap",
        "removes the attention heads and feed-forward channels that fluctuate least; their mean goes into biases",
        Flap::default,
    )
}

impl Method for Flap {
    fn id(&self) -> &'static str {
        "flap"
    }

    fn needs(&self) -> Needs {
        Needs::MOMENTS
    }
}

/// What is added to the bias of W `[out, in]` for the inputs that go: the sum of their columns times their means.
/// Sums are f64.
///
/// # Panics
/// Unless there is one mean and one flag an input.
#[must_use]
pub fn compensation(
    weight: ArrayView2<'_, f32>,
    mean: ArrayView1<'_, f64>,
    keep: &[bool],
) -> Array1<f32> {
    assert_eq!((weight.ncols(), weight.ncols()), (mean.len(), keep.len()), "inputs");
    let gone: Vec<usize> = (0..keep.len()).filter(|i| !keep[*i]).collect();
    let lost = |row: ArrayView1<'_, f32>| {
        gone.iter().map(|i| f64::from(row[*i]) * mean[*i]).sum::<f64>() as f32
    };
    weight.rows().into_iter().map(lost).collect()
}
