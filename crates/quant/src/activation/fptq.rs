use tensorpress_tensor::node::{InputRounding, Node};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, CompressedGroup, DynCompress, Error, Group, Method, Result, Usable,
};

use super::smooth::{bounded, fixed, largest, ranges, solve};
use crate::GridSpec;
use crate::rtn::Rtn;

/// FPTQ (Li et al., 2023): 4-bit weights in groups and 8-bit inputs (W4A8), each layer's inputs rounded as their range asks.
///
/// With v the largest magnitude of the inputs: below `low` they are rounded by that range; up to `high` channels are first
/// equalised by `max|x_j| / log2(2 + max|x_j|)`, folded into what stands before where the [`Group`] offers it, and rounded by
/// the range that is left; above, by the range of each token. Weights go to a solver: [`Rtn`], or any other.
///
/// ```
/// use tensorpress_quant::Fptq;
/// use tensorpress_quant::activation::ActivationRegime;
///
/// let fptq = Fptq::default();
/// assert_eq!(fptq.regime(3.0), ActivationRegime::Static);
/// assert_eq!(fptq.regime(15.0), ActivationRegime::Equalised);
/// assert_eq!(fptq.regime(151.0), ActivationRegime::Dynamic);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Fptq<S = Rtn> {
    /// Range from which on channels are equalised. Default 15.
    pub low: f32,
    /// Range above which tokens have ranges of their own. Default 150.
    pub high: f32,
    /// Bits of the inputs, 2 to 8. Default 8.
    pub activation_bits: u8,
    /// Rounds the weights. Default: to nearest, 4 bits in groups of 128.
    pub solver: S,
}

/// How [`Fptq`] rounds the inputs of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationRegime {
    /// By one range, that of the calibration.
    Static,
    /// Equalised by logarithms, then by one range.
    Equalised,
    /// By the range of each token.
    Dynamic,
}

impl Default for Fptq<Rtn> {
    fn default() -> Self {
        Self::with_solver(Rtn::new(GridSpec::new(4, 128)))
    }
}

impl<S> Fptq<S> {
    /// The defaults before this solver.
    #[must_use]
    pub fn with_solver(solver: S) -> Self {
        Self { low: 15.0, high: 150.0, activation_bits: 8, solver }
    }

    /// Sets where the regimes meet.
    #[must_use]
    pub fn with_ranges(mut self, low: f32, high: f32) -> Self {
        (self.low, self.high) = (low, high);
        self
    }

    /// Sets the bits of the inputs.
    #[must_use]
    pub fn with_activation_bits(mut self, bits: u8) -> Self {
        self.activation_bits = bits;
        self
    }

    /// How inputs of this largest magnitude are rounded.
    #[must_use]
    pub fn regime(&self, range: f32) -> ActivationRegime {
        if range < self.low {
            ActivationRegime::Static
        } else if range <= self.high {
            ActivationRegime::Equalised
        } else {
            ActivationRegime::Dynamic
        }
    }
}

impl Fptq {
    /// The scale of channels whose inputs have these largest magnitudes: `x / log2(2 + x)`, 1 for dead ones; at least 1e-5
    /// and at most 1e5.
    #[must_use]
    pub fn equalisation(ranges: &[f32]) -> Vec<f32> {
        bounded(ranges.iter().map(|x| x / (2.0 + x).log2()))
    }
}

impl<S> Fptq<S> {
    fn check_ranges(&self) -> Result<()> {
        // Written so that NaN is refused.
        if !(self.low >= 0.0 && self.low <= self.high) {
            let Self { low, high, .. } = self;
            let message = format!("low = {low}, high = {high}: allowed are 0 <= low <= high");
            return Err(Error::invalid(message));
        }
        Ok(())
    }
}

impl Knobs for Fptq<Rtn> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "range of inputs from which on channels are equalised";
        keys.float("low", &mut self.low, 0.0..=1e30, about)?;
        let about = "range of inputs above which each token has its own";
        keys.float("high", &mut self.high, 0.0..=1e30, about)?;
        keys.int("activation_bits", &mut self.activation_bits, 2..=8, "bits of rounded inputs")?;
        keys.alone(|keys| self.solver.grid.knobs(keys))
    }

    fn check(&self) -> Result<()> {
        self.check_ranges()
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    let about = "4-bit weights and 8-bit inputs, rounded as the range of a layer's inputs asks (alone: to nearest)";
    Row::transform("fptq", about, Fptq::default, |fptq, solver| {
        let Fptq { low, high, activation_bits, .. } = fptq;
        let method: Box<dyn DynCompress> = match solver {
            None => Box::new(fptq),
            Some(solver) => Box::new(Fptq { low, high, activation_bits, solver }),
        };
        Ok(Some(method))
    })
}

impl<S: Method> Method for Fptq<S> {
    fn id(&self) -> &'static str {
        "fptq"
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

impl<S: Compress> Compress for Fptq<S> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check_ranges()?;
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let bits = self.activation_bits;
        let by_token = InputRounding::by_token(bits)?;
        let (regime, scale, note) = match ranges(&group.calibration)? {
            Usable::No(why) => {
                (ActivationRegime::Dynamic, None, Some(format!("{why}: inputs rounded by token")))
            }
            Usable::Yes(ranges) => {
                let regime = self.regime(largest(&ranges));
                let equalised = regime == ActivationRegime::Equalised;
                (regime, equalised.then(|| Fptq::equalisation(&ranges)), None)
            }
        };
        solve(&self.solver, group, scale, note, |calibration| match regime {
            ActivationRegime::Dynamic => Ok(Some(by_token)),
            _ => fixed(bits, calibration).map(|fixed| fixed.or(Some(by_token))),
        })
    }
}
