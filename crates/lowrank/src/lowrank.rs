use tensorpress_tensor::node::{Dense, decode};
use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Group, Method, Node, Result, Storage,
    Target, Usable,
};

use crate::aim::Ask;
use crate::factors::{Around, Factors};
use crate::made::Made;
use crate::metric::{
    InputCovariance, InputGram, InputScale, Metric, Plain, SequentialGram, Weighing,
};
use crate::outputs::Outputs;
use crate::project::{Solver, exponent};
use crate::rank::Rank;

/// W ~ U V with the factors that lose least by a metric.
///
/// Never fails on singular or missing statistics, nor on weights that are finite: a layer that saw no token, or whose
/// statistics are beyond f32, is factored by the plain metric; one that cannot be decomposed, or whose factors f32 cannot
/// hold, stays dense. Each says so.
/// A matrix whose factors would take as many bytes as itself, in its stored type, stays dense, and says so, unless
/// [`LowRank::always`] is set.
///
/// Where a target asks for it ([`Target::rows`]), errors of its outputs cost what the model makes of them, whatever the
/// metric and the aim: with G = T Tᵀ the Fisher matrix of the outputs, Tᵀ W is factored in the place of W, and T taken back.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LowRank<M> {
    id: &'static str,
    /// What an error costs.
    pub metric: M,
    /// How the rank is chosen.
    pub rank: Rank,
    /// How singular vectors are found. Default [`Solver::Auto`].
    pub solver: Solver,
    /// How factors are stored. Default as the weights.
    pub factors: Factors,
    /// Factors even where they are larger than the matrix: what corrections are. Default false.
    pub always: bool,
    /// In the place of `rank`: all matrices of a model together take so many bits a weight, in floats, each at the rank where
    /// a bit more of any of them would gain the same, or as it is ([`Method::shared_bits`]). A matrix alone takes no more
    /// than that, but rank 1 at least. Default none.
    pub bits: Option<f64>,
    /// Ranks by `bits` are counts of singular values above one threshold in parts of each matrix's largest, half of the full
    /// rank or more being the matrix itself (WeLore), whatever errors cost. Default false.
    pub relative: bool,
}

impl<M: Metric> LowRank<M> {
    /// Factors by this metric, of this rank.
    #[must_use]
    pub fn new(metric: M, rank: Rank) -> Self {
        let (solver, factors) = (Solver::default(), Factors::default());
        Self {
            id: metric.id(),
            metric,
            rank,
            solver,
            factors,
            always: false,
            bits: None,
            relative: false,
        }
    }

    /// Sets how singular vectors are found.
    #[must_use]
    pub fn with_solver(mut self, solver: Solver) -> Self {
        self.solver = solver;
        self
    }

    /// Sets how factors are stored.
    #[must_use]
    pub fn with_factors(mut self, factors: Factors) -> Self {
        self.factors = factors;
        self
    }

    /// Sets whether factors are kept where they are larger than the matrix.
    #[must_use]
    pub fn with_always(mut self, always: bool) -> Self {
        self.always = always;
        self
    }

    /// Sets the bits of all matrices together.
    #[must_use]
    pub fn with_bits(mut self, bits: Option<f64>) -> Self {
        self.bits = bits;
        self
    }

    /// Sets whether ranks by `bits` are by shapes of spectra alone.
    #[must_use]
    pub fn with_relative(mut self, relative: bool) -> Self {
        self.relative = relative;
        self
    }

    fn factor(
        &self,
        target: &Target<'_>,
        weighing: &Weighing,
        group: &Group<'_>,
    ) -> Result<Compressed> {
        target.check_finite()?;
        let weight = target.kept_weight().into_owned();
        let outputs = Outputs::of(target, &group.calibration, group.par)?;
        let shape = [weight.nrows(), weight.ncols()];
        let dense_bytes = weight.len() * target.dtype.size();
        let kept = |reason: String| {
            let node = Dense::from_f32(weight.view(), target.dtype)?;
            let reason = Some(format!("{reason}: kept dense"));
            Ok(Compressed::new(node).boxed().with_fallback(reason))
        };
        let dense = |rank: usize, bytes: usize| {
            kept(format!(
                "factors of rank {rank} would take {bytes} bytes, the matrix {dense_bytes}"
            ))
        };
        let size_of = |rank: usize| {
            self.factors.value_bytes(target.dtype).map(|size| rank * (shape[0] + shape[1]) * size)
        };
        if weight.is_empty() {
            return dense(0, 0);
        }
        let par = group.par;
        let rank = self.rank_of(target, &weight, weighing, outputs.as_ref(), par)?;
        // What the shape alone decides is known before the work.
        if let Some(rank) = rank.of_shape(shape).filter(|_| !self.always)
            && let Some(bytes) = size_of(rank).filter(|bytes| *bytes >= dense_bytes)
        {
            return dense(rank, bytes);
        }
        let ask = Ask { rank, solver: self.solver, seed: group.seed, par };
        let made = Made::of(&weight, weighing, outputs.as_ref(), ask)?;
        let Made { moved, factors, note: solved } = match made {
            Usable::Yes(made) => made,
            Usable::No(reason) if *weighing == Weighing::plain() => return kept(reason),
            Usable::No(reason) => {
                let layer = self.factor(target, &Weighing::plain(), group)?;
                return Ok(layer.with_note(Some(without_metric(&reason))));
            }
        };
        let rank = factors.left.ncols();
        let around = Around {
            name: target.name,
            dtype: target.dtype,
            root: &weighing.root,
            calibration: &group.calibration,
            seed: group.seed,
            par,
        };
        let (bias, no_bias) = match weighing.mean.as_ref().map(|m| factors.lost_mean(&weight, m)) {
            Some(Usable::Yes(bias)) => (Some(bias), None),
            Some(Usable::No(reason)) => (None, Some(format!("{reason}: no bias"))),
            None => (None, None),
        };
        let (node, stored) =
            self.factors.store(moved.as_ref().unwrap_or(&weight), factors, &around)?;
        let bytes = Storage::of(&node)?.bytes() as usize;
        if !self.always && bytes >= dense_bytes {
            return dense(rank, bytes);
        }
        if exponent(weight.iter()) > NEAR_THE_END && decode(&node)?.iter().any(|v| !v.is_finite()) {
            return kept("its factors' product is beyond f32".to_owned());
        }
        let layer = Compressed { bias, ..Compressed::new(node).boxed() };
        Ok([solved, no_bias, stored].into_iter().fold(layer, Compressed::with_note))
    }
}

/// Powers of two from which on rounding may end beyond f32.
const NEAR_THE_END: i32 = 120;

fn without_metric(why: &str) -> String {
    format!("{why}: factored by the error of the weights instead")
}

impl<M: Metric> Method for LowRank<M> {
    fn id(&self) -> &'static str {
        self.id
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn corrects_bias(&self) -> bool {
        self.metric.corrects_bias()
    }

    fn shared_bits(&self) -> Option<f64> {
        self.bits
    }

    fn needs(&self) -> Needs {
        let factors = if self.factors.need_gram() { Needs::GRAM } else { Needs::default() };
        self.metric.needs().union(factors)
    }
}

impl<M: Metric> Compress for LowRank<M> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check()?;
        group.channels()?;
        let weighing = self.metric.weighing(&group.calibration, group.par)?;
        let (weighing, reason) = weighing.or_else(|_| Weighing::plain());
        let note = reason.as_deref().map(without_metric);
        let factor = |target: &Target<'_>| {
            let layer = self.factor(target, &weighing, &group).in_tensor(target.name)?;
            Ok(layer.with_note(note.clone()).with_note(weighing.note.clone()))
        };
        let layers = group.targets.iter().map(factor).collect::<Result<_>>()?;
        Ok(CompressedGroup::new(layers))
    }

    fn rates(&self, group: Group<'_>) -> Result<Vec<RateCurve>> {
        self.check()?;
        group.channels()?;
        let weighing = self.metric.weighing(&group.calibration, group.par)?;
        let (weighing, _) = weighing.or_else(|_| Weighing::plain());
        let curve =
            |target: &Target<'_>| self.curve(target, &weighing, &group).in_tensor(target.name);
        group.targets.iter().map(curve).collect()
    }
}

/// Truncated SVD: the closest matrix of this rank.
///
/// ```
/// use tensorpress_lowrank::{Rank, svd};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = svd(Rank::Number(8)).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn svd(rank: Rank) -> LowRank<Plain> {
    LowRank::new(Plain, rank)
}

/// ASVD (Yuan et al., *Activation-aware Singular Value Decomposition*, 2023): inputs scaled by how active they are.
#[must_use]
pub fn asvd(rank: Rank, alpha: f32) -> LowRank<InputScale> {
    LowRank::new(InputScale { alpha, ..InputScale::default() }, rank)
}

/// SVD-LLM (Wang et al., *Truncation-aware Singular Value Decomposition*, 2024): whitened inputs, so that each singular
/// value is the output error of dropping it.
///
/// ```
/// use tensorpress_lowrank::{Rank, svd_llm};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = svd_llm(Rank::Ratio(0.5)).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn svd_llm(rank: Rank) -> LowRank<InputGram> {
    LowRank::new(InputGram, rank)
}

/// LoRD (Kaushal et al., *Low Rank Decomposition of Monolingual Code LLMs for One-Shot Compression*, 2023): outputs
/// projected on the leading eigenvectors of their second moments. The same product as [`svd_llm`], whose whitening cancels
/// out, by the identity in this crate's notes.
#[must_use]
pub fn lord(rank: Rank) -> LowRank<InputGram> {
    LowRank { id: "lord", ..svd_llm(rank) }
}

/// LLM-ROM (Chavan et al., *Rethinking Compression: Reduced Order Modelling of Latent Features in Large Language Models*,
/// 2023): [`lord`] layer by layer, each on what the ones before it have become.
///
/// ```
/// use tensorpress_lowrank::{Rank, lord, rom};
/// use tensorpress_tensor::Method;
///
/// assert!(rom(Rank::default()).needs().true_sequential);
/// assert!(!lord(Rank::default()).needs().true_sequential);
/// ```
#[must_use]
pub fn rom(rank: Rank) -> LowRank<SequentialGram> {
    LowRank::new(SequentialGram, rank)
}

/// Feature mimicking (Yu and Wu, *Unified Low-rank Compression Framework for Click-through Rate Prediction*, 2024):
/// [`lord`] on outputs less their mean, which a bias carries.
#[must_use]
pub fn feature_mimicking(rank: Rank) -> LowRank<InputCovariance> {
    LowRank::new(InputCovariance, rank)
}

/// EoRA (Liu et al., *Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation*, 2024):
/// [`svd_llm`] of what a compressed matrix left over, in f32 factors, whatever they cost.
///
/// ```
/// use tensorpress_lowrank::eora;
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = eora(4).compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn eora(rank: usize) -> LowRank<InputGram> {
    let correction = svd_llm(Rank::Number(rank)).with_always(true);
    LowRank { id: "eora", ..correction.with_factors(Factors::Float(DType::F32)) }
}
