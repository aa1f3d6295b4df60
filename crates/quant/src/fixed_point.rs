//! Fixed-point words, and how few bits a distribution needs.

use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, Error, Group, Method, Result, Target,
    kernels,
};

use crate::GroupedAffine;

/// A fixed-point number: `code / 2^fraction` with a signed code of `word` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedPoint {
    /// Bits of a code, its sign among them, 2 to 16.
    pub word: u8,
    /// Bits behind the point, -126 to 126; below 0 the last places before it are not stored either.
    pub fraction: i16,
}

impl FixedPoint {
    /// The distance of two numbers.
    #[must_use]
    pub fn step(self) -> f32 {
        2f32.powi(-i32::from(self.fraction))
    }

    /// The nearest code, half to even; the last one for numbers out of range.
    #[must_use]
    pub fn code(self, x: f32) -> i16 {
        let most = f64::from(1i32 << (self.word - 1));
        let code = (f64::from(x) / f64::from(self.step())).round_ties_even();
        code.clamp(-most, most - 1.0) as i16
    }

    /// The nearest number.
    #[must_use]
    pub fn round(self, x: f32) -> f32 {
        f32::from(self.code(x)) * self.step()
    }

    /// The finest of so many bits that holds numbers up to `abs_max` (one that is a power of two itself is a step off).
    #[must_use]
    pub fn holding(word: u8, abs_max: f32) -> Self {
        // 2^exponent is at least the largest magnitude.
        let exponent = if abs_max > 0.0 { f64::from(abs_max).log2().ceil() as i16 } else { 0 };
        Self { word, fraction: (i16::from(word) - 1 - exponent).clamp(-126, 126) }
    }
}

/// PushDown of AdaPT (Kummer et al., 2021): every matrix in the fewest bits of fixed-point words for which the distribution of
/// the rounded weights stays as close to that of the weights as asked, by KL divergence.
///
/// Both distributions are histograms of `resolution` equal bins from the smallest to the largest weight, half a count added
/// to each bin. Words of 2 to 16 bits are tried, the point where the word just holds the largest weight: clipped weights hardly change a
/// distribution, but what the matrix computes.
///
/// ```
/// use tensorpress_quant::AdaPt;
/// use tensorpress_tensor::ndarray::array;
///
/// let weight = array![[0.5, -0.25, 0.75, 0.0]];
/// let (format, divergence) = AdaPt::default().push_down(weight.view())?;
/// assert_eq!((format.word, format.fraction, divergence), (3, 2, 0.0));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct AdaPt {
    /// Divergence, in nats, that must be stayed below. Default 0.01.
    pub divergence: f64,
    /// Bins of the histograms. Default 100.
    pub resolution: usize,
}

impl Default for AdaPt {
    fn default() -> Self {
        Self { divergence: 0.01, resolution: 100 }
    }
}

impl AdaPt {
    /// Sets the divergence that must be stayed below.
    #[must_use]
    pub fn with_divergence(mut self, divergence: f64) -> Self {
        self.divergence = divergence;
        self
    }

    /// Sets the bins.
    #[must_use]
    pub fn with_resolution(mut self, resolution: usize) -> Self {
        self.resolution = resolution;
        self
    }

    /// The format of fewest bits whose divergence is below the one asked for, and its divergence; that of 16 bits where none is.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters out of their range, `Numerical` for weights that are not finite.
    pub fn push_down(&self, weight: ArrayView2<'_, f32>) -> Result<(FixedPoint, f64)> {
        if !(self.divergence > 0.0 && self.divergence.is_finite()) {
            let message = format!("divergence = {}: allowed are positive numbers", self.divergence);
            return Err(Error::invalid(message));
        }
        if !(2..=1 << 16).contains(&self.resolution) {
            let message = format!("resolution = {}: allowed are 2 to 65536", self.resolution);
            return Err(Error::invalid(message));
        }
        Target::new("weight", weight).check_finite()?;
        let weight = weight.as_standard_layout();
        let weight = weight.as_slice().expect("standard layout");
        let (low, high) = if weight.is_empty() { (0.0, 0.0) } else { kernels::minmax(weight) };
        let bins = Bins { low, high, count: self.resolution };
        let before = bins.counts(weight.iter().copied());
        let mut best = (FixedPoint { word: 2, fraction: 0 }, f64::INFINITY);
        for word in 2..=16 {
            let format = FixedPoint::holding(word, low.abs().max(high.abs()));
            let after = bins.counts(weight.iter().map(|w| format.round(*w)));
            best = (format, divergence(&before, &after));
            if best.1 < self.divergence {
                break;
            }
        }
        Ok(best)
    }

    fn round(&self, target: &Target<'_>) -> Result<Compressed<GroupedAffine>> {
        let weight = target.kept_weight();
        let (format, divergence) = self.push_down(weight.view()).in_tensor(target.name)?;
        let (shape, group) = ([weight.nrows(), weight.ncols()], weight.ncols().max(1));
        let zero = 1i32 << (format.word - 1);
        let codes: Vec<u16> =
            weight.iter().map(|w| (i32::from(format.code(*w)) + zero) as u16).collect();
        let (scales, zeros) = (vec![format.step()], [zero as u16]);
        let node = if format.word <= 8 {
            let codes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
            let zeros = zeros.map(|zero| zero as u8);
            GroupedAffine::from_codes(
                shape,
                format.word,
                group,
                &codes,
                scales,
                DType::F32,
                &zeros,
            )?
        } else {
            GroupedAffine::from_codes(
                shape,
                format.word,
                group,
                &codes,
                scales,
                DType::F32,
                &zeros,
            )?
        };
        let missed = (divergence >= self.divergence).then(|| {
            format!("divergence {divergence:.3e} with words of 16 bits: more than was asked")
        });
        Ok(Compressed::new(node).with_fallback(missed))
    }
}

/// How much gradients that came one after another agree: the sum of their squared norms over the squared norm of their sum
/// (AdaPT's PushUp reads from it how many bits to keep in reserve). 1 / n for n equal ones, 1 for orthogonal ones, infinite
/// where they cancel; 0 / 0 counts as 1.
///
/// # Errors
/// `ShapeMismatch` if they differ in shape, `InvalidArgument` if there is none, `Numerical` if one is not finite.
pub fn gradient_diversity(gradients: &[ArrayView2<'_, f32>]) -> Result<f64> {
    let Some(first) = gradients.first() else {
        return Err(Error::invalid("diversity of no gradients"));
    };
    let (mut sum, mut squares) = (first.mapv(|_| 0f64), 0.0);
    for gradient in gradients {
        if gradient.dim() != first.dim() {
            let message = format!("gradients {:?} and {:?}", first.dim(), gradient.dim());
            return Err(Error::shape(message));
        }
        Target::new("gradient", gradient.view()).check_finite()?;
        sum.zip_mut_with(gradient, |sum, g| *sum += f64::from(*g));
        squares += gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    }
    let whole: f64 = sum.iter().map(|v| v * v).sum();
    Ok(if squares == 0.0 { 1.0 } else { squares / whole })
}

/// Equal bins from the smallest to the largest number.
struct Bins {
    low: f32,
    high: f32,
    count: usize,
}

impl Bins {
    fn counts(&self, values: impl Iterator<Item = f32>) -> Vec<u64> {
        let (low, width) = (f64::from(self.low), f64::from(self.high) - f64::from(self.low));
        let mut counts = vec![0u64; self.count];
        for value in values {
            let place = (f64::from(value) - low) / width * self.count as f64;
            // Of a constant matrix all lies in the first.
            let bin = if place >= 0.0 { (place as usize).min(self.count - 1) } else { 0 };
            counts[bin] += 1;
        }
        counts
    }
}

/// KL divergence of two histograms of as many numbers, half a count added to each bin.
fn divergence(p: &[u64], q: &[u64]) -> f64 {
    let total = p.iter().sum::<u64>() as f64 + 0.5 * p.len() as f64;
    let one = |(p, q): (&u64, &u64)| {
        let (p, q) = (*p as f64 + 0.5, *q as f64 + 0.5);
        p / total * (p / q).ln()
    };
    p.iter().zip(q).map(one).sum::<f64>().max(0.0)
}

impl Knobs for AdaPt {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "divergence of the rounded weights' distribution that is stayed below, in nats";
        keys.float("divergence", &mut self.divergence, 1e-9..=100.0, about)?;
        let about = "bins of the histograms that are compared";
        keys.int("resolution", &mut self.resolution, 2..=1 << 16, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about =
        "fixed-point words of as few bits as keep the weights' distribution; needs no calibration";
    Row::method("adapt", about, AdaPt::default)
}

impl Method for AdaPt {
    fn id(&self) -> &'static str {
        "adapt"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl Compress for AdaPt {
    type Node = GroupedAffine;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<GroupedAffine>> {
        let mut layers: Vec<_> = group.targets.iter().map(|_| None).collect();
        let work = group.targets.iter().zip(&mut layers);
        group.par.for_each(work, |(target, layer)| *layer = Some(self.round(target)));
        let layers = layers.into_iter().map(|layer| layer.expect("each is rounded"));
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}
