//! Integer grids: where the levels of a group of weights lie.
//!
//! Levels are `scale * (code - zero)` with codes `0 ..= 2^bits - 1`; rounding is half to even. The conventions are
//! those of the quantiser of GPTQ (Frantar et al., 2023): a range always includes zero, a symmetric grid has its
//! zero at `2^(bits-1)`.

mod round;
mod spec;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::{self, ErrorNorm};

pub use spec::{Granularity, GridSpec};

/// How the range of a grid is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Clip {
    /// From the smallest to the largest weight.
    #[default]
    MinMax,
    /// The best of 80 shrunken ranges (down to a fifth) by the sum of squared errors.
    Mse,
    /// The same search by the sum of |error|^2.4, as the official code of GPTQ: slower, and worse by KL divergence at
    /// 3 bits and fewer.
    Power2p4,
}

/// Scale and zero point of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Distance of two levels; positive and finite.
    pub scale: f32,
    /// Code of the level 0: an integer, but where a method says that it need not be one.
    pub zero: f32,
}

impl Affine {
    /// Nearest code of `x`, at most `max_code`.
    #[inline(always)]
    #[must_use]
    pub fn code(self, x: f32, max_code: f32) -> f32 {
        ((x / self.scale).round_ties_even() + self.zero).max(0.0).min(max_code)
    }

    /// The level of a code.
    #[inline(always)]
    #[must_use]
    pub fn level(self, code: f32) -> f32 {
        self.scale * (code - self.zero)
    }
}

/// The family of grids a method may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IntGrid {
    /// Bits of a code, 2 to 8.
    pub bits: u8,
    /// Whether the zero point is fixed in the middle.
    pub symmetric: bool,
    /// How ranges are chosen.
    pub clip: Clip,
    /// Whether a range must include zero.
    pub range: Span,
    /// Type in which scales are stored; they are rounded to it before codes are chosen.
    pub scale_dtype: DType,
}

/// Which values the range of an asymmetric grid spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Span {
    /// The weights and zero, so that zero is a level (GPTQ's convention).
    #[default]
    WithZero,
    /// The weights alone, at least 1e-5 wide (AWQ's convention); codes still count from a clamped zero point.
    Tight,
}

const SHRINK_STEPS: usize = 80;
const SHRINK_GRID: f32 = 100.0;

impl IntGrid {
    /// A grid family.
    ///
    /// # Errors
    /// `InvalidArgument` if `bits` is not 2 to 8 or the scale type is no float.
    pub fn new(bits: u8, symmetric: bool, clip: Clip, scale_dtype: DType) -> Result<Self> {
        if !(2..=8).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 2 to 8")));
        }
        if !scale_dtype.is_float() {
            return Err(Error::invalid(format!(
                "scale = {scale_dtype:?}: allowed are f16, bf16 and f32"
            )));
        }
        Ok(Self { bits, symmetric, clip, range: Span::WithZero, scale_dtype })
    }

    /// The largest code.
    #[inline(always)]
    #[must_use]
    pub fn max_code(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// The same family with a scale type that can hold scales of weights up to `abs_max`: a 16-bit type whose
    /// range does not reach is replaced by f32.
    #[must_use]
    pub fn widened_for(mut self, abs_max: f32) -> Self {
        let (smallest_normal, largest) = match self.scale_dtype {
            DType::F16 => (6.104e-5, 65504.0),
            _ => return self,
        };
        let scale = abs_max / self.max_code();
        if abs_max > 0.0 && (scale < smallest_normal || 2.0 * scale > largest) {
            self.scale_dtype = DType::F32;
        }
        self
    }

    /// The grid for one group of finite weights.
    #[must_use]
    pub fn fit(&self, group: &[f32]) -> Affine {
        let (low, high) = if group.is_empty() { (0.0, 0.0) } else { kernels::minmax(group) };
        if self.range == Span::Tight && !self.symmetric {
            return self.from_range(low, high.max(low + 1e-5));
        }
        let (mut low, mut high) = (low.min(0.0), high.max(0.0));
        if self.symmetric {
            high = high.max(-low);
            if low < 0.0 {
                low = -high;
            }
        }
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        match self.clip {
            Clip::MinMax => self.from_range(low, high),
            Clip::Mse => self.best_shrink(group, low, high, ErrorNorm::Square),
            Clip::Power2p4 => self.best_shrink(group, low, high, ErrorNorm::Power2p4),
        }
    }

    /// The grid that spans `low ..= high`.
    #[must_use]
    pub fn from_range(&self, low: f32, high: f32) -> Affine {
        let scale = self.round_scale((high - low) / self.max_code());
        let zero = if self.symmetric {
            (self.max_code() + 1.0) / 2.0
        } else {
            (-low / scale).round_ties_even().clamp(0.0, self.max_code())
        };
        Affine { scale, zero }
    }

    /// Rounds a scale to its stored type, never to zero or infinity: to the nearest, and up where f16 has fewer
    /// digits than its ten. There the nearest could lie so far below that the end of a range is steps away from the last code.
    #[must_use]
    pub fn round_scale(&self, scale: f32) -> f32 {
        let subnormals_to_one = 2f32.powi(24);
        if self.scale_dtype == DType::F16 && scale < f32::from(half::f16::MIN_POSITIVE) {
            return (scale * subnormals_to_one).ceil().max(1.0) / subnormals_to_one;
        }
        let rounded = self.scale_dtype.round(scale);
        let (least, most) = match self.scale_dtype {
            DType::F16 => (f32::from(half::f16::MIN_POSITIVE), 65504.0),
            DType::BF16 => (f32::MIN_POSITIVE, f32::from(half::bf16::MAX)),
            _ => (f32::MIN_POSITIVE, f32::MAX),
        };
        rounded.clamp(least, most)
    }

    fn best_shrink(&self, group: &[f32], low: f32, high: f32, norm: ErrorNorm) -> Affine {
        let mut best = (f32::INFINITY, self.from_range(low, high));
        for step in 0..SHRINK_STEPS {
            let p = 1.0 - step as f32 / SHRINK_GRID;
            let grid = self.from_range(p * low, p * high);
            let error =
                kernels::grid_error(group, grid.scale, grid.zero, self.max_code() as u8, norm);
            if error < best.0 {
                best = (error, grid);
            }
        }
        best.1
    }
}
