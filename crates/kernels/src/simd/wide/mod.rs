//! Sixteen 32-bit lanes on every instruction set, whatever its registers: rows of a panel, tokens of a cache, rows of a
//! sweep.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use half::bf16;

use super::Token;

/// Lanes of a wide vector.
pub const LANES: usize = 16;

/// 64 aligned bytes: a cache line, or 16 lanes of four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

impl Line {
    /// All bytes 0.
    pub const ZERO: Self = Self([0; 64]);
}

/// The largest integer that two planes of int8 hold on both sides of zero.
pub(crate) const LEVELS: f32 = 32_639.0;

/// Operations on 16 lanes of integers or floats. Closures are not always compiled for the instruction set of the function
/// they stand in: no operation may be called in one. Integer operations wrap, and are the same on every set.
///
/// # Safety
///
/// As for [`Token`]: an operation may be used only where the set's features are.
pub(crate) unsafe trait Wide: Token {
    /// 16 integers, or 16 times four bytes.
    type I: Copy;
    /// 16 floats.
    type F: Copy;

    fn zero(self) -> Self::I;
    fn line(self, line: &Line) -> Self::I;
    fn shift_left(self, v: Self::I, by: usize) -> Self::I;
    fn shift_right(self, v: Self::I, by: usize) -> Self::I;
    /// The bits `mask` of each byte.
    fn mask(self, v: Self::I, mask: u8) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Four bytes in every lane.
    fn word(self, x: [i8; 4]) -> Self::I;
    /// The same 16 bytes in every quarter.
    fn quarter(self, x: &[[i8; 4]; 4]) -> Self::I;
    /// Four quarters of 16 bytes each.
    fn quarters(self, v: [&[u8; 16]; 4]) -> Self::I;
    /// The bytes that `codes` below 16 name among the 16 of each quarter of `table`.
    fn lookup(self, table: Self::I, codes: Self::I) -> Self::I;
    /// Adds to each lane the product of its four codes (of `BITS` bits) with its four signed bytes of `x`.
    fn dots<const BITS: usize>(self, sum: Self::I, codes: Self::I, x: Self::I) -> Self::I;
    /// [`Wide::dots`] with the same four bytes in every lane.
    #[inline(always)]
    fn dot<const BITS: usize>(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I {
        self.dots::<BITS>(sum, codes, self.word(x))
    }
    /// Lane `4 q + i` is the sum of the four lanes in quarter `q` of vector `i`.
    fn sum_quarters(self, v: [Self::I; 4]) -> Self::I;
    fn to_floats(self, v: Self::I) -> Self::F;
    /// The bits `mask` of each byte after a shift to the right.
    #[inline(always)]
    fn bits(self, v: Self::I, shift: usize, mask: u8) -> Self::I {
        let v = if shift == 0 { v } else { self.shift_right(v, shift) };
        if mask == 255 { v } else { self.mask(v, mask) }
    }

    fn splat(self, v: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once, in software if need be: the same bits on every set.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the set does that.
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.fma(a, b, c)
    }
    fn load(self, v: &[f32; LANES]) -> Self::F;
    fn load_f32(self, v: &[u8; 4 * LANES]) -> Self::F;
    fn load_f16(self, v: &[u8; 2 * LANES]) -> Self::F;
    fn load_bf16(self, v: &[u8; 2 * LANES]) -> Self::F;
    /// A line of 16 f32.
    fn line_floats(self, line: &Line) -> Self::F;
    /// A line of twice 16 f16.
    fn halves(self, line: &Line) -> (Self::F, Self::F);
    fn store(self, to: &mut [f32; LANES], v: Self::F);
    fn sum(self, v: Self::F) -> f32;
    /// The sums of four.
    #[inline(always)]
    fn sum4(self, v: [Self::F; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }
    /// The largest lane.
    fn largest(self, v: Self::F) -> f32;
    /// The larger of `a` and `|b|`.
    fn max_abs(self, a: Self::F, b: Self::F) -> Self::F;
    /// `x` rounded to integers of at most [`LEVELS`], as `256 * high + low`.
    fn planes(self, x: Self::F, high: &mut [i8; LANES], low: &mut [i8; LANES]);
    /// [`Wide::planes`] of 64 numbers.
    #[inline(always)]
    fn planes4(self, x: [Self::F; 4], high: &mut [[i8; LANES]; 4], low: &mut [[i8; LANES]; 4]) {
        for i in 0..4 {
            self.planes(x[i], &mut high[i], &mut low[i]);
        }
    }
    /// Spreads the first lanes of `v` to the places of the bits of `mask`; the others are 0.
    fn expand(self, mask: u16, v: Self::F) -> Self::F;
    /// [`Wide::expand`] of values in 16 bits: 16 of them can be read.
    #[inline(always)]
    fn expand_f16(self, mask: u16, v: &[u8; 2 * LANES]) -> Self::F {
        self.expand(mask, self.load_f16(v))
    }
    /// [`Wide::expand`] of 32 values: the first 16 lanes, the others.
    #[inline(always)]
    fn expand_f16_pair(self, mask: u32, v: &[u8; 4 * LANES]) -> [Self::F; 2] {
        let first = mask as u16;
        let at = 2 * first.count_ones() as usize;
        let second = v[at..].first_chunk().expect("at most half went before");
        let low = self.expand_f16(first, v.first_chunk().expect("half of the bytes"));
        [low, self.expand_f16((mask >> 16) as u16, second)]
    }
    /// [`Wide::expand`] of 32 values: even and odd lanes.
    #[inline(always)]
    fn expand_bf16(self, mask: u32, v: &[u8; 4 * LANES]) -> [Self::F; 2] {
        let mut lanes = [[0.0; LANES]; 2];
        let (mut rest, words) = (mask, v.as_chunks::<2>().0);
        for word in words.iter().take(mask.count_ones() as usize) {
            let at = rest.trailing_zeros() as usize;
            lanes[at % 2][at / 2] = bf16::from_le_bytes(*word).to_f32();
            rest &= rest - 1;
        }
        [self.load(&lanes[0]), self.load(&lanes[1])]
    }
}

#[cfg(target_arch = "x86_64")]
/// Four bytes as one lane; x86 is little-endian.
#[inline(always)]
fn word(x: [i8; 4]) -> i32 {
    i32::from_le_bytes(x.map(|x| x as u8))
}
