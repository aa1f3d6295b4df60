//! What a type lets its filler choose: levels, and how scales are stored.

use tensorpress_tensor::obs::Lanes;

use super::super::Type;
use super::super::tables::{E2M1_DOUBLED, IQ4_LEVELS};

/// Ascending levels that codes name.
pub(super) trait Grid: Copy {
    /// The nearest level.
    fn level(self, y: f32) -> f32;
    /// The code of a level.
    fn code(self, level: f32) -> u8;
    /// The lowest and the highest level.
    fn edges(self) -> [f32; 2];
}

/// Whole numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Even {
    pub(super) lo: f32,
    pub(super) hi: f32,
    /// The code of level 0.
    pub(super) zero: f32,
}

impl Even {
    const fn new(lo: i8, hi: i8, zero: u8) -> Self {
        Self { lo: lo as f32, hi: hi as f32, zero: zero as f32 }
    }
}

impl Grid for Even {
    #[inline(always)]
    fn level(self, y: f32) -> f32 {
        y.round_ties_even().max(self.lo).min(self.hi)
    }

    /// Modulo 256, as signed codes are stored.
    #[inline(always)]
    fn code(self, level: f32) -> u8 {
        (level + self.zero) as i32 as u8
    }

    #[inline(always)]
    fn edges(self) -> [f32; 2] {
        [self.lo, self.hi]
    }
}

/// Up to 16 levels at any distances; the rest repeats the last.
#[derive(Debug)]
pub(super) struct Table {
    levels: [f32; 16],
    codes: [u8; 16],
    middles: [f32; 15],
}

impl Table {
    /// Of the levels by code, of which those named are taken in their order.
    const fn new<const N: usize>(all: &[i8; 16], order: [u8; N]) -> Self {
        let (mut levels, mut codes) = ([0.0; 16], [0; 16]);
        let mut i = 0;
        while i < 16 {
            codes[i] = order[if i < N { i } else { N - 1 }];
            levels[i] = all[codes[i] as usize] as f32;
            i += 1;
        }
        let mut middles = [f32::INFINITY; 15];
        i = 0;
        while i + 1 < N {
            middles[i] = (levels[i] + levels[i + 1]) * 0.5;
            i += 1;
        }
        Self { levels, codes, middles }
    }
}

impl Grid for &'static Table {
    #[inline(always)]
    fn level(self, y: f32) -> f32 {
        // Sums of whole numbers are exact; there is no load that depends on the value.
        let mut level = self.levels[0];
        for (i, middle) in self.middles.iter().enumerate() {
            level += if y > *middle { self.levels[i + 1] - self.levels[i] } else { 0.0 };
        }
        level
    }

    #[inline(always)]
    fn code(self, level: f32) -> u8 {
        self.codes[self.middles.iter().filter(|middle| level > **middle).count()]
    }

    #[inline(always)]
    fn edges(self) -> [f32; 2] {
        [self.levels[0], self.levels[15]]
    }
}

static IQ4: Table = Table::new(&IQ4_LEVELS, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

/// The second zero is left out.
static E2M1: Table = Table::new(&E2M1_DOUBLED, [15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7]);

/// Levels of a type.
#[derive(Debug, Clone, Copy)]
pub(super) enum Levels {
    Even(Even),
    Uneven(&'static Table),
}

/// How a type stores the scales of its groups.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scaling {
    /// An f16.
    Half,
    /// An f16, and another that is added.
    HalfAndMin,
    /// A power of two.
    Power,
    /// Eight bits of E4M3.
    Small,
    /// A whole number times the f16 of the block.
    Steps(Even),
    /// A whole number times one f16 of the block, less another times the other.
    StepsAndMins(Even),
}

/// How blocks of a type are filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) ty: Type,
    /// Values that share a scale; a block is a number of those.
    pub(super) group: usize,
    pub(super) levels: Levels,
    pub(super) scaling: Scaling,
}

/// The most groups of a block.
pub(super) const MOST_GROUPS: usize = 16;

impl Plan {
    /// None for a type that cannot be filled.
    pub(super) fn of(ty: Type) -> Option<Self> {
        let even = |lo, hi, zero| Levels::Even(Even::new(lo, hi, zero));
        let (group, levels, scaling) = match ty {
            Type::Q4_0 => (32, even(-8, 7, 8), Scaling::Half),
            Type::Q5_0 => (32, even(-16, 15, 16), Scaling::Half),
            Type::Q8_0 => (32, even(-127, 127, 0), Scaling::Half),
            Type::Q4_1 => (32, even(0, 15, 0), Scaling::HalfAndMin),
            Type::Q5_1 => (32, even(0, 31, 0), Scaling::HalfAndMin),
            Type::IQ4_NL => (32, Levels::Uneven(&IQ4), Scaling::Half),
            Type::MXFP4 => (32, Levels::Uneven(&E2M1), Scaling::Power),
            Type::NVFP4 => (16, Levels::Uneven(&E2M1), Scaling::Small),
            Type::Q2_K => (16, even(0, 3, 0), Scaling::StepsAndMins(Even::new(0, 15, 0))),
            Type::Q3_K => (16, even(-4, 3, 4), Scaling::Steps(Even::new(-32, 31, 32))),
            Type::Q4_K => (32, even(0, 15, 0), Scaling::StepsAndMins(Even::new(0, 63, 0))),
            Type::Q5_K => (32, even(0, 31, 0), Scaling::StepsAndMins(Even::new(0, 63, 0))),
            Type::Q6_K => (16, even(-32, 31, 32), Scaling::Steps(Even::new(-128, 127, 0))),
            Type::IQ4_XS => (32, Levels::Uneven(&IQ4), Scaling::Steps(Even::new(-32, 31, 32))),
            _ => return None,
        };
        Some(Self { ty, group, levels, scaling })
    }

    /// Values of a block.
    pub(super) fn len(&self) -> usize {
        self.ty.block_len()
    }
}

/// What is added where a type adds nothing: it leaves every value as it is.
pub(super) const NOTHING: Lanes = [-0.0; tensorpress_tensor::obs::LANES];
