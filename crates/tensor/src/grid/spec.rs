use serde::{Deserialize, Serialize};

use super::{Clip, IntGrid, Span};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::stage::{Keys, Knobs};

/// Which weights share one scale and zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// All of the matrix.
    Tensor,
    /// One output channel (row).
    Channel,
    /// This many consecutive inputs of a row; the last group of a row may be shorter.
    Group(usize),
}

/// Bits, granularity and grid of an integer quantiser.
///
/// ```
/// use tensorpress_tensor::DType;
/// use tensorpress_tensor::grid::{Clip, GridSpec};
///
/// let spec = GridSpec::new(4, 64).with_clip(Clip::Mse).with_scale(DType::BF16);
/// assert_eq!((spec.group_of(4096), spec.group_of(48)), (64, 48));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GridSpec {
    /// Bits of a code, 2 to 8. Default 4.
    pub bits: u8,
    /// Who shares a scale. Default groups of 128.
    pub granularity: Granularity,
    /// Fixed zero point in the middle. Default false.
    pub symmetric: bool,
    /// How ranges are chosen. Default min-max.
    pub clip: Clip,
    /// Whether asymmetric ranges include zero. Default [`Span::WithZero`].
    pub range: Span,
    /// Stored type of scales. Default f16.
    pub scale: DType,
}

impl Default for GridSpec {
    fn default() -> Self {
        Self {
            bits: 4,
            granularity: Granularity::Group(128),
            symmetric: false,
            clip: Clip::MinMax,
            range: Span::WithZero,
            scale: DType::F16,
        }
    }
}

impl Knobs for GridSpec {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.bits(keys)?;
        self.all_but_bits(keys)
    }
}

/// Parts of the knobs, for methods that have a range of their own.
impl GridSpec {
    fn bits(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 2..=8, "bits of a code")
    }

    /// All knobs but the bits.
    ///
    /// # Errors
    /// Those of `keys`.
    pub fn all_but_bits(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.groups(keys)?;
        let clips = [("minmax", Clip::MinMax), ("mse", Clip::Mse)];
        let about = "range of a group: all of it, or the one with the least error";
        keys.choice("clip", &mut self.clip, &clips, about)?;
        self.scales(keys)
    }

    /// Bits, group and symmetry.
    ///
    /// # Errors
    /// Those of `keys`.
    pub fn codes(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.bits(keys)?;
        self.groups(keys)
    }

    fn groups(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let mut group = match self.granularity {
            Granularity::Group(group) => group,
            _ => 0,
        };
        let about = "consecutive inputs that share a scale; 0: a whole row";
        keys.int("group", &mut group, 0..=1 << 20, about)?;
        *self = self.with_group(group);
        let about = "zero point fixed in the middle, not stored";
        keys.flag("symmetric", &mut self.symmetric, about)
    }

    /// The type of scales.
    ///
    /// # Errors
    /// Those of `keys`.
    pub fn scales(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of scales")
    }
}

impl GridSpec {
    /// `bits` bits in groups of `group` inputs (0: whole rows), asymmetric, min-max, f16 scales.
    #[must_use]
    pub fn new(bits: u8, group: usize) -> Self {
        Self::default().with_bits(bits).with_group(group)
    }

    /// Sets the bits of a code.
    #[must_use]
    pub fn with_bits(mut self, bits: u8) -> Self {
        self.bits = bits;
        self
    }

    /// Sets the group size; 0 stands for whole rows.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.granularity =
            if group == 0 { Granularity::Channel } else { Granularity::Group(group) };
        self
    }

    /// Sets who shares a scale.
    #[must_use]
    pub fn with_granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// Fixes the zero point in the middle, or lets it move.
    #[must_use]
    pub fn with_symmetric(mut self, symmetric: bool) -> Self {
        self.symmetric = symmetric;
        self
    }

    /// Sets how ranges are chosen.
    #[must_use]
    pub fn with_clip(mut self, clip: Clip) -> Self {
        self.clip = clip;
        self
    }

    /// Sets whether asymmetric ranges include zero.
    #[must_use]
    pub fn with_range(mut self, range: Span) -> Self {
        self.range = range;
        self
    }

    /// Sets the stored type of scales.
    #[must_use]
    pub fn with_scale(mut self, scale: DType) -> Self {
        self.scale = scale;
        self
    }

    /// The grid family, its scale type wide enough for weights up to `abs_max`.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible bits, groups or scale types.
    pub fn family(&self, abs_max: f32) -> Result<IntGrid> {
        if self.granularity == Granularity::Group(0) {
            return Err(Error::invalid("group = 0 as a group size: use Granularity::Channel"));
        }
        let mut grid = IntGrid::new(self.bits, self.symmetric, self.clip, self.scale)?;
        grid.range = self.range;
        Ok(grid.widened_for(abs_max))
    }

    /// Columns that share a scale in a matrix of `cols` columns; at least 1.
    #[must_use]
    pub fn group_of(&self, cols: usize) -> usize {
        match self.granularity {
            Granularity::Tensor | Granularity::Channel => cols.max(1),
            Granularity::Group(group) => group.min(cols.max(1)),
        }
    }

    /// Whether the whole matrix shares one scale.
    #[must_use]
    pub fn per_tensor(&self) -> bool {
        self.granularity == Granularity::Tensor
    }
}
