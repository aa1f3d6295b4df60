use tensorpress_tensor::node::LevelTable;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, Group, Method, Result};

use super::LevelSpec;

/// The best table of levels for the weights of each row, or of several: k-means of numbers, solved exactly. Needs no
/// calibration.
///
/// ```
/// use tensorpress_quant::{KMeans, LevelSpec};
/// use tensorpress_tensor::{Compress, Node, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let made = KMeans::new(LevelSpec::new(3)).compress(weight.view(), &Calibration::none(64))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KMeans {
    /// Levels, and which rows share them.
    pub levels: LevelSpec,
}

impl KMeans {
    /// Tables as they are specified.
    #[must_use]
    pub fn new(levels: LevelSpec) -> Self {
        Self { levels }
    }
}

impl Knobs for KMeans {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.levels.knobs(keys)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "kmeans",
        "rounds to the levels that lose least of each row; needs no calibration",
        KMeans::default,
    )
}

impl Method for KMeans {
    fn id(&self) -> &'static str {
        "kmeans"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }
}

impl Compress for KMeans {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        group.each(|t| self.levels.fit(t, None, group.par))
    }
}
