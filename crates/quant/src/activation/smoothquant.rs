use tensorpress_tensor::node::{InputRounding, Node};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Calibration, Needs};
use tensorpress_tensor::{
    Compress, CompressedGroup, DynCompress, Error, Group, Method, Result, Target, Usable,
};

use super::smooth::{bounded, fixed, ranges, solve, weight_ranges};
use crate::GridSpec;
use crate::rtn::Rtn;

/// How a method rounds the inputs of its products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ActivationRounding {
    /// Not at all.
    Exact,
    /// By the largest magnitude of each token (dynamic).
    #[default]
    Token,
    /// By the largest magnitude that calibration saw (static).
    Static,
}

/// SmoothQuant (Xiao et al., 2023): input channels with a large range are scaled down, and the columns of the weights up, so
/// that both can be rounded to 8 bits (W8A8).
///
/// The scale of channel j is `max|X_j|^alpha / max|W_j|^(1 - alpha)`, the maximum over all matrices that share the input
/// (equation 4). It is folded into what stands before them where the [`Group`] offers it, else stored (and counted) as f16.
/// The scaled weights go to a solver: [`Rtn`] in the paper, or any other.
///
/// ```
/// use tensorpress_quant::SmoothQuant;
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = SmoothQuant::default().compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SmoothQuant<S = Rtn> {
    /// Share of the difficulty that goes from the inputs to the weights, 0 to 1. Default 0.5.
    pub alpha: f32,
    /// How inputs are rounded. Default: by token.
    pub activations: ActivationRounding,
    /// Bits of the inputs, 2 to 8. Default 8.
    pub activation_bits: u8,
    /// Rounds the scaled weights. Default: to nearest, 8 bits, symmetric, a scale a row.
    pub solver: S,
}

impl Default for SmoothQuant<Rtn> {
    fn default() -> Self {
        Self::with_solver(Rtn::new(GridSpec::new(8, 0).with_symmetric(true)))
    }
}

impl<S> SmoothQuant<S> {
    /// The defaults before this solver.
    #[must_use]
    pub fn with_solver(solver: S) -> Self {
        let activations = ActivationRounding::default();
        Self { alpha: 0.5, activations, activation_bits: 8, solver }
    }

    /// Sets the share that goes to the weights.
    #[must_use]
    pub fn with_alpha(mut self, alpha: f32) -> Self {
        self.alpha = alpha;
        self
    }

    /// Sets how inputs are rounded, and to how many bits.
    #[must_use]
    pub fn with_activations(mut self, rounding: ActivationRounding, bits: u8) -> Self {
        (self.activations, self.activation_bits) = (rounding, bits);
        self
    }

    /// The scales of matrices that share an input: weights are multiplied by them, inputs divided; 1 for channels that are
    /// dead on either side, else 1e-5 to 1e5. Or why they cannot be known.
    ///
    /// # Errors
    /// `MissingCalibration` without moments, `InvalidArgument` for an `alpha` out of its range.
    pub fn scales(
        &self,
        targets: &[Target<'_>],
        calibration: &Calibration,
    ) -> Result<Usable<Vec<f32>>> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(Error::invalid(format!("alpha = {}: allowed are 0 to 1", self.alpha)));
        }
        let weights = weight_ranges(targets, calibration.channels());
        let scale = |(x, w): (&f32, &f32)| match *x > 0.0 && *w > 0.0 {
            true => x.powf(self.alpha) / w.powf(1.0 - self.alpha),
            false => 1.0,
        };
        Ok(ranges(calibration)?.map(|x| bounded(x.iter().zip(&weights).map(scale))))
    }
}

impl Knobs for SmoothQuant<Rtn> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "share of the difficulty that goes from inputs to weights";
        keys.float("alpha", &mut self.alpha, 0.0..=1.0, about)?;
        activation_knobs(&mut self.activations, &mut self.activation_bits, keys)?;
        keys.alone(|keys| self.solver.grid.knobs(keys))
    }
}

fn activation_knobs(
    rounding: &mut ActivationRounding,
    bits: &mut u8,
    keys: &mut Keys<'_>,
) -> Result<()> {
    let kinds = [
        ("token", ActivationRounding::Token),
        ("static", ActivationRounding::Static),
        ("exact", ActivationRounding::Exact),
    ];
    let about = "range that inputs are rounded by: each token's, that of the calibration; or not";
    keys.choice("activations", rounding, &kinds, about)?;
    keys.int("activation_bits", bits, 2..=8, "bits of rounded inputs")
}

pub(super) fn stage() -> Row<WeightPart> {
    let about =
        "moves the range of inputs into the weights, and rounds both to 8 bits (alone: to nearest)";
    Row::transform("smoothquant", about, SmoothQuant::default, |smooth, solver| {
        let SmoothQuant { alpha, activations, activation_bits, .. } = smooth;
        let method: Box<dyn DynCompress> = match solver {
            None => Box::new(smooth),
            Some(solver) => Box::new(SmoothQuant { alpha, activations, activation_bits, solver }),
        };
        Ok(Some(method))
    })
}

impl<S: Method> Method for SmoothQuant<S> {
    fn id(&self) -> &'static str {
        "smoothquant"
    }

    fn grid(&self) -> Option<GridSpec> {
        self.solver.grid()
    }

    fn takes_mask(&self) -> bool {
        self.solver.takes_mask()
    }

    fn corrects_bias(&self) -> bool {
        self.solver.corrects_bias()
    }

    fn needs(&self) -> Needs {
        Needs::MOMENTS | self.solver.needs()
    }
}

impl<S: Compress> Compress for SmoothQuant<S> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let bits = self.activation_bits;
        let by_token = InputRounding::by_token(bits)?;
        let (scale, note) = match self.scales(&group.targets, &group.calibration)? {
            Usable::Yes(scale) => (Some(scale), None),
            Usable::No(why) => (None, Some(format!("{why}: channels not scaled"))),
        };
        solve(&self.solver, group, scale, note, |calibration| match self.activations {
            ActivationRounding::Exact => Ok(None),
            ActivationRounding::Token => Ok(Some(by_token)),
            ActivationRounding::Static => {
                fixed(bits, calibration).map(|fixed| fixed.or(Some(by_token)))
            }
        })
    }
}
