use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, Axis};
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{Calibration, Gram, Needs, SampledRows};
use tensorpress_tensor::{Error, Result, Usable};

use crate::aim::{Aim, Ask};
use crate::factors::Factors;
use crate::lowrank::LowRank;
use crate::metric::{Metric, Root, Weighing, root_of};
use crate::project::{exponent, scaled};
use crate::rank::Rank;

/// Directions of the outputs that batches of tokens agree on (Dobi-SVD: Wang et al., 2025): with V_b the leading right
/// singular vectors of the outputs A_b = X_b Wᵀ of batch b, those of Σ V_b V_bᵀ, the principal components of all V_b.
///
/// Each direction of a batch counts once, however loud the batch is: [`crate::lord`] takes those of Σ A_bᵀA_b, in which
/// loud batches and directions weigh more. Those too few batches vote for are filled up as [`crate::lord`] does.
///
/// ```
/// use tensorpress_lowrank::{Metric, OutputBatches};
/// use tensorpress_tensor::stats::SampledRows;
///
/// assert!(OutputBatches::default().with_rows(512).needs().has::<SampledRows>());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutputBatches {
    /// Sampled tokens. Default 2048.
    pub rows: usize,
    /// Tokens of a batch. Default 256.
    pub batch: usize,
}

impl Default for OutputBatches {
    fn default() -> Self {
        Self { rows: 2048, batch: 256 }
    }
}

impl OutputBatches {
    /// Sets how many tokens are sampled.
    #[must_use]
    pub fn with_rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// Sets the tokens of a batch.
    #[must_use]
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }
}

impl Metric for OutputBatches {
    fn id(&self) -> &'static str {
        "dobi_svd"
    }

    fn needs(&self) -> Needs {
        Needs::GRAM | Needs::samples(self.rows)
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("rows", &mut self.rows, 1..=1 << 20, "sampled tokens")?;
        keys.int("batch", &mut self.batch, 1..=1 << 20, "tokens of a batch, whose directions vote")
    }

    fn weighing(&self, calibration: &Calibration, par: Par) -> Result<Usable<Weighing>> {
        if self.rows == 0 {
            return Err(Error::invalid("rows = 0: allowed are 1 and more"));
        }
        let empty = Batches::new(Array2::zeros((0, 0)), self.batch)?;
        let both = calibration.usable::<Gram>()?.and(calibration.usable::<SampledRows>()?);
        Ok(both.and_then(|(gram, samples)| {
            let batches = Batches { samples: samples.clone(), ..empty };
            let weighing = |root| Weighing::new(root).with_tokens(calibration.tokens());
            root_of(gram.clone(), par).map(|root| weighing(root).with_aim(Aim::Batches(batches)))
        }))
    }
}

/// Sampled inputs `[tokens, in]`, in batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Batches {
    samples: Array2<f32>,
    batch: usize,
}

impl Batches {
    /// Of these samples, so many tokens a batch.
    ///
    /// # Errors
    /// `InvalidArgument` for batches of no token.
    pub fn new(samples: Array2<f32>, batch: usize) -> Result<Self> {
        match batch {
            0 => Err(Error::invalid("batch = 0: allowed are 1 and more")),
            _ => Ok(Self { samples, batch }),
        }
    }
}

/// Directions of a batch whose singular value is less than this part of the largest are rounding errors.
const FAINT: f64 = 1e-5;
/// What all outputs together weigh beside one vote of a batch: they only choose among what no batch votes on.
const TOGETHER: f64 = 1e-4;

impl Batches {
    /// Σ V_b V_bᵀ `[out, out]`, and how many of its leading singular vectors are kept: those each batch votes on.
    pub(crate) fn directions(
        &self,
        weight: &Array2<f32>,
        root: &Root,
        ask: Ask,
    ) -> Result<Usable<(Array2<f32>, usize)>> {
        let (out, inp) = weight.dim();
        if self.samples.ncols() != inp {
            let inputs = self.samples.ncols();
            return Err(Error::shape(format!("samples of {inputs} inputs for {inp}")));
        }
        // Of usual sizes, as in a projection.
        let weight = scaled(weight.view(), -exponent(weight.iter()));
        let samples = scaled(self.samples.view(), -exponent(self.samples.iter()));
        let seen = root.apply(scaled(weight.view(), -root.exponent()).view(), ask.par)?;
        let leading = |m: &Array2<f32>, rank: Rank| {
            let found = ask.solver.directions(m.view(), rank, ask.seed, ask.par);
            Ok::<_, Error>(Usable::of(found)?.map(|(directions, _)| directions))
        };
        let rank = match ask.rank.of_shape([out, inp]) {
            Some(rank) => rank,
            None => match leading(&seen, ask.rank)? {
                Usable::Yes(directions) => directions.ncols(),
                Usable::No(reason) => return Ok(Usable::No(reason)),
            },
        };
        let mut votes = Array2::<f64>::zeros((out, out));
        for rows in samples.axis_chunks_iter(Axis(0), self.batch) {
            let mut outputs = Array2::zeros((out, rows.nrows()));
            linalg::matmul_nt(weight.view(), rows, outputs.view_mut(), false, ask.par);
            match leading(&outputs, Rank::Number(rank))? {
                Usable::Yes(directions) => {
                    add(&mut votes, &loud(directions, &outputs, ask.par), 1.0, ask.par);
                }
                Usable::No(reason) => return Ok(Usable::No(reason)),
            }
        }
        let all: f64 = seen.iter().map(|v| f64::from(*v).powi(2)).sum();
        if all.is_finite() && all > 0.0 {
            add(&mut votes, &seen, TOGETHER / all, ask.par);
        }
        Ok(Usable::Yes((votes.mapv(|v| v as f32), rank)))
    }
}

/// Adds m mᵀ, so many times.
fn add(votes: &mut Array2<f64>, m: &Array2<f32>, times: f64, par: Par) {
    let m = m.mapv(|v| f64::from(v) * times.sqrt());
    linalg::matmul_nt(m.view(), m.view(), votes.view_mut(), true, par);
}

/// The directions in which outputs are more than rounding errors.
fn loud(directions: Array2<f32>, outputs: &Array2<f32>, par: Par) -> Array2<f32> {
    let mut along = Array2::zeros((directions.ncols(), outputs.ncols()));
    linalg::matmul_tn(directions.view(), outputs.view(), along.view_mut(), false, par);
    let size =
        |row: ArrayView1<'_, f32>| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let sizes: Vec<f64> = along.rows().into_iter().map(size).collect();
    let most = sizes.iter().copied().fold(0.0, f64::max);
    let kept: Vec<usize> = (0..sizes.len()).filter(|i| sizes[*i] > FAINT * most).collect();
    directions.select(Axis(1), &kept)
}

/// Dobi-SVD (Wang et al., *Differentiable SVD for LLM Compression and Some New Perspectives*, 2025): outputs truncated to
/// the directions of [`OutputBatches`], factors remapped ([`Factors::Remapped`]): a rank of (1 - ratio) min(out, in).
///
/// ```
/// use tensorpress_lowrank::{Rank, dobi_svd};
/// use tensorpress_tensor::{Compress, DType, DynCompress, Group, Node, Storage, Target};
/// use tensorpress_tensor::{linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((96, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let target = Target::new("w", weight.view()).with_dtype(DType::F16);
/// let group = Group::single(target, Calibration::from_samples(inputs, Par::Seq));
/// let made = dobi_svd(Rank::Ratio(0.5)).compress_group(group)?;
/// // Half of 96 x 64 16-bit numbers, and a scale for each row of 8-bit ones.
/// assert_eq!(Storage::of(&*made.layers[0].node)?.bytes(), 96 * 64 + 2 * (64 + 32));
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn dobi_svd(rank: Rank) -> LowRank<OutputBatches> {
    LowRank::new(OutputBatches::default(), rank).with_factors(Factors::Remapped)
}

/// A truncation whose position is a real number, so that it has a gradient: singular value i (from 1) is multiplied by
/// t_i = ½ tanh(sharpness (position - i)) + ½ (Dobi-SVD, section 3.2).
///
/// ```
/// use tensorpress_lowrank::SoftTruncation;
///
/// let weights = SoftTruncation::new(2.5, 10.0).weights(4);
/// assert!(weights[1] > 0.999 && weights[2] < 0.001);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SoftTruncation {
    /// Where the truncation is: half of what lies there stays.
    pub position: f64,
    /// How sudden it is; at infinity it is hard.
    pub sharpness: f64,
}

impl SoftTruncation {
    /// A truncation there, so sudden.
    #[must_use]
    pub fn new(position: f64, sharpness: f64) -> Self {
        Self { position, sharpness }
    }

    /// t_1 ... t_n.
    #[must_use]
    pub fn weights(&self, n: usize) -> Vec<f64> {
        (1..=n).map(|i| 0.5 * (self.sharpness * (self.position - i as f64)).tanh() + 0.5).collect()
    }

    /// What is lost of outputs with these singular values, Σ σ_i² (1 - t_i)², and its derivative by the position.
    #[must_use]
    pub fn loss(&self, values: &[f64]) -> (f64, f64) {
        let term = |(t, value): (f64, &f64)| {
            let energy = value * value;
            // dt/dk = ½ sharpness (1 - tanh²) = 2 sharpness t (1 - t).
            let slope = 2.0 * self.sharpness * t * (1.0 - t);
            (energy * (1.0 - t).powi(2), -2.0 * energy * (1.0 - t) * slope)
        };
        let terms = self.weights(values.len()).into_iter().zip(values).map(term);
        terms.fold((0.0, 0.0), |(loss, slope), (l, s)| (loss + l, slope + s))
    }
}
