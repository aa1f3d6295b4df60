//! Points of the IQ types near what is none of them.

use std::sync::{LazyLock, OnceLock};

use super::super::grids;

/// The points a code may name, packed as in the tables.
pub(super) struct Points {
    points: &'static [u16],
    /// Bits of a level.
    bits: u32,
    /// Values of a point.
    pub(super) len: usize,
    /// How many distances count as near.
    shells: usize,
    near: Vec<OnceLock<Near>>,
}

enum Near {
    Point(u16),
    /// Points in the order of their distance, then of their number.
    Among(Box<[u16]>),
}

impl Points {
    fn new(points: &'static [u16], bits: u32, shells: usize) -> Self {
        let len = if bits == 2 { 8 } else { 4 };
        let near = std::iter::repeat_with(OnceLock::new).take(1 << (bits as usize * len)).collect();
        Self { points, bits, len, shells, near }
    }

    /// Element `i` of point `number`.
    pub(super) fn level(&self, number: u16, i: usize) -> u8 {
        self.unpack(self.points[usize::from(number)], i)
    }

    fn unpack(&self, packed: u16, i: usize) -> u8 {
        (packed >> (self.bits as usize * i) & ((1 << self.bits) - 1)) as u8
    }

    fn near(&self, packed: u16) -> &Near {
        self.near[usize::from(packed)].get_or_init(|| {
            let mut distances = Vec::with_capacity(self.points.len());
            for (number, &point) in self.points.iter().enumerate() {
                let difference =
                    |i| i32::from(self.unpack(point, i)) - i32::from(self.unpack(packed, i));
                let distance: i32 = (0..self.len).map(|i| difference(i) * difference(i)).sum();
                if distance == 0 {
                    return Near::Point(number as u16);
                }
                distances.push((distance, number as u16));
            }
            distances.sort_unstable();
            let shells = distances.chunk_by(|a, b| a.0 == b.0).take(self.shells);
            Near::Among(shells.flatten().map(|near| near.1).collect())
        })
    }

    /// The number of the point with these levels, or else of the near one with the smallest `error(levels)`; and
    /// whether it is the former.
    pub(super) fn find(
        &self,
        levels: &[u8],
        error: impl Fn(&dyn Fn(usize) -> u8) -> f32,
    ) -> (u16, bool) {
        let place = |packed, (i, &level): (usize, &u8)| {
            packed | u16::from(level) << (self.bits as usize * i)
        };
        match self.near(levels.iter().enumerate().fold(0, place)) {
            Near::Point(number) => (*number, true),
            Near::Among(near) => {
                let (mut best, mut chosen) = (f32::MAX, near[0]);
                for &number in near {
                    let error = error(&|i| self.level(number, i));
                    if error < best {
                        (best, chosen) = (error, number);
                    }
                }
                (chosen, false)
            }
        }
    }
}

pub(super) static IQ1: LazyLock<Points> = LazyLock::new(|| Points::new(&grids::IQ1, 2, 3));
pub(super) static IQ2_XXS: LazyLock<Points> = LazyLock::new(|| Points::new(&grids::IQ2_XXS, 2, 2));
pub(super) static IQ2_XS: LazyLock<Points> = LazyLock::new(|| Points::new(&grids::IQ2_XS, 2, 2));
pub(super) static IQ2_S: LazyLock<Points> = LazyLock::new(|| Points::new(&grids::IQ2_S, 2, 1));
pub(super) static IQ3_XXS: LazyLock<Points> = LazyLock::new(|| Points::new(&grids::IQ3_XXS, 3, 2));
pub(super) static IQ3_S: LazyLock<Points> = LazyLock::new(|| Points::new(&grids::IQ3_S, 3, 3));
