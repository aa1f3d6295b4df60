use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{Calibration, CrossGram, Gram, Needs};
use tensorpress_tensor::{Error, ErrorKind, Result, Usable};

use crate::aim::{Aim, Ask};
use crate::drift::Drift;
use crate::lowrank::LowRank;
use crate::metric::{Metric, Weighing, root_of};
use crate::project::Solver;
use crate::rank::Rank;

/// The error of the outputs on the inputs x̂ that compressed layers make, both against W x̂ and against W x, what the
/// original model's input x gives: ‖(Ŵ - W) X̂‖² + α ‖Ŵ X̂ - W X‖² (SAES-SVD: Hu et al., 2026).
///
/// With H = X̂X̂ᵀ, D = (X - X̂)X̂ᵀ and b = α / (1 + α) that is, but for a constant, 1 + α times the error of the one matrix
/// W' = W + b W D H⁻¹ in the metric of H. So W' is factored as [`crate::svd_llm`] factors W.
///
/// ```
/// use tensorpress_lowrank::{DriftedGram, Metric};
/// use tensorpress_tensor::stats::{CrossGram, Gram};
///
/// let needs = DriftedGram::default().with_beta(Some(0.5)).needs();
/// assert!(needs.has::<Gram>() && needs.has::<CrossGram>() && needs.true_sequential);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct DriftedGram {
    /// b, 0 (W alone) to 1 (the original outputs alone). Default none: for each matrix the one, up to [`Self::most`], at
    /// which the largest share of ‖W' S‖² lies in as many directions as are kept.
    pub beta: Option<f32>,
    /// The largest b that is chosen. Default 0.5, as the drift is estimated from few tokens.
    pub most: f32,
    /// What is added to each entry of H's diagonal where H is inverted, a fraction of it. Default 0.01.
    pub damp: f32,
}

impl Default for DriftedGram {
    fn default() -> Self {
        Self { beta: None, most: 0.5, damp: 0.01 }
    }
}

impl DriftedGram {
    /// Sets b, or that it is chosen.
    #[must_use]
    pub fn with_beta(mut self, beta: Option<f32>) -> Self {
        self.beta = beta;
        self
    }

    /// Sets the largest b that is chosen.
    #[must_use]
    pub fn with_most(mut self, most: f32) -> Self {
        self.most = most;
        self
    }

    /// Sets the damping of H.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// The b that a matrix is factored with at this rank, 0 where nothing is known of drift.
    ///
    /// # Errors
    /// `MissingCalibration` without a Gram matrix, `ShapeMismatch`, `InvalidArgument`.
    pub fn beta_of(
        &self,
        weight: ArrayView2<'_, f32>,
        calibration: &Calibration,
        rank: Rank,
        par: Par,
    ) -> Result<f32> {
        rank.check()?;
        match self.weighing(calibration, par)? {
            Usable::Yes(Weighing { root, aim: Aim::Drift(drift), .. }) => {
                let ask = Ask { rank, solver: Solver::default(), seed: 0, par };
                let (weight, along) = (weight.to_owned(), drift.along(weight, par)?);
                Ok(Usable::of(drift.beta(&weight, &along, &root, ask))?.or_else(|_| 0.0).0)
            }
            _ => Ok(0.0),
        }
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [("beta", self.beta.unwrap_or(0.0)), ("most", self.most)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 0 to 1")));
            }
        }
        match self.damp.is_finite() && self.damp >= 0.0 {
            true => Ok(()),
            false => Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp))),
        }
    }

    /// (H + damp)⁻¹ Dᵀ `[in, in]`, the transpose of what W is multiplied by.
    fn shift(&self, gram: &Array2<f32>, cross: &Array2<f32>, par: Par) -> Result<Array2<f32>> {
        if cross.dim() != gram.dim() {
            let message = format!(
                "a cross-Gram matrix {:?} beside a Gram matrix {:?}",
                cross.dim(),
                gram.dim()
            );
            return Err(Error::shape(message));
        }
        let mut damped = gram.mapv(f64::from);
        // An input that is always 0 has no row in Dᵀ either.
        let entry = |h: f64| if h > 0.0 { h * (1.0 + f64::from(self.damp)) } else { 1.0 };
        damped.diag_mut().mapv_inplace(entry);
        let inverse = linalg::damped_inverse_factor(damped, 0.0, par)?.factor;
        let difference = (cross - gram).mapv(f64::from);
        let (mut half, mut whole) = (Array2::zeros(gram.dim()), Array2::zeros(gram.dim()));
        linalg::matmul(inverse.view(), difference.view(), half.view_mut(), false, par);
        linalg::matmul_tn(inverse.view(), half.view(), whole.view_mut(), false, par);
        match whole.iter().all(|v| v.is_finite() && v.abs() < f64::from(f32::MAX)) {
            true => Ok(whole.mapv(|v| v as f32)),
            false => Err(Error::numerical("its drift is beyond f32")),
        }
    }
}

impl Metric for DriftedGram {
    fn id(&self) -> &'static str {
        "saes_svd"
    }

    fn needs(&self) -> Needs {
        (Needs::GRAM | Needs::of::<CrossGram>()).true_sequentially()
    }

    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "how far outputs are drawn to those of the original model, 0 to 1; chosen for each matrix unless said";
        keys.optional_float("beta", &mut self.beta, 0.0..=1.0, about)?;
        keys.float("most", &mut self.most, 0.0..=1.0, "the largest beta that is chosen")?;
        let about = "added to the diagonal of the Gram matrix, in proportion to each entry";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }

    fn weighing(&self, calibration: &Calibration, par: Par) -> Result<Usable<Weighing>> {
        self.check()?;
        let (gram, root) = match calibration.usable::<Gram>()? {
            Usable::Yes(gram) => (gram, root_of(gram.clone(), par)),
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let cross = match calibration.usable::<CrossGram>() {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => Usable::no(e.message()),
            cross => cross?,
        };
        let shift = match cross {
            Usable::Yes(cross) => Usable::of(self.shift(gram, cross, par))?,
            Usable::No(reason) => Usable::No(reason),
        };
        let weighing = |root| Weighing::new(root).with_tokens(calibration.tokens());
        Ok(root.map(|root| match shift {
            Usable::Yes(transposed) => {
                let drift = Drift::new(transposed, self.beta, self.most);
                weighing(root).with_aim(Aim::Drift(drift))
            }
            Usable::No(reason) => {
                weighing(root).with_note(Some(format!("{reason}: no correction of drift")))
            }
        }))
    }
}

/// SAES-SVD (Hu et al., *Self-Adaptive Suppression of Accumulated and Local Errors for SVD-based LLM Compression*, 2026):
/// [`crate::svd_llm`] of a matrix that also makes good for what compressed layers before did to the inputs. See
/// [`DriftedGram`]. Where nothing says what the original inputs were it is [`crate::svd_llm`], and says so.
///
/// ```
/// use tensorpress_lowrank::{Rank, saes_svd};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::{Calibration, CrossGram}};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let original = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let drifted = original.mapv(|x| 0.9 * x + 0.1 * x.abs());
/// let cross = drifted.t().dot(&original);
/// let calibration = Calibration::from_samples(drifted, Par::Seq).with::<CrossGram>(cross);
/// let made = saes_svd(Rank::Ratio(0.5)).compress(weight.view(), &calibration)?;
/// assert_eq!((made.node.shape(), made.fallback), ([16, 64], None));
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn saes_svd(rank: Rank) -> LowRank<DriftedGram> {
    LowRank::new(DriftedGram::default(), rank)
}
