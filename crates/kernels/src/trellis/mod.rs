//! Weights that are a path through a trellis of 2^16 states: fixed bits a weight, values computed from states.
//!
//! A tile of 16 x 16 weights is a stream of `256 bits` bits, the lowest of a byte first, read around in a circle: the state of
//! weight `i`, row by row, is what the 16 bits from bit `i * bits` on say, so that neighbours share all bits but `bits`. Its
//! value is the sum of the four bytes of `state * 0x83DCD12D` (modulo 2^32), less 510: near to normal, of variance 147.7².
//! How values are found is in [`values`](self::values), how products are made in [`product`](self::product), and which path
//! is nearest to given weights in [`path`](self::path).

#[cfg(target_arch = "x86_64")]
mod avx512;
mod input;
mod path;
mod product;
mod values;

pub(crate) use input::{Inputs, Totals};
#[cfg(test)]
pub(crate) use path::{Code, encode_code};
pub use path::{trellis_encode, trellis_encode_on};
pub use product::{trellis_matmul, trellis_part, trellis_part_on};

/// Rows, and columns, of a tile.
pub(crate) const SIDE: usize = 16;
/// Weights of a tile.
pub(crate) const TILE: usize = SIDE * SIDE;
/// Bits of a state.
const STATE: u32 = 16;
/// States are multiplied by this.
const FACTOR: u32 = 0x83DC_D12D;
/// The mean of the sums of bytes.
const MEAN: i32 = 510;

/// Weights of a tile of a trellis code.
pub const TRELLIS_TILE: usize = TILE;

/// What a scale of 1 multiplies [`trellis_value`] by: values have a variance near 1 then.
pub const TRELLIS_UNIT: f32 = 1.0 / 147.7;

/// The value of a state: the sum of the four bytes of its product with 0x83DCD12D, less 510.
///
/// ```
/// use tensorpress_kernels::trellis_value;
///
/// assert_eq!(trellis_value(0), -510);
/// assert_eq!(trellis_value(1), 0x83 + 0xDC + 0xD1 + 0x2D - 510);
/// ```
#[must_use]
#[inline]
pub fn trellis_value(state: u16) -> i32 {
    let bytes = u32::from(state).wrapping_mul(FACTOR).to_le_bytes();
    bytes.into_iter().map(i32::from).sum::<i32>() - MEAN
}

/// The values of a tile from its codes, each the first `bits` bits of its weight's state: of any number of codes, in fact, as
/// long as they have 16 bits together.
///
/// # Panics
///
/// Unless `bits` is 1 to 8, the lengths are equal and there are 16 bits.
pub fn trellis_values(codes: &[u8], bits: u32, values: &mut [i16]) {
    assert!((1..=8).contains(&bits), "trellis: {bits} bits");
    assert_eq!(codes.len(), values.len(), "trellis: codes and values");
    assert!(codes.len() * bits as usize >= STATE as usize, "trellis: a path too short");
    let mut state = 0u32;
    let mut enter = |code: u8| {
        state = state << bits | u32::from(code) & ((1 << bits) - 1);
        state as u16
    };
    // The end is before the beginning.
    for code in codes[..STATE.div_ceil(bits) as usize].iter().rev() {
        enter(*code);
    }
    for (code, value) in codes.iter().zip(values).rev() {
        *value = trellis_value(enter(*code)) as i16;
    }
}

/// A matrix `[rows, cols]` of tiles, those of 16 rows one after another from the first columns on; the last ones of rows and
/// columns are whole too.
#[derive(Clone, Copy, Debug)]
pub struct TrellisRows<'a> {
    /// The tiles, at any alignment.
    pub tiles: &'a [u8],
    /// Bits of a weight, 1 to 8.
    pub bits: u32,
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
    /// One for each row, or one for all: weights are `scale * TRELLIS_UNIT` times values, both products rounded.
    pub scales: &'a [f32],
}

impl TrellisRows<'_> {
    /// Bytes of 16 rows.
    #[must_use]
    pub fn band_bytes(&self) -> usize {
        self.cols.div_ceil(SIDE) * self.tile_bytes()
    }

    fn tile_bytes(&self) -> usize {
        TILE / 8 * self.bits as usize
    }

    /// # Panics
    ///
    /// If the fields do not fit together.
    fn check(&self) {
        assert!((1..=8).contains(&self.bits), "trellis rows: {} bits", self.bits);
        let bytes = self.band_bytes().checked_mul(self.rows.div_ceil(SIDE));
        assert_eq!(Some(self.tiles.len()), bytes, "trellis rows: size of the tiles");
        let scales = self.scales.len();
        assert!(scales == 1 || scales == self.rows, "trellis rows: number of scales");
    }

    /// The tiles of band number `band`.
    fn band(&self, band: usize) -> &[u8] {
        &self.tiles[band * self.band_bytes()..(band + 1) * self.band_bytes()]
    }

    fn step(&self, row: usize) -> f32 {
        let scale = if self.scales.len() == 1 { self.scales[0] } else { self.scales[row] };
        scale * TRELLIS_UNIT
    }
}
