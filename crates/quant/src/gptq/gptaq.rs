use tensorpress_tensor::grid::GridSpec;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, Group, Method, Node, Result};

use super::Gptq;
use crate::Drift;

/// GPTAQ (Li et al., *GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration*, 2025): GPTQ on the weights
/// that make good for what the layers before did to the inputs. [`Drift`] of all its strength before [`Gptq`], with one
/// damping for both.
///
/// Where there is nothing to compare the inputs with, it is GPTQ and says so.
///
/// ```
/// use tensorpress_quant::{Gptaq, Gptq, GridSpec};
///
/// let method = Gptaq::new(Gptq::new(GridSpec::new(4, 128))).with_strength(0.5);
/// assert_eq!(method.gptq.grid.bits, 4);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Gptaq {
    /// What rounds the moved weights.
    pub gptq: Gptq,
    /// How much of the correction is made. Default 1, as in the paper.
    pub strength: f32,
}

impl Default for Gptaq {
    fn default() -> Self {
        Self::new(Gptq::default())
    }
}

impl Gptaq {
    /// All of the correction, before this GPTQ.
    #[must_use]
    pub fn new(gptq: Gptq) -> Self {
        Self { gptq, strength: 1.0 }
    }

    /// GPTAQ on the given grid.
    #[must_use]
    pub fn on(grid: GridSpec) -> Self {
        Self::new(Gptq::new(grid))
    }

    /// Sets how much of the correction is made.
    #[must_use]
    pub fn with_strength(mut self, strength: f32) -> Self {
        self.strength = strength;
        self
    }

    fn composed(&self) -> Drift<Gptq> {
        Drift::new(self.gptq).with_strength(self.strength).with_damp(self.gptq.damp)
    }
}

impl Knobs for Gptaq {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.gptq.knobs(keys)?;
        let about = "how much of the correction for what layers before did to the inputs is made";
        keys.float("strength", &mut self.strength, 0.0..=2.0, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about =
        "gptq on weights that make good for what compressed layers before did to the inputs";
    Row::method("gptaq", about, Gptaq::default)
}

impl Method for Gptaq {
    fn id(&self) -> &'static str {
        "gptaq"
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.gptq.grid)
    }

    fn needs(&self) -> Needs {
        self.composed().needs()
    }
}

impl Compress for Gptaq {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.composed().compress_group(group)
    }
}
