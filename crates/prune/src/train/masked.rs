use tensorpress_tensor::ndarray::{Array2, ArrayView2, Zip};
use tensorpress_tensor::node::Mask;
use tensorpress_tensor::{Error, Result};

use crate::pattern::Pattern;

/// The support of a weight in training: chosen anew from time to time, while masked weights stay in memory and may come
/// back.
///
/// Passes through it, M the support as 0 and 1:
/// - forward W ∘ (M + β (1 - M)): β = 0 is a plain mask; β that decays from 1 to 0 lets gradients flow to the end
///   through what will be gone (Bambhaniya et al., "Progressive Gradient Flow for Robust N:M Sparsity Training in
///   Transformers", 2024);
/// - backward, the gradient by what was used, straight through, plus λ (1 - M) ∘ W (SR-STE: Zhou et al., 2021): what is
///   masked shrinks, and is the less likely to come back. AST (Huang et al., "Pruning Large Language Models with
///   Semi-Structural Adaptive Sparse Training", 2024) lets λ grow from 0, so that masks move freely at first.
///
/// β and λ are numbers of a [`super::Schedule`].
///
/// ```
/// use tensorpress_prune::Pattern;
/// use tensorpress_prune::train::{MaskedWeight, Schedule};
/// use tensorpress_tensor::ndarray::array;
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let mut w = array![[0.1f32, -2.0, 3.0, 0.2]];
/// let mut support = MaskedWeight::new(w.view(), Pattern::nm(2, 4))?;
/// let (beta, decay) = (Schedule::linear(1.0, 0.0), Schedule::linear(0.0, 2e-4));
/// for step in 0..3 {
///     let used = support.forward(w.view(), beta.at(step) as f32)?;
///     let gradient = used.mapv(|w| 0.1 * w); // the trainer's
///     let gradient = support.backward(gradient.view(), w.view(), decay.at(step) as f32)?;
///     w.scaled_add(-0.01, &gradient);
///     support.update(w.view(), Pattern::nm(2, 4))?;
/// }
/// assert_eq!(support.flipped(), 0.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MaskedWeight {
    keep: Array2<bool>,
    first: Array2<bool>,
    flipped: f64,
}

impl MaskedWeight {
    /// The support of the largest weights `[out, in]`.
    ///
    /// # Errors
    /// Those of [`MaskedWeight::update`].
    pub fn new(weight: ArrayView2<'_, f32>, pattern: Pattern) -> Result<Self> {
        let keep = chosen(weight.mapv(f32::abs).view(), pattern)?;
        Ok(Self { first: keep.clone(), keep, flipped: 0.0 })
    }

    /// Chooses the support of the largest weights anew. Weights that were masked compete as all others do.
    ///
    /// # Errors
    /// `InvalidArgument` as [`Pattern::check`]; `ShapeMismatch`; `Numerical` for a weight that is not finite. The
    /// support is then as it was.
    pub fn update(&mut self, weight: ArrayView2<'_, f32>, pattern: Pattern) -> Result<()> {
        self.update_by(weight.mapv(f32::abs).view(), pattern)
    }

    /// Chooses the support of the highest scores anew, of any [`crate::Saliency`].
    ///
    /// # Errors
    /// As [`MaskedWeight::update`].
    pub fn update_by(&mut self, scores: ArrayView2<'_, f32>, pattern: Pattern) -> Result<()> {
        self.fits(scores)?;
        let keep = chosen(scores, pattern)?;
        self.flipped = apart(&keep, &self.keep);
        self.keep = keep;
        Ok(())
    }

    /// The weight as the layer uses it: W ∘ (M + β (1 - M)).
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for a β outside 0 to 1.
    pub fn forward(&self, weight: ArrayView2<'_, f32>, beta: f32) -> Result<Array2<f32>> {
        self.fits(weight)?;
        if !(0.0..=1.0).contains(&beta) {
            return Err(Error::invalid(format!("beta = {beta}: allowed are 0 to 1")));
        }
        let used = |w: &f32, keep: &bool| if *keep { *w } else { beta * w };
        Ok(Zip::from(weight).and(&self.keep).map_collect(used))
    }

    /// The gradient to step by: that by the weight as used, plus λ (1 - M) ∘ W.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for a negative or infinite λ.
    pub fn backward(
        &self,
        gradient: ArrayView2<'_, f32>,
        weight: ArrayView2<'_, f32>,
        decay: f32,
    ) -> Result<Array2<f32>> {
        self.fits(weight)?;
        self.fits(gradient)?;
        if !(decay.is_finite() && decay >= 0.0) {
            return Err(Error::invalid(format!("decay = {decay}: allowed are 0 and more")));
        }
        let step = |g: &f32, w: &f32, keep: &bool| if *keep { *g } else { g + decay * w };
        Ok(Zip::from(gradient).and(weight).and(&self.keep).map_collect(step))
    }

    /// The support.
    #[must_use]
    pub fn mask(&self) -> Mask {
        Mask::from_bools(self.keep.view())
    }

    /// Fraction of the entries whose place in the support the last update changed (AST's flip rate).
    #[must_use]
    pub fn flipped(&self) -> f64 {
        self.flipped
    }

    /// Fraction of the entries that are in the support now and were not at first, or the other way round (AST's initial
    /// flip rate): how far training has explored.
    #[must_use]
    pub fn flipped_since_first(&self) -> f64 {
        apart(&self.keep, &self.first)
    }

    fn fits(&self, of: ArrayView2<'_, f32>) -> Result<()> {
        match of.dim() == self.keep.dim() {
            true => Ok(()),
            false => {
                let (dim, keep) = (of.dim(), self.keep.dim());
                Err(Error::shape(format!("{dim:?} for a support of {keep:?}")))
            }
        }
    }
}

fn chosen(scores: ArrayView2<'_, f32>, pattern: Pattern) -> Result<Array2<bool>> {
    if let Some(((row, col), s)) = scores.indexed_iter().find(|(_, s)| !s.is_finite()) {
        return Err(Error::numerical(format!("the score of weight [{row}, {col}] is {s}")));
    }
    let mask = pattern.select(scores)?;
    Ok(Array2::from_shape_fn(scores.dim(), |(r, c)| mask.keeps(r, c)))
}

fn apart(a: &Array2<bool>, b: &Array2<bool>) -> f64 {
    let flips = a.iter().zip(b).filter(|(a, b)| a != b).count();
    flips as f64 / a.len().max(1) as f64
}

/// Structure decay (Bambhaniya et al., 2024): n:m reached by way of ever sparser patterns of the same m, m-1:m first,
/// then half as many each time: m/2:m, m/4:m, ... n:m.
///
/// ```
/// use tensorpress_prune::Pattern;
/// use tensorpress_prune::train::StructureDecay;
///
/// let decay = StructureDecay::new(1, 8).with_every(100);
/// let at = [0, 100, 200, 300, 1000].map(|step| decay.at(step));
/// assert_eq!(at, [7, 4, 2, 1, 1].map(|n| Pattern::nm(n, 8)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct StructureDecay {
    /// Entries of a group that stay at last.
    pub n: usize,
    /// Entries of a group.
    pub m: usize,
    /// The first step with m-1:m; dense before. Default 0.
    pub begin: u64,
    /// Steps with each pattern. Default 1000.
    pub every: u64,
}

impl StructureDecay {
    /// To n of m.
    pub fn new(n: usize, m: usize) -> Self {
        Self { n, m, begin: 0, every: 1000 }
    }

    /// Sets the first step.
    pub fn with_begin(mut self, begin: u64) -> Self {
        self.begin = begin;
        self
    }

    /// Sets the steps with each pattern.
    pub fn with_every(mut self, every: u64) -> Self {
        self.every = every;
        self
    }

    /// The pattern at this step.
    #[must_use]
    pub fn at(&self, step: u64) -> Pattern {
        let Some(since) = step.checked_sub(self.begin) else {
            return Pattern::nm(self.m, self.m);
        };
        let halved = match since / self.every.max(1) {
            0 => self.m.saturating_sub(1),
            times => self.m.checked_shr(times.min(64) as u32).unwrap_or(0),
        };
        Pattern::nm(halved.max(self.n), self.m)
    }
}
