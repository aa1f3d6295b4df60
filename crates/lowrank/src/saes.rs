use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{Calibration, CrossGram, Gram, Needs};
use tensorpress_tensor::{Error, ErrorKind, Result, Usable};

use crate::aim::{Aim, Ask};
use crate::lowrank::LowRank;
use crate::metric::{Metric, Root, Weighing, root_of};
use crate::project::{Solver, exponent, scaled};
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
        Ok(root.map(|root| match shift {
            Usable::Yes(transposed) => {
                let drift = Drift::new(transposed, self.beta, self.most);
                Weighing::new(root).with_aim(Aim::Drift(drift))
            }
            Usable::No(reason) => {
                Weighing::new(root).with_note(Some(format!("{reason}: no correction of drift")))
            }
        }))
    }
}

/// What W is moved by: W + b W M, M = D H⁻¹ `[in, in]`, and how far.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// Mᵀ.
    transposed: Array2<f32>,
    beta: Option<f32>,
    most: f32,
}

impl Drift {
    /// By Mᵀ `[in, in]`, as far as `beta` says, or as [`DriftedGram::beta`] is chosen up to `most`.
    #[must_use]
    pub fn new(transposed: Array2<f32>, beta: Option<f32>, most: f32) -> Self {
        Self { transposed, beta, most }
    }
}

/// Where a b is sought, in parts of the largest, and steps from the best of them.
const STARTS: [f64; 3] = [0.0, 0.5, 1.0];
const STEPS: usize = 10;

impl Drift {
    /// W + b W M.
    pub(crate) fn moved(
        &self,
        weight: &Array2<f32>,
        root: &Root,
        ask: Ask,
    ) -> Result<Usable<Array2<f32>>> {
        let along = self.along(weight.view(), ask.par)?;
        let beta = match Usable::of(self.beta(weight, &along, root, ask))? {
            Usable::Yes(beta) => beta,
            Usable::No(reason) => return Ok(Usable::No(reason)),
        };
        let moved = weight + &(along * beta);
        Ok(match moved.iter().all(|w| w.is_finite()) {
            true => Usable::Yes(moved),
            false => Usable::no("the correction of drift is beyond f32"),
        })
    }

    /// W M.
    fn along(&self, weight: ArrayView2<'_, f32>, par: Par) -> Result<Array2<f32>> {
        let (inputs, cols) = (self.transposed.nrows(), weight.ncols());
        if inputs != cols {
            return Err(Error::shape(format!("statistics of {inputs} inputs for {cols}")));
        }
        let mut along = Array2::zeros(weight.dim());
        linalg::matmul_nt(weight, self.transposed.view(), along.view_mut(), false, par);
        Ok(along)
    }

    fn beta(
        &self,
        weight: &Array2<f32>,
        along: &Array2<f32>,
        root: &Root,
        ask: Ask,
    ) -> Result<f32> {
        match self.beta {
            Some(beta) => Ok(beta),
            None => self.chosen(weight, along, root, ask),
        }
    }

    /// The b with the largest share of ‖G(b)‖² in the directions that are kept, G(b) = (W + b W M) S (adaptive
    /// collaborative error suppression: section 4 there). With directions P held, the share is a ratio of two squares
    /// in b, whose maximum has a closed form; P of the new b then holds no less. So every step climbs.
    fn chosen(
        &self,
        weight: &Array2<f32>,
        along: &Array2<f32>,
        root: &Root,
        ask: Ask,
    ) -> Result<f32> {
        let own = exponent(weight.iter()) + root.exponent();
        let see = |m: &Array2<f32>| root.apply(scaled(m.view(), -own).view(), ask.par);
        let (still, along) = (see(weight)?, see(along)?);
        let all = Square::of(&still, &along);
        let directions = |b: f64, rank: Rank| {
            let at = &still + &(&along * (b as f32));
            ask.solver.directions(at.view(), rank, ask.seed, ask.par).map(|(p, _)| p)
        };
        let rank = Rank::Number(directions(0.0, ask.rank)?.ncols().max(1));
        let most = f64::from(self.most);
        // The best share by the directions at b, and where it is.
        let step = |b: f64| {
            let p = directions(b, rank)?;
            let project = |m: &Array2<f32>| {
                let mut inner = Array2::zeros((p.ncols(), m.ncols()));
                linalg::matmul_tn(p.view(), m.view(), inner.view_mut(), false, ask.par);
                inner
            };
            Ok::<_, Error>(Square::of(&project(&still), &project(&along)).best_share(&all, most))
        };
        let mut best = (f64::NEG_INFINITY, 0.0);
        for start in STARTS {
            let reached = step(start * most)?;
            if reached.0 > best.0 {
                best = reached;
            }
        }
        for _ in 0..STEPS {
            let reached = step(best.1)?;
            let near = (reached.1 - best.1).abs() <= 1e-3 * most;
            if reached.0 > best.0 {
                best = reached;
            }
            if near {
                break;
            }
        }
        Ok(best.1 as f32)
    }
}

/// ‖A + b B‖² = aa + 2 ab b + bb b².
struct Square {
    aa: f64,
    ab: f64,
    bb: f64,
}

impl Square {
    fn of(a: &Array2<f32>, b: &Array2<f32>) -> Self {
        let dot = |x: &Array2<f32>, y: &Array2<f32>| {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        Self { aa: dot(a, a), ab: dot(a, b), bb: dot(b, b) }
    }

    fn at(&self, b: f64) -> f64 {
        self.aa + b * (2.0 * self.ab + b * self.bb)
    }

    /// The largest share of `all` for b from 0 to `most`, and that b; the smallest of equals.
    fn best_share(&self, all: &Self, most: f64) -> (f64, f64) {
        // Where the derivative of the ratio is 0; the cubes cancel.
        let c2 = self.bb * all.ab - self.ab * all.bb;
        let c1 = self.bb * all.aa - self.aa * all.bb;
        let c0 = self.ab * all.aa - self.aa * all.ab;
        let root = (c1 * c1 - 4.0 * c2 * c0).max(0.0).sqrt();
        // Without cancellation, whichever of the two is small.
        let q = -0.5 * (c1 + root.copysign(c1));
        let within = [q / c2, c0 / q].into_iter().filter(|b| *b > 0.0 && *b < most);
        let share = |b: f64| match all.at(b) {
            all if all > 0.0 => self.at(b) / all,
            _ => 1.0,
        };
        let mut best = (share(0.0), 0.0);
        for b in within.chain([most]) {
            if share(b) > best.0 {
                best = (share(b), b);
            }
        }
        best
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
