use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Needs, Supply};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DynCompress, Error, Group, Method, Node, Result,
    RowFeedback, Target,
};

use crate::rtn::Rtn;

/// Two-sided feedback (YAQA; Tseng et al., *Model-preserving adaptive rounding*, 2025): a method that feeds each column's
/// errors to those to come also feeds each row's, so that tr(G E A Eᵀ) is made small in place of tr(E A Eᵀ), with
/// A = E\[x xᵀ] of the inputs and G = E\[g gᵀ] of the gradients of the outputs: the divergence of the model's own
/// predictions to second order.
///
/// With G = U D Uᵀ, U unit upper triangular by bands of rows, a band's target in a column is what the method would round
/// there, less Σ Uₗᵢ (q - t)ₗ of the rows l before it. Every method that sweeps columns takes it (GPTQ, SpQR, SparseGPT, level
/// tables by feedback, blocks of ggml, trellises), and factors of low rank have the least such loss; on others it has no
/// effect, and that is said, as where no gradients are known.
///
/// ```
/// use tensorpress_quant::{Gptq, GridSpec, Yaqa};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let calibration = Calibration::from_samples(inputs, Par::Seq);
/// // Nobody supplies gradients.
/// let made = Yaqa::new(Gptq::new(GridSpec::new(3, 32))).compress(weight.view(), &calibration)?;
/// assert!(made.fallback.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Yaqa<S = Rtn> {
    /// Damping of G, in proportion to each entry of its diagonal. Default 1: G is of a few windows.
    pub damp: f32,
    /// Rounds.
    pub solver: S,
}

impl<S: Default> Default for Yaqa<S> {
    fn default() -> Self {
        Self::new(S::default())
    }
}

impl<S> Yaqa<S> {
    /// Feedback among rows for this method.
    #[must_use]
    pub fn new(solver: S) -> Self {
        Self { damp: 1.0, solver }
    }

    /// Sets the damping of G.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }
}

impl<S> Yaqa<S> {
    /// What `act` makes of the group whose targets ask for it, and what came of that.
    fn asking<T>(
        &self,
        group: Group<'_>,
        act: impl FnOnce(Group<'_>) -> Result<T>,
    ) -> Result<(T, Vec<RowFeedback>)> {
        if !(self.damp.is_finite() && self.damp >= 0.0) {
            return Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)));
        }
        let asked: Vec<RowFeedback> =
            group.targets.iter().map(|_| RowFeedback::new(self.damp.into())).collect();
        let Group { targets, calibration, fold, seed, par } = group;
        let fed = |(target, rows)| Target { rows: Some(rows), ..Target::clone(target) };
        let targets = targets.iter().zip(&asked).map(fed).collect();
        let made = act(Group { targets, calibration, fold, seed, par })?;
        Ok((made, asked))
    }
}

impl<S> Knobs for Yaqa<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about =
            "added to the diagonal of the output Fisher matrix, in proportion to each entry";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "feeds errors among rows too, by the output Fisher matrix, in a method that feeds \
                 them among columns";
    Row::transform("yaqa", about, Yaqa::<Rtn>::default, |knobs, solver| {
        let Some(solver) = solver else { return Ok(None) };
        let fed: Box<dyn DynCompress> = Box::new(Yaqa { damp: knobs.damp, solver });
        Ok(Some(fed))
    })
}

impl<S: Method> Method for Yaqa<S> {
    fn id(&self) -> &'static str {
        "yaqa"
    }

    fn around(&self) -> Option<&dyn Method> {
        Some(&self.solver)
    }

    fn needs(&self) -> Needs {
        self.solver.needs() | Needs::supplied(Supply::OUTPUT_FISHER)
    }
}

impl<S: Compress> Compress for Yaqa<S> {
    type Node = Box<dyn Node>;

    fn rates(&self, group: Group<'_>) -> Result<Vec<RateCurve>> {
        self.asking(group, |group| self.solver.rates(group)).map(|(rates, _)| rates)
    }

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        let (made, asked) = self.asking(group, |group| self.solver.compress_group(group))?;
        let CompressedGroup { layers, folded } = made;
        let layers = layers.into_iter().zip(&asked).map(|(layer, asked)| {
            let unasked = || Some(format!("{} feeds no errors among rows", self.solver.id()));
            let news = asked.outcome().map_or_else(unasked, |news| news.map(str::to_owned));
            Compressed::boxed(layer).with_note(news)
        });
        Ok(CompressedGroup { layers: layers.collect(), folded })
    }
}
