//! BlockFFN (Song, Zhao, Han, Xiao, Chen, Li, Liu, Sun: "BlockFFN: Towards End-Side Acceleration-Friendly
//! Mixture-of-Experts with Chunk-Level Activation Sparsity", 2025).

use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result, Scratch};

use super::check_columns;
use super::feed_forward::{FeedForward, Step};

/// The router: factors RMSNorm(ReLU(x W_r)), differentiable, of as many blocks as a token likes.
///
/// The norm comes behind the ReLU: a block that is shut stays at 0, and what is open has one size whatever x has.
///
/// ```
/// use tensorpress_prune::activation::BlockRouter;
/// use tensorpress_tensor::ndarray::array;
///
/// let router = BlockRouter::new(array![[3.0], [-1.0], [4.0]]);
/// let factors = router.factors(array![[1.0], [100.0]].view())?;
/// assert_eq!(factors[[0, 1]], 0.0);
/// // (3, 0, 4) over its root mean square, 5 / √3.
/// assert!((factors[[1, 2]] - 4.0 / 5.0 * 3.0_f32.sqrt()).abs() < 1e-5);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BlockRouter {
    /// W_r turned, `[blocks, inputs]`.
    pub weight: Array2<f32>,
    /// The norm's gain, `[blocks]`. Default ones.
    pub gain: Array1<f32>,
    /// Added to the mean square. Default 10⁻⁶.
    pub epsilon: f64,
}

impl BlockRouter {
    /// With these scores, `[blocks, inputs]`, and a gain of ones.
    #[must_use]
    pub fn new(weight: Array2<f32>) -> Self {
        let gain = Array1::ones(weight.nrows());
        Self { weight, gain, epsilon: 1e-6 }
    }

    /// Sets the gain.
    #[must_use]
    pub fn with_gain(mut self, gain: Array1<f32>) -> Self {
        self.gain = gain;
        self
    }

    /// Sets what is added to the mean square, above 0.
    #[must_use]
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// The factors of tokens X `[tokens, inputs]`, `[tokens, blocks]`; 0 of a block that is not active. Sums are f64.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for an `epsilon` that is not above 0.
    pub fn factors(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        check_columns("input of a router", x, self.weight.ncols())?;
        let (blocks, gains) = (self.weight.nrows(), self.gain.len());
        if gains != blocks {
            return Err(Error::shape(format!("{gains} gains of {blocks} blocks")));
        }
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            let epsilon = self.epsilon;
            return Err(Error::invalid(format!("epsilon = {epsilon}: allowed are those above 0")));
        }
        let mut scores = x.mapv(f64::from).dot(&self.weight.t().mapv(f64::from));
        for mut token in scores.rows_mut() {
            token.iter_mut().filter(|score| **score < 0.0).for_each(|score| *score = 0.0);
            let squares: f64 = token.iter().map(|score| score * score).sum();
            let root = (squares / blocks.max(1) as f64 + self.epsilon).sqrt();
            token.zip_mut_with(&self.gain, |score, gain| *score *= f64::from(*gain) / root);
        }
        Ok(scores.mapv(|factor| factor as f32))
    }
}

/// How little is active of what could be.
///
/// ```
/// use tensorpress_prune::activation::Activity;
/// use tensorpress_tensor::ndarray::array;
///
/// let factors = array![[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]];
/// let activity = Activity::of(factors.view(), 2)?;
/// assert_eq!((activity.token, activity.chunk), (0.75, 0.625));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Activity {
    /// TLS: the mean over the tokens of the share of blocks that are inactive.
    pub token: f64,
    /// CLS: the mean over all runs of `length` consecutive tokens of the share that none of them activates.
    pub chunk: f64,
    /// Tokens of a run.
    pub length: usize,
}

impl Activity {
    /// Of factors `[tokens, blocks]` of one sequence, which are 0 where a block is inactive, and runs of `length` tokens.
    ///
    /// # Errors
    /// `InvalidArgument` for a length of 0; `InsufficientData` for fewer tokens than that, and for no blocks.
    pub fn of(factors: ArrayView2<'_, f32>, length: usize) -> Result<Self> {
        let (tokens, blocks) = factors.dim();
        if length == 0 {
            return Err(Error::invalid("length = 0: allowed are runs of 1 token and more"));
        }
        if tokens < length || blocks == 0 {
            let what = format!("{tokens} tokens of {blocks} blocks, for runs of {length} tokens");
            return Err(Error::insufficient(what));
        }
        let inactive = |rows: ArrayView2<'_, f32>| {
            let shut = rows.columns().into_iter().filter(|block| block.iter().all(|f| *f == 0.0));
            shut.count() as f64 / blocks as f64
        };
        let mean = |length: usize| {
            let runs = factors.axis_windows(Axis(0), length).into_iter().map(inactive);
            runs.sum::<f64>() / (tokens + 1 - length) as f64
        };
        Ok(Self { token: mean(1), chunk: mean(length), length })
    }
}

/// A network in blocks of as many consecutive channels, y = Σ_b factor_b D_b a(U_b x) (with a gate, if it has one).
#[derive(Debug, Clone)]
pub struct BlockNetwork {
    network: FeedForward,
    blocks: usize,
}

impl BlockNetwork {
    /// Cuts the channels into so many blocks.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that does not divide the channels.
    pub fn new(network: FeedForward, blocks: usize) -> Result<Self> {
        let channels = network.channels();
        if blocks == 0 || !channels.is_multiple_of(blocks) {
            let what = format!("blocks = {blocks}: allowed are those that divide {channels}");
            return Err(Error::invalid(what));
        }
        Ok(Self { network, blocks })
    }

    /// Answers a chunk of tokens X `[tokens, inputs]` with factors `[tokens, blocks]`: the blocks that one of them activates
    /// are read, once for all; those that a token does not are 0 to it.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn apply(
        &self,
        x: ArrayView2<'_, f32>,
        factors: ArrayView2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<Step> {
        check_columns("factors", factors, self.blocks)?;
        if factors.nrows() != x.nrows() {
            let (factors, x) = (factors.nrows(), x.nrows());
            return Err(Error::shape(format!("factors of {factors} tokens, inputs of {x}")));
        }
        let width = self.network.channels() / self.blocks;
        let open = |block: &usize| factors.column(*block).iter().any(|factor| *factor != 0.0);
        let union: Vec<usize> = (0..self.blocks).filter(open).collect();
        let channels: Vec<usize> =
            union.iter().flat_map(|block| block * width..(block + 1) * width).collect();
        let mut hidden = self.network.hidden(x, &channels, scratch)?;
        scale_groups(&mut hidden, width, factors.select(Axis(1), &union).view());
        Ok(Step { output: self.network.output(hidden.view(), &channels, scratch)?, channels })
    }
}

/// Multiplies groups of so many channels by their factors; 0 gives 0, whatever a channel holds.
fn scale_groups(hidden: &mut Array2<f32>, width: usize, factors: ArrayView2<'_, f32>) {
    for ((token, channel), h) in hidden.indexed_iter_mut() {
        let factor = factors[[token, channel / width]];
        *h = if factor == 0.0 { 0.0 } else { *h * factor };
    }
}
