use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, Group, Method, Result, Target};

use crate::{GridSpec, GroupedAffine};

/// Round to nearest: each weight becomes the nearest level of its group's grid. Needs no calibration.
///
/// ```
/// use tensorpress_quant::{GridSpec, Rtn};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = Rtn::new(GridSpec::new(4, 32)).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Rtn {
    /// Bits, granularity and grid.
    pub grid: GridSpec,
}

impl Rtn {
    /// Rounding on the given grid.
    #[must_use]
    pub fn new(grid: GridSpec) -> Self {
        Self { grid }
    }

    /// Rounds one matrix.
    ///
    /// # Errors
    /// `Numerical` for non-finite weights, `InvalidArgument` for an impossible grid.
    pub fn round(&self, target: &Target<'_>, par: Par) -> Result<GroupedAffine> {
        self.grid.round(target, par)
    }
}

impl Knobs for Rtn {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.grid.knobs(keys)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method(
        "rtn",
        "rounds each weight to the nearest level; needs no calibration",
        Rtn::default,
    )
}

impl Method for Rtn {
    fn id(&self) -> &'static str {
        "rtn"
    }

    fn grid(&self) -> Option<GridSpec> {
        Some(self.grid)
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }
}

impl Compress for Rtn {
    type Node = GroupedAffine;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<GroupedAffine>> {
        group.each(|t| self.round(t, group.par))
    }
}
