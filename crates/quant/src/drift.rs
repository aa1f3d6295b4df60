use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{CrossGram, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DynCompress, Error, ErrorKind, Group, Method, Node,
    Result, Target, Usable,
};

use crate::rtn::Rtn;

/// Drift correction before a method: it compresses W + t W (C - A)(A + damp)⁻¹ in place of W, with A = E\[x̂ x̂ᵀ] of the
/// inputs x̂ that the layers before make once they are compressed, and C = E\[x x̂ᵀ], x what the original model's made.
///
/// With t = 1 that is the matrix whose outputs on x̂ are nearest to W x in the mean square: what *GPTAQ* (Li et al., 2025,
/// "asymmetric calibration") and *Qronos* (Zhang et al., 2025) round. Half of it generalises better: C is of a few
/// windows.
///
/// Where there is nothing to compare (no calibration, a model that is not followed beside itself), the method works on W
/// and says so.
///
/// ```
/// use tensorpress_quant::{Drift, Gptq, GridSpec};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let calibration = Calibration::from_samples(inputs, Par::Seq);
/// // Nothing says what the original inputs were.
/// let made = Drift::new(Gptq::new(GridSpec::new(3, 32))).compress(weight.view(), &calibration)?;
/// assert!(made.fallback.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Drift<S = Rtn> {
    /// t: how much of the correction is made. Default 0.5.
    pub strength: f32,
    /// Damping of A, in proportion to each entry of its diagonal. Default 0.01.
    pub damp: f32,
    /// Compresses the corrected matrix.
    pub solver: S,
}

impl<S: Default> Default for Drift<S> {
    fn default() -> Self {
        Self::new(S::default())
    }
}

impl<S> Drift<S> {
    /// Half of the correction, before this method.
    #[must_use]
    pub fn new(solver: S) -> Self {
        Self { strength: 0.5, damp: 0.01, solver }
    }

    /// Sets how much of the correction is made.
    #[must_use]
    pub fn with_strength(mut self, strength: f32) -> Self {
        self.strength = strength;
        self
    }

    /// Sets the damping of A.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [("strength", self.strength), ("damp", self.damp)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 0 and more")));
            }
        }
        Ok(())
    }

    /// t (A + damp)⁻¹ (Cᵀ - A) `[in, in]`: the transpose of what W is multiplied by.
    fn shift(&self, group: &Group<'_>) -> Result<Usable<Array2<f32>>> {
        let difference = match group.calibration.usable::<CrossGram>() {
            Ok(Usable::Yes(cross)) => cross - group.calibration.gram()?,
            Ok(Usable::No(reason)) => return Ok(Usable::No(reason)),
            Err(e) if e.kind() == ErrorKind::MissingCalibration => {
                return Ok(Usable::no(e.message()));
            }
            Err(e) => return Err(e),
        };
        let mut of_inputs = Group {
            targets: group.targets.clone(),
            calibration: group.calibration.clone(),
            ..*group
        };
        let prepared = Prepared::in_proportion(&mut of_inputs, f64::from(self.damp))?;
        Ok(prepared.and_then(|prepared| self.solved(prepared, difference, group.par)))
    }

    fn solved(
        &self,
        prepared: Prepared,
        mut difference: Array2<f32>,
        par: Par,
    ) -> Usable<Array2<f32>> {
        let n = difference.nrows();
        for dead in prepared.dead {
            difference.row_mut(dead).fill(0.0);
        }
        // (A + damp)⁻¹ = UᵀU.
        let mut half = Array2::zeros((n, n));
        linalg::matmul(prepared.factor.view(), difference.view(), half.view_mut(), false, par);
        linalg::matmul_tn(prepared.factor.view(), half.view(), difference.view_mut(), false, par);
        difference *= self.strength;
        match difference.iter().all(|v| v.is_finite()) {
            true => Usable::Yes(difference),
            false => Usable::no("the correction is not finite"),
        }
    }
}

/// W + W M, `transposed` being Mᵀ; W itself where that is no number.
fn corrected(target: &Target<'_>, transposed: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
    let weight = target.kept_weight();
    let mut moved = weight.to_owned();
    linalg::matmul_nt(weight.view(), transposed, moved.view_mut(), true, par);
    match moved.iter().all(|w| w.is_finite()) {
        true => moved,
        false => weight.into_owned(),
    }
}

impl<S> Knobs for Drift<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "how much of the correction is made: 1 for the least squared error of the outputs that \
                     calibration saw";
        keys.float("strength", &mut self.strength, 0.0..=2.0, about)?;
        let about = "added to the diagonal of the Gram matrix, in proportion to each entry";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "makes good for what compressed layers before did to the inputs, before a method";
    Row::transform("drift", about, Drift::<Rtn>::default, |knobs, solver| {
        let Some(solver) = solver else { return Ok(None) };
        let Drift { strength, damp, .. } = knobs;
        let corrected: Box<dyn DynCompress> = Box::new(Drift { strength, damp, solver });
        Ok(Some(corrected))
    })
}

impl<S: Method> Method for Drift<S> {
    fn id(&self) -> &'static str {
        "drift"
    }

    fn around(&self) -> Option<&dyn Method> {
        Some(&self.solver)
    }

    fn needs(&self) -> Needs {
        let needs = self.solver.needs();
        match self.strength > 0.0 {
            true => (needs | Needs::GRAM | Needs::of::<CrossGram>()).true_sequentially(),
            false => needs,
        }
    }
}

impl<S: Compress> Compress for Drift<S> {
    type Node = Box<dyn Node>;

    /// Of the matrices as they are: the correction changes them little.
    fn rates(&self, group: Group<'_>) -> Result<Vec<RateCurve>> {
        self.solver.rates(group)
    }

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check()?;
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let boxed = |made: CompressedGroup<S::Node>| CompressedGroup {
            layers: made.layers.into_iter().map(Compressed::boxed).collect(),
            folded: made.folded,
        };
        if self.strength == 0.0 {
            return self.solver.compress_group(group).map(boxed);
        }
        let shift = match self.shift(&group)? {
            Usable::Yes(shift) => shift,
            Usable::No(reason) => {
                let CompressedGroup { layers, folded } = boxed(self.solver.compress_group(group)?);
                let note = |layer: Compressed| {
                    layer.with_note(Some(format!("{reason}: no correction of drift")))
                };
                return Ok(CompressedGroup {
                    layers: layers.into_iter().map(note).collect(),
                    folded,
                });
            }
        };
        let par = group.par;
        let moved: Vec<Array2<f32>> =
            group.targets.iter().map(|target| corrected(target, shift.view(), par)).collect();
        drop(shift);
        let targets = group
            .targets
            .iter()
            .zip(&moved)
            .map(|(target, moved)| Target { weight: moved.view(), ..target.clone() });
        let group = Group { targets: targets.collect(), ..group };
        self.solver.compress_group(group).map(boxed)
    }
}
