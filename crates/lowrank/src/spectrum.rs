use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{DType, Error, Result, Target, Usable};

use crate::levels::Level;
use crate::metric::{Metric, Weighing};
use crate::project::{exponent, power_of_two, scaled};

/// The singular values of W S, by which ranks are chosen over several matrices: each is what dropping its direction
/// loses by the metric.
///
/// ```
/// use tensorpress_lowrank::{InputGram, Spectrum};
/// use tensorpress_tensor::{linalg::Par, ndarray::array, stats::Calibration};
///
/// let weight = array![[3.0f32, 0.0], [0.0, 1.0]];
/// let inputs = array![[1.0f32, 0.0], [0.0, 4.0]];
/// let calibration = Calibration::from_samples(inputs, Par::Seq);
/// let spectrum = Spectrum::of(weight.view(), &InputGram, &calibration, Par::Seq)?;
/// assert!((spectrum.values()[0] - 4.0).abs() < 1e-5 && (spectrum.values()[1] - 3.0).abs() < 1e-5);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    shape: [usize; 2],
    values: Vec<f64>,
}

impl Spectrum {
    /// Of a matrix of this shape, `[out, in]`: at most min(out, in) values, falling, not negative.
    ///
    /// # Errors
    /// `ShapeMismatch` for more values, `Numerical` for others.
    pub fn new(shape: [usize; 2], values: Vec<f64>) -> Result<Self> {
        let full = shape[0].min(shape[1]);
        if values.len() > full {
            let message = format!("{} singular values of a {shape:?} matrix", values.len());
            return Err(Error::shape(message));
        }
        let falls = values.windows(2).all(|pair| pair[0] >= pair[1]);
        match falls && values.iter().all(|v| v.is_finite() && *v >= 0.0) {
            true => Ok(Self { shape, values }),
            false => {
                Err(Error::numerical("singular values must be finite, not negative, and fall"))
            }
        }
    }

    /// Of W S, S the metric's root; of W itself where its statistics cannot be used. All values, from an exact
    /// decomposition.
    ///
    /// # Errors
    /// Those of the metric; `Numerical` for weights that are not finite, or without convergence.
    pub fn of(
        weight: ArrayView2<'_, f32>,
        metric: &dyn Metric,
        calibration: &Calibration,
        par: Par,
    ) -> Result<Self> {
        Target::new("weight", weight).check_finite()?;
        let (weighing, _) = metric.weighing(calibration, par)?.or_else(|_| Weighing::plain());
        let at = |weighing: &Weighing| {
            let exponents = exponent(weight.iter()) + weighing.root.exponent();
            let seen = weighing.root.apply(scaled(weight, -exponents).view(), par)?;
            let values = linalg::svd(seen.view())?.s;
            let back = power_of_two(exponents);
            Ok::<_, Error>(values.iter().map(|v| f64::from(*v) * back).collect())
        };
        let values = match Usable::of(at(&weighing))? {
            Usable::Yes(values) => values,
            Usable::No(_) => at(&Weighing::plain())?,
        };
        Self::new([weight.nrows(), weight.ncols()], values)
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The values, falling.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// min(out, in).
    #[must_use]
    pub fn full(&self) -> usize {
        self.shape[0].min(self.shape[1])
    }

    /// Every rank with what its factors take in this type and what they lose, Σ_{i > rank} σ_i²; and the matrix itself, at
    /// full rank, in place of those that would not be smaller. What a sensitivity sweep or a knapsack over all
    /// matrices chooses from (LoRD: Kaushal et al., 2023; Dobi-SVD: Wang et al., 2025).
    #[must_use]
    pub fn levels(&self, dtype: DType) -> Vec<Level<usize>> {
        let [out, inp] = self.shape;
        let bytes = |numbers: usize| (numbers * dtype.size()) as u64;
        self.levels_of(bytes(out + inp), bytes(out * inp))
    }

    /// The same where a direction takes so many bytes, and the matrix.
    pub(crate) fn levels_of(&self, direction: u64, dense: u64) -> Vec<Level<usize>> {
        let bytes = |rank: usize| rank as u64 * direction;
        // Sums from the smallest on, which none of the large ones drowns.
        let mut lost = vec![0.0; self.values.len() + 1];
        for (i, value) in self.values.iter().enumerate().rev() {
            lost[i] = lost[i + 1] + value * value;
        }
        let error = |rank: usize| lost.get(rank).copied().unwrap_or(0.0);
        let smaller = (1..self.full()).take_while(|rank| bytes(*rank) < dense);
        let mut levels: Vec<_> =
            smaller.map(|rank| Level::new(rank, bytes(rank), error(rank))).collect();
        levels.push(Level::new(self.full(), dense, 0.0));
        levels
    }
}

/// What [`welore`] chooses.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NormalisedRanks {
    /// Values above it, in parts of each matrix's largest, are kept.
    pub threshold: f64,
    /// Directions of each matrix that are above it, at least 1.
    pub counts: Vec<usize>,
    /// The rank of each matrix that is factored; none where it stays dense, as half of the full rank or more is above.
    pub ranks: Vec<Option<usize>>,
}

/// The data-free choice of ranks of WeLore (Jaiswal et al., *From GaLore to WeLore: How Low-Rank Weights Non-uniformly
/// Emerge from Low-Rank Gradients*, 2024): one threshold for all matrices on singular values in parts of each one's
/// largest, the smallest above which a fraction `kept` of all directions lies; matrices whose values fall fast get low
/// ranks, others stay as they are.
///
/// ```
/// use tensorpress_lowrank::{Spectrum, welore};
///
/// let falls = Spectrum::new([4, 4], vec![8.0, 1.0, 0.5, 0.1])?;
/// let flat = Spectrum::new([4, 4], vec![0.4, 0.4, 0.3, 0.3])?;
/// let chosen = welore(&[falls, flat], 0.625)?;
/// assert_eq!(chosen.counts, [1, 4]);
/// assert_eq!(chosen.ranks, [Some(1), None]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` unless 0 < kept <= 1.
pub fn welore(spectra: &[Spectrum], kept: f64) -> Result<NormalisedRanks> {
    if !(kept > 0.0 && kept <= 1.0) {
        return Err(Error::invalid(format!("kept = {kept}: allowed are above 0, to 1")));
    }
    let normalised = |spectrum: &Spectrum| -> Vec<f64> {
        let most = spectrum.values.first().copied().unwrap_or(0.0);
        spectrum.values.iter().map(|v| if most > 0.0 { v / most } else { 0.0 }).collect()
    };
    let parts: Vec<Vec<f64>> = spectra.iter().map(normalised).collect();
    let full: usize = spectra.iter().map(Spectrum::full).sum();
    let count = (kept * full as f64 + 1e-9) as usize;
    let mut all: Vec<f64> = parts.iter().flatten().copied().collect();
    all.sort_by(|a, b| b.total_cmp(a));
    // What lies strictly above the next one.
    let threshold = all.get(count).copied().unwrap_or(-1.0);
    let above = |parts: &Vec<f64>| parts.iter().filter(|v| **v > threshold).count().max(1);
    let counts: Vec<usize> = parts.iter().map(above).collect();
    let rank =
        |(count, spectrum): (&usize, &Spectrum)| (2 * count < spectrum.full()).then_some(*count);
    let ranks = counts.iter().zip(spectra).map(rank).collect();
    Ok(NormalisedRanks { threshold: threshold.max(0.0), counts, ranks })
}
