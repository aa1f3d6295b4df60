//! Grids of groups, and grids of those grids' scales and zero points.

use tensorpress_tensor::DType;
use tensorpress_tensor::ndarray::Array2;

use super::Spqr;

/// `scale * (code - zero)` with any number as zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tight {
    pub(super) scale: f32,
    pub(super) zero: f32,
}

/// The zero point of a grid lies at most about so many steps away: what f16 resolves.
const FARTHEST: f32 = 1024.0;

impl Tight {
    /// The neutral grid: codes are values.
    pub(super) const NEUTRAL: Self = Self { scale: 1.0, zero: 0.0 };

    /// The grid from the smallest to the largest of the values; `None` if all are 0, or there are none. Values that lie much
    /// closer together than to 0 get wider steps, so that the zero point can be stored.
    pub(super) fn fit(values: impl Iterator<Item = f32>, max_code: f32) -> Option<Self> {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high || (low == 0.0 && high == 0.0) {
            return None;
        }
        // Halves, so that no range overflows.
        let range = (0.5 * high - 0.5 * low) / max_code * 2.0;
        let least = low.abs().max(high.abs()) / FARTHEST;
        let scale = range.max(least).max(f32::MIN_POSITIVE);
        Some(Self { scale, zero: -low / scale })
    }

    /// The same grid as it is stored.
    fn stored(self, floats: DType) -> Self {
        let low = -self.zero * self.scale;
        let scale = stored_scale(self.scale, floats);
        let zero = if scale == self.scale { self.zero } else { -low / scale };
        Self { scale, zero: stored(zero, floats) }
    }

    #[inline(always)]
    pub(super) fn code(self, value: f32, max_code: f32) -> f32 {
        (value / self.scale + self.zero).round_ties_even().max(0.0).min(max_code)
    }

    #[inline(always)]
    pub(super) fn level(self, code: f32) -> f32 {
        self.scale * (code - self.zero)
    }
}

/// A number in its stored type, finite.
fn stored(value: f32, floats: DType) -> f32 {
    let most = match floats {
        DType::F16 => 65504.0,
        DType::BF16 => 3.389_531_4e38,
        _ => f32::MAX,
    };
    floats.round(value).clamp(-most, most)
}

/// A scale in its stored type, neither 0 nor infinite.
fn stored_scale(scale: f32, floats: DType) -> f32 {
    let least = if floats == DType::F16 { 5.960_464_5e-8 } else { f32::MIN_POSITIVE };
    stored(scale, floats).max(least)
}

/// How scales and zero points are stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statistics {
    scale_bits: u8,
    zero_bits: u8,
    outputs: usize,
    /// Stored type of floats.
    floats: DType,
}

impl Statistics {
    pub(super) fn of(method: &Spqr, floats: DType) -> Self {
        let &Spqr { scale_bits, zero_bits, outputs, .. } = method;
        Self { scale_bits, zero_bits, outputs, floats }
    }

    /// A number as it is stored, finite.
    pub(super) fn round(&self, value: f32) -> f32 {
        stored(value, self.floats)
    }

    /// Empty stores for the statistics of a matrix `[rows, groups]`.
    pub(super) fn stores(&self, shape: [usize; 2]) -> [Quantised; 2] {
        [self.scale_bits, self.zero_bits].map(|bits| Quantised::new(bits, self.outputs, shape))
    }

    /// Stores the grids of one group of all rows, and turns them into those that decoding will give. Rows without a grid
    /// take that of the finest of the rows they are stored with, so that they cost the others nothing.
    pub(super) fn store(
        &self,
        grids: &[Option<Tight>],
        group: usize,
        stores: &mut [Quantised; 2],
    ) -> Vec<Tight> {
        let mut made = Vec::with_capacity(grids.len());
        for (tile, grids) in grids.chunks(self.outputs).enumerate() {
            let fitted = grids.iter().flatten();
            let finest = fitted.min_by(|a, b| a.scale.total_cmp(&b.scale)).copied();
            let finest = finest.unwrap_or(Tight::NEUTRAL);
            let raw: Vec<Tight> = grids.iter().map(|grid| grid.unwrap_or(finest)).collect();
            let scales: Vec<f32> = raw.iter().map(|grid| grid.scale).collect();
            let place = Place { tile, group, first: tile * self.outputs };
            let scales = match self.scale_bits {
                0 => stores[0].keep(place, &scales, |s| stored_scale(s, self.floats)),
                _ => stores[0].quantise(place, &scales, self.floats),
            };
            // Of the scale that is used, where that is this row's own.
            let zeros = raw.iter().zip(&scales).map(|(grid, scale)| match self.scale_bits {
                0 if *scale != grid.scale => grid.zero * grid.scale / scale,
                _ => grid.zero,
            });
            let zeros: Vec<f32> = zeros.collect();
            let zeros = match self.zero_bits {
                0 => stores[1].keep(place, &zeros, |z| self.round(z)),
                _ => stores[1].quantise(place, &zeros, self.floats),
            };
            made.extend(scales.into_iter().zip(zeros).map(|(scale, zero)| Tight { scale, zero }));
        }
        made
    }
}

/// Where statistics of one group and some rows are stored.
#[derive(Clone, Copy)]
struct Place {
    tile: usize,
    group: usize,
    first: usize,
}

/// Scales, or zero points, of a whole matrix as they are stored.
#[derive(Debug)]
pub(super) struct Quantised {
    /// `[rows, groups]`; empty where they are quantised.
    pub(super) values: Array2<f32>,
    /// Bits and codes `[rows, groups]`, with their scales and zero points `[tiles, groups]`.
    pub(super) codes: Option<(u8, Array2<u8>)>,
    pub(super) scales: Array2<f32>,
    pub(super) zeros: Array2<f32>,
}

impl Quantised {
    fn new(bits: u8, outputs: usize, [rows, groups]: [usize; 2]) -> Self {
        let tiles = if bits == 0 { 0 } else { rows.div_ceil(outputs) };
        Self {
            values: Array2::zeros((if bits == 0 { rows } else { 0 }, groups)),
            codes: (bits > 0).then(|| (bits, Array2::zeros((rows, groups)))),
            scales: Array2::ones((tiles, groups)),
            zeros: Array2::zeros((tiles, groups)),
        }
    }

    fn keep(&mut self, place: Place, values: &[f32], round: impl Fn(f32) -> f32) -> Vec<f32> {
        let values: Vec<f32> = values.iter().map(|value| round(*value)).collect();
        for (row, value) in values.iter().enumerate() {
            self.values[[place.first + row, place.group]] = *value;
        }
        values
    }

    fn quantise(&mut self, place: Place, values: &[f32], floats: DType) -> Vec<f32> {
        let Some((bits, codes)) = &mut self.codes else { return values.to_vec() };
        let max_code = f32::from(u8::MAX >> (8 - *bits));
        let grid = Tight::fit(values.iter().copied(), max_code).unwrap_or(Tight::NEUTRAL);
        let grid = grid.stored(floats);
        let at = [place.tile, place.group];
        (self.scales[at], self.zeros[at]) = (grid.scale, grid.zero);
        let quantise = |(row, value): (usize, &f32)| {
            let code = grid.code(*value, max_code);
            codes[[place.first + row, place.group]] = code as u8;
            grid.level(code)
        };
        values.iter().enumerate().map(quantise).collect()
    }
}
