//! From the bits of tiles to values, as each instruction set does it.

use super::input::{self, Chunk, Totals};
use super::{FACTOR, SIDE, TILE};
use crate::simd::{Portable, Token};

/// The sums of bytes of two tiles side by side, by row and column: of the first in the low half of a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Pair(pub(super) [[u32; SIDE]; SIDE]);

impl Pair {
    pub(super) const ZERO: Self = Self([[0; SIDE]; SIDE]);
}

/// Bytes of a tile of 8 bits, and as many as a read takes beyond the end.
const LONGEST: usize = TILE + 16;

/// A tile with its beginning once more behind its end.
#[inline(always)]
fn around(tile: &[u8]) -> [u8; LONGEST] {
    let mut bytes = [0; LONGEST];
    bytes[..tile.len()].copy_from_slice(tile);
    bytes[tile.len()..][..16].copy_from_slice(&tile[..16]);
    bytes
}

/// Operations on tiles. A tile has `32 * bits` bytes.
///
/// # Safety
///
/// As for [`Token`]: an operation may be used only where the set's features are.
pub(super) unsafe trait Lanes: Token {
    /// The sums of bytes of two tiles.
    fn pair(self, bits: u32, tiles: [&[u8]; 2], to: &mut Pair);

    /// Values of pairs times activations, added to `totals`; exact but for `scale * sum` and the sum with
    /// what was there, both rounded.
    #[inline(always)]
    fn dots(self, values: &[Pair], x: &Chunk, totals: &mut Totals) {
        input::dots(values, x, totals);
    }

    /// All of that for the tiles of a band and one token, where it can be done in registers; else `false`.
    #[inline(always)]
    fn alone(self, _: u32, _: &[u8], _: &[Chunk], _: &mut Totals) -> bool {
        false
    }
}

// SAFETY: the operations are ordinary Rust and need no CPU feature.
unsafe impl Lanes for Portable {
    #[inline(always)]
    fn pair(self, bits: u32, tiles: [&[u8]; 2], to: &mut Pair) {
        for (half, tile) in tiles.into_iter().enumerate() {
            let bytes = around(tile);
            for (i, to) in to.0.as_flattened_mut().iter_mut().enumerate() {
                let at = i * bits as usize;
                let window = bytes[at / 8..at / 8 + 4].try_into().expect("four bytes");
                let state = u32::from_le_bytes(window) >> (at % 8) & 0xFFFF;
                let bytes = state.wrapping_mul(FACTOR).to_le_bytes();
                let value: u32 = bytes.into_iter().map(u32::from).sum();
                *to = if half == 0 { value } else { *to | value << 16 };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::avx512;
    use super::{Chunk, FACTOR, Lanes, Pair, Totals, around};
    use crate::simd::{Avx2, Avx512};

    // SAFETY: a token exists only where the features do.
    unsafe impl Lanes for Avx2 {
        #[inline(always)]
        fn pair(self, bits: u32, tiles: [&[u8]; 2], to: &mut Pair) {
            let k = bits as usize;
            // Of eight weights in a row: where the four bytes around their states begin, and by how many bits later.
            let (mut bytes, mut shifts) = ([0u8; 32], [0i32; 8]);
            for lane in 0..8 {
                for b in 0..4 {
                    // The lower half is taken from a copy of the upper one.
                    bytes[4 * lane + b] = (lane * k / 8 + b) as u8;
                }
                shifts[lane] = (lane * k % 8) as i32;
            }
            // SAFETY: the token proves the features. Reads of 16 bytes begin at the latest half a row before the end of the
            // tile, behind which there are 16 more; the arrays hold 32 bytes, rows of pairs 64.
            unsafe {
                let bytes = _mm256_loadu_si256(bytes.as_ptr().cast());
                let shifts = _mm256_loadu_si256(shifts.as_ptr().cast());
                let factor = _mm256_set1_epi32(FACTOR as i32);
                let low = _mm256_set1_epi32(0xFFFF);
                let ones = _mm256_set1_epi8(1);
                let one = _mm256_set1_epi16(1);
                for (half, tile) in tiles.into_iter().enumerate() {
                    let tile = around(tile);
                    for (i, to) in
                        to.0.as_flattened_mut().as_chunks_mut::<8>().0.iter_mut().enumerate()
                    {
                        let raw = _mm_loadu_si128(tile.as_ptr().add(i * k).cast());
                        let raw = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(raw), bytes);
                        let states = _mm256_and_si256(_mm256_srlv_epi32(raw, shifts), low);
                        let sums = _mm256_maddubs_epi16(_mm256_mullo_epi32(states, factor), ones);
                        let mut sums = _mm256_madd_epi16(sums, one);
                        let to: *mut __m256i = to.as_mut_ptr().cast();
                        if half == 1 {
                            let first = _mm256_loadu_si256(to);
                            sums = _mm256_or_si256(first, _mm256_slli_epi32::<16>(sums));
                        }
                        _mm256_storeu_si256(to, sums);
                    }
                }
            }
        }

        #[inline(always)]
        fn dots(self, values: &[Pair], x: &Chunk, totals: &mut Totals) {
            // SAFETY: the token proves the features; rows and levels hold 16 lanes, starts and totals 8.
            unsafe {
                let scale = _mm256_set1_ps(x.scale);
                for (r, totals) in totals.iter_mut().enumerate() {
                    let mut sums = _mm256_loadu_si256(x.start.as_ptr().cast());
                    for (pair, levels) in values.iter().zip(&x.levels) {
                        for at in [0, 8] {
                            let v = _mm256_loadu_si256(pair.0[r].as_ptr().add(at).cast());
                            let x = _mm256_loadu_si256(levels.as_ptr().add(at).cast());
                            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(v, x));
                        }
                    }
                    let to = totals.as_mut_ptr();
                    let products = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sums));
                    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), products));
                }
            }
        }
    }

    // SAFETY: a token exists only where the features do.
    unsafe impl Lanes for Avx512 {
        #[inline(always)]
        fn pair(self, bits: u32, tiles: [&[u8]; 2], to: &mut Pair) {
            // SAFETY: the token proves the features.
            unsafe { avx512::pair(bits, tiles, to) }
        }

        #[inline(always)]
        fn dots(self, values: &[Pair], x: &Chunk, totals: &mut Totals) {
            // SAFETY: the token proves the features.
            unsafe { avx512::dots(values, x, totals) }
        }

        #[inline(always)]
        fn alone(self, bits: u32, band: &[u8], x: &[Chunk], totals: &mut Totals) -> bool {
            // SAFETY: the token proves the features.
            unsafe { avx512::alone(bits, band, x, totals) }
            true
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::{Chunk, FACTOR, Lanes, Pair, Totals, around};
    use crate::simd::Neon;

    // SAFETY: a token exists only where the feature does.
    unsafe impl Lanes for Neon {
        #[inline(always)]
        fn pair(self, bits: u32, tiles: [&[u8]; 2], to: &mut Pair) {
            let k = bits as usize;
            // Of four weights in a row whose first begins at a byte, or in the middle of one.
            let (mut bytes, mut shifts) = ([[0u8; 16]; 2], [[0i32; 4]; 2]);
            for odd in 0..2 {
                for lane in 0..4 {
                    let at = odd * (4 * k % 8) + lane * k;
                    for b in 0..4 {
                        bytes[odd][4 * lane + b] = (at / 8 + b) as u8;
                    }
                    shifts[odd][lane] = -((at % 8) as i32);
                }
            }
            // SAFETY: the token proves the feature. Reads of 16 bytes begin within the tile, behind which there are 16
            // more; the arrays hold 16 bytes, rows of pairs 64.
            unsafe {
                let bytes = [vld1q_u8(bytes[0].as_ptr()), vld1q_u8(bytes[1].as_ptr())];
                let shifts = [vld1q_s32(shifts[0].as_ptr()), vld1q_s32(shifts[1].as_ptr())];
                let (factor, low) = (vdupq_n_u32(FACTOR), vdupq_n_u32(0xFFFF));
                for (half, tile) in tiles.into_iter().enumerate() {
                    let tile = around(tile);
                    let fours = to.0.as_flattened_mut().as_chunks_mut::<4>().0;
                    for (i, to) in fours.iter_mut().enumerate() {
                        let raw = vld1q_u8(tile.as_ptr().add(4 * i * k / 8));
                        let raw = vreinterpretq_u32_u8(vqtbl1q_u8(raw, bytes[i % 2]));
                        let states = vandq_u32(vshlq_u32(raw, shifts[i % 2]), low);
                        let products = vreinterpretq_u8_u32(vmulq_u32(states, factor));
                        let mut sums = vpaddlq_u16(vpaddlq_u8(products));
                        if half == 1 {
                            sums = vorrq_u32(vld1q_u32(to.as_ptr()), vshlq_n_u32::<16>(sums));
                        }
                        vst1q_u32(to.as_mut_ptr(), sums);
                    }
                }
            }
        }

        #[inline(always)]
        fn dots(self, values: &[Pair], x: &Chunk, totals: &mut Totals) {
            // SAFETY: the token proves the feature; rows and levels hold 16 lanes, starts and totals 8.
            unsafe {
                let low = vdupq_n_u32(0xFFFF);
                for (r, totals) in totals.iter_mut().enumerate() {
                    for from in [0, 4] {
                        let mut sums = vld1q_s32(x.start.as_ptr().add(from));
                        let places = [from, from + 8];
                        let pairs = values.iter().zip(&x.levels);
                        for ((pair, levels), at) in pairs.flat_map(|p| places.map(|at| (p, at))) {
                            let v = vld1q_u32(pair.0[r].as_ptr().add(at));
                            let x = vreinterpretq_s32_u32(vld1q_u32(levels.as_ptr().add(at)));
                            let first = vreinterpretq_s32_u32(vandq_u32(v, low));
                            let second = vreinterpretq_s32_u32(vshrq_n_u32::<16>(v));
                            let x_first = vshrq_n_s32::<16>(vshlq_n_s32::<16>(x));
                            sums = vmlaq_s32(sums, first, x_first);
                            sums = vmlaq_s32(sums, second, vshrq_n_s32::<16>(x));
                        }
                        let to = totals.as_mut_ptr().add(from);
                        let products = vmulq_n_f32(vcvtq_f32_s32(sums), x.scale);
                        vst1q_f32(to, vaddq_f32(vld1q_f32(to), products));
                    }
                }
            }
        }
    }
}
