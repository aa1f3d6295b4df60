use tensorpress_tensor::linalg::{self, Par, Triangle};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis};
use tensorpress_tensor::obs::{Damping, Factor};
use tensorpress_tensor::stats::{Calibration, Supply};
use tensorpress_tensor::{ErrorKind, Result, Target, Usable};

/// T with T Tᵀ = G, the Fisher matrix of a matrix's outputs ([`Supply::OUTPUT_FISHER`]), damped and so never singular, its
/// mean diagonal entry 1: an error E of the weights costs tr(G E H Eᵀ) = ‖Tᵀ E S‖².
///
/// The best factors by that cost (Eckart and Young) are those of Tᵀ W by S alone, taken back by T⁻ᵀ: whatever is factored,
/// and by whichever directions, it is done to Tᵀ W in the place of W.
#[derive(Debug)]
pub(crate) struct Outputs {
    root: Root,
    /// What G was divided by: nats a token.
    pub(crate) unit: f64,
}

#[derive(Debug)]
enum Root {
    /// Upper triangular.
    Full(Array2<f32>),
    Diagonal(Vec<f32>),
}

impl Outputs {
    /// What a target asks for ([`Target::rows`]), which is told what came of it; none where nothing is asked, or known.
    pub(crate) fn of(
        target: &Target<'_>,
        calibration: &Calibration,
        par: Par,
    ) -> Result<Option<Self>> {
        let Some(asked) = target.rows else { return Ok(None) };
        let supplied = match calibration.supplied(Supply::OUTPUT_FISHER, target, par) {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => Usable::no(e.message()),
            supplied => Usable::of(supplied)?,
        };
        let (news, outputs) =
            match supplied.and_then(|g| Self::from_fisher(g.view(), asked.damp(), par)) {
                Usable::Yes((outputs, news)) => (news, Some(outputs)),
                Usable::No(reason) => (Some(alike(&reason)), None),
            };
        asked.say(news);
        Ok(outputs)
    }

    /// By G `[out, out]` or its diagonal `[1, out]`.
    fn from_fisher(g: ArrayView2<'_, f32>, damp: f64, par: Par) -> Usable<(Self, Option<String>)> {
        const WHAT: &str = "output Fisher matrix";
        let diagonal = if g.is_square() { g.diag() } else { g.row(0) };
        let unit = diagonal.iter().map(|v| f64::from(*v)).sum::<f64>() / g.ncols().max(1) as f64;
        if !(unit.is_finite() && unit > 0.0) {
            return Usable::no(format!("its {WHAT} is 0"));
        }
        if !g.is_square() {
            // Damping in proportion would multiply all alike.
            let root = g.iter().map(|v| (f64::from(v.max(0.0)) / unit + FAINT).sqrt() as f32);
            return Usable::Yes((Self { root: Root::Diagonal(root.collect()), unit }, None));
        }
        match Factor::of(WHAT, g, 1.0 / unit, damp, Damping::Each, par) {
            Ok(Factor { unit: mut root, pivots, note, .. }) => {
                for (mut column, pivot) in root.columns_mut().into_iter().zip(pivots) {
                    column.mapv_inplace(|v| (f64::from(v) * pivot.sqrt()) as f32);
                }
                Usable::Yes((Self { root: Root::Full(root), unit }, note))
            }
            Err(e) => Usable::no(e.message()),
        }
    }

    /// Tᵀ M for M `[out, any]`.
    pub(crate) fn before(&self, m: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
        match &self.root {
            Root::Full(root) => {
                let mut seen = Array2::zeros(m.dim());
                linalg::matmul_tn(root.view(), m, seen.view_mut(), false, par);
                seen
            }
            Root::Diagonal(root) => rows_by(m, |row| f64::from(root[row])),
        }
    }

    /// T⁻ᵀ M: the inverse of [`Outputs::before`].
    pub(crate) fn back(&self, m: ArrayView2<'_, f32>, par: Par) -> Result<Array2<f32>> {
        match &self.root {
            Root::Full(root) => {
                // What single precision would add grows with how much more some outputs cost than others.
                let (root, mut solved) = (root.mapv(f64::from), m.mapv(f64::from));
                linalg::solve_triangular(root.t(), Triangle::Lower, solved.view_mut(), par)?;
                Ok(solved.mapv(|v| v as f32))
            }
            Root::Diagonal(root) => Ok(rows_by(m, |row| 1.0 / f64::from(root[row]))),
        }
    }
}

/// That G does not count, and why.
pub(crate) fn alike(reason: &str) -> String {
    format!("{reason}: errors of all outputs count alike")
}

/// What an output that nothing was seen to depend on still costs, of the mean.
const FAINT: f64 = 1e-4;

fn rows_by(m: ArrayView2<'_, f32>, factor: impl Fn(usize) -> f64) -> Array2<f32> {
    let mut scaled = m.to_owned();
    for (row, mut values) in scaled.axis_iter_mut(Axis(0)).enumerate() {
        let factor = factor(row);
        values.mapv_inplace(|v| (f64::from(v) * factor) as f32);
    }
    scaled
}
