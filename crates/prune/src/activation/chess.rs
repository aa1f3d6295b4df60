//! CHESS (He, Wu, Wen, Xue, Li: "CHESS: Optimizing LLM Inference via Channel-Wise Thresholding and Selective
//! Sparsification", EMNLP 2024).

use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::node::Dense;
use tensorpress_tensor::stats::{Moments, SampledRows};
use tensorpress_tensor::{DType, Error, Result, Scratch};

use super::feed_forward::{FeedForward, Step, inputs_product, stored};
use super::{check_columns, check_finite};

/// How thresholds are found: one budget for all channels, spent where the expected loss is equal.
///
/// A channel whose gate is skipped costs |a_i^gate| |a_i^up|, of which the gate alone is known in time. The threshold of
/// channel i is T_i = q / E|a_i^up|, where q is the `sparsity`-quantile of |a_i^gate| E|a_i^up| over calibration tokens and
/// all channels together: the smallest value that is not below this fraction of them.
///
/// ```
/// use tensorpress_prune::activation::Chess;
/// use tensorpress_tensor::ndarray::array;
///
/// let mut collector = Chess::default().with_sparsity(0.5).collector(2)?;
/// // Two channels with the same gates, of which the second counts ten times as much.
/// let gates = array![[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]];
/// let ups = array![[1.0, 10.0], [-1.0, 10.0], [1.0, -10.0], [-1.0, 10.0]];
/// collector.update(gates.view(), ups.view())?;
/// let thresholds = collector.finish()?;
/// assert_eq!(thresholds.values(), [4.0, 0.4]);
/// assert_eq!(thresholds.active(&[2.0, 2.0]), [1]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Chess {
    /// Fraction of the gates that is skipped, 0 to below 1. Default 0.5.
    pub sparsity: f64,
    /// Tokens whose gates are kept for the quantile, a uniform sample of all: 1 and more. Default 512.
    pub sample: usize,
    /// Of the sample. Default 0.
    pub seed: u64,
}

impl Default for Chess {
    fn default() -> Self {
        Self { sparsity: 0.5, sample: 512, seed: 0 }
    }
}

impl Chess {
    /// Sets the fraction.
    #[must_use]
    pub fn with_sparsity(mut self, sparsity: f64) -> Self {
        self.sparsity = sparsity;
        self
    }

    /// Sets how many tokens are kept.
    #[must_use]
    pub fn with_sample(mut self, sample: usize) -> Self {
        self.sample = sample;
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            let sparsity = self.sparsity;
            return Err(Error::invalid(format!("sparsity = {sparsity}: allowed are 0 to below 1")));
        }
        if self.sample == 0 {
            return Err(Error::invalid("sample = 0: allowed are 1 token and more"));
        }
        Ok(())
    }

    /// Takes the gates and ups of so many channels.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn collector(&self, channels: usize) -> Result<ThresholdCollector> {
        self.check()?;
        Ok(ThresholdCollector {
            sparsity: self.sparsity,
            gates: SampledRows::new(channels, self.sample, self.seed),
            ups: Moments::new(channels),
        })
    }

    /// The thresholds of a linear's inputs X `[tokens, inputs]`, all equal: the `sparsity`-quantile of |x|. CHESS has them
    /// for the queries' and the output matrix of attention alone; keys and values, which later tokens see, stay whole.
    /// Without tokens they are 0, and nothing is skipped.
    ///
    /// # Errors
    /// `InvalidArgument`; `Numerical` for inputs that are not finite.
    pub fn inputs(&self, x: ArrayView2<'_, f32>) -> Result<Thresholds> {
        self.check()?;
        check_finite("inputs", x)?;
        let cut = quantile(x.iter().map(|v| f64::from(v.abs())).collect(), self.sparsity);
        Ok(Thresholds { values: vec![cut as f32; x.ncols()] })
    }
}

/// Sees a stream of tokens and gives [`Thresholds`]: the means of all tokens, and a sample of their gates. Memory does not
/// grow with the stream, and what is found does not depend on how it is cut.
#[derive(Debug, Clone)]
pub struct ThresholdCollector {
    sparsity: f64,
    gates: SampledRows,
    ups: Moments,
}

impl ThresholdCollector {
    /// Adds a(G x) and U x of some tokens, `[tokens, channels]` each.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for values that are not finite.
    pub fn update(&mut self, gates: ArrayView2<'_, f32>, ups: ArrayView2<'_, f32>) -> Result<()> {
        check_columns("gates", gates, self.ups.channels())?;
        check_columns("ups", ups, self.ups.channels())?;
        if gates.nrows() != ups.nrows() {
            let (gates, ups) = (gates.nrows(), ups.nrows());
            return Err(Error::shape(format!("gates of {gates} tokens, ups of {ups}")));
        }
        check_finite("gates", gates)?;
        check_finite("ups", ups)?;
        self.gates.update(gates);
        self.ups.update(ups);
        Ok(())
    }

    /// The thresholds. Without tokens they are 0, and nothing is skipped; a channel whose ups were always 0 is skipped
    /// always (its threshold is infinite) unless nothing is.
    ///
    /// # Errors
    /// None today.
    pub fn finish(self) -> Result<Thresholds> {
        let (gates, means) = (self.gates.into_matrix(), self.ups.mean_abs());
        let costs = gates.rows().into_iter().flat_map(|row| {
            row.into_iter().zip(&means).map(|(gate, mean)| f64::from(gate.abs()) * mean)
        });
        let cut = quantile(costs.collect(), self.sparsity);
        // 0 / 0 would be no threshold.
        let threshold = |mean: &f64| if cut > 0.0 { (cut / mean) as f32 } else { 0.0 };
        Ok(Thresholds { values: means.iter().map(threshold).collect() })
    }
}

/// The smallest of the values that is not below such a fraction of them; 0 of none.
fn quantile(mut values: Vec<f64>, fraction: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let at = (fraction * values.len() as f64).ceil() as usize;
    *values.select_nth_unstable_by(at.saturating_sub(1), f64::total_cmp).1
}

/// A threshold for every channel: one whose gate is below it is skipped.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    values: Vec<f32>,
}

impl Thresholds {
    /// These.
    ///
    /// # Errors
    /// `InvalidArgument` for one that is negative or NaN; infinity skips a channel always.
    pub fn new(values: Vec<f32>) -> Result<Self> {
        match values.iter().find(|value| value.is_nan() || **value < 0.0) {
            None => Ok(Self { values }),
            Some(bad) => Err(Error::invalid(format!("threshold = {bad}: allowed are 0 and above"))),
        }
    }

    /// One a channel.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The channels of a token that are not skipped, ascending. A gate that is NaN is not.
    #[must_use]
    pub fn active(&self, gates: &[f32]) -> Vec<usize> {
        let pairs = gates.iter().zip(&self.values).enumerate();
        pairs.filter(|(_, (gate, least))| is_active(**gate, **least)).map(|(i, _)| i).collect()
    }

    /// Sets skipped gates to 0 and gives the channels that a token at least needs, and their gates, `[tokens, channels]`.
    fn split(&self, mut gates: Array2<f32>) -> (Vec<usize>, Array2<f32>) {
        let mut needed = vec![false; self.values.len()];
        for mut token in gates.rows_mut() {
            for ((gate, least), needed) in token.iter_mut().zip(&self.values).zip(&mut needed) {
                match is_active(*gate, *least) {
                    true => *needed = true,
                    false => *gate = 0.0,
                }
            }
        }
        let channels: Vec<usize> = (0..needed.len()).filter(|channel| needed[*channel]).collect();
        let gates = gates.select(Axis(1), &channels);
        (channels, gates)
    }

    /// A gated network that skips: G reads everything, U and D the channels that one of the tokens X `[tokens, inputs]`
    /// needs. Each token is answered as if it were alone.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Unsupported` for a network without a gate.
    pub fn apply(
        &self,
        network: &FeedForward,
        x: ArrayView2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<Step> {
        if self.values.len() != network.channels() {
            let (found, channels) = (self.values.len(), network.channels());
            return Err(Error::shape(format!("{found} thresholds of {channels} channels")));
        }
        let (channels, mut hidden) = self.split(network.gates(x, scratch)?);
        let ups = network.ups(x, &channels, scratch)?;
        // 0 is what was skipped, whatever U makes of a token that does not need the channel.
        hidden.zip_mut_with(&ups, |gate, up| *gate = if *gate == 0.0 { 0.0 } else { *gate * up });
        Ok(Step { output: network.output(hidden.view(), &channels, scratch)?, channels })
    }
}

/// A gate of exactly 0 adds nothing, whatever the threshold.
fn is_active(gate: f32, least: f32) -> bool {
    gate != 0.0 && gate.abs() >= least || gate.is_nan()
}

/// A linear that reads the weights of its larger inputs alone.
///
/// ```
/// use tensorpress_prune::activation::{SkippingLinear, Thresholds};
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::{DType, Scratch};
///
/// let weight = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
/// let thresholds = Thresholds::new(vec![0.5; 3])?;
/// let linear = SkippingLinear::new(weight.view(), thresholds, DType::F32)?;
/// let step = linear.apply(array![[1.0, 0.1, -1.0]].view(), &mut Scratch::default())?;
/// assert_eq!((step.output, step.channels), (array![[-2.0, -2.0]], vec![0, 2]));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SkippingLinear {
    /// `[inputs, outputs]`.
    weight: Dense,
    thresholds: Thresholds,
}

impl SkippingLinear {
    /// From W `[outputs, inputs]`, rounded to `dtype` and stored turned.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Unsupported` for a type that is none of f32, f16 and bf16.
    pub fn new(weight: ArrayView2<'_, f32>, thresholds: Thresholds, dtype: DType) -> Result<Self> {
        check_columns("weight beside thresholds", weight, thresholds.values.len())?;
        let weight = stored(weight.t().as_standard_layout().view(), dtype)?;
        Ok(Self { weight, thresholds })
    }

    /// Y = X Wᵀ with the inputs below their thresholds taken to be 0.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn apply(&self, x: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Step> {
        check_columns("input of a linear", x, self.thresholds.values.len())?;
        let (channels, kept) = self.thresholds.split(x.to_owned());
        let output = inputs_product(&self.weight, &channels, kept.view(), scratch)?;
        Ok(Step { output, channels })
    }
}
