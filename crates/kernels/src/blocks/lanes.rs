//! What the instruction sets without products of unsigned and signed bytes do for blocks.

use half::f16;

use super::input::Words;
use super::{GROUP, GROUPS, UNIT};
use crate::simd::{Portable, Token};

/// 256 weights: `scales[i / 16] * codes[i] - minima[i / 16]`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Unit {
    /// Signed; on AVX-512 unsigned, with an offset that the minima take off.
    pub(super) codes: [i8; UNIT],
    pub(super) scales: [f32; GROUPS],
    pub(super) minima: [f32; GROUPS],
}

impl Unit {
    pub(super) const ZERO: Self =
        Self { codes: [0; UNIT], scales: [0.0; GROUPS], minima: [0.0; GROUPS] };
}

/// Operations on units. Closures are not always compiled for the instruction set of the function they stand in: no
/// operation may be called in one.
///
/// # Safety
///
/// As for [`Token`]: an operation may be used only where the set's features are.
pub(super) unsafe trait Lanes: Token {
    /// Widens f16.
    fn halves(self, bits: [u16; 8]) -> [f32; 8];
    /// Replaces indices, 0 to 15, by what a table holds.
    fn look_up(self, table: &[i8; 16], codes: &mut [i8; UNIT]);
    /// The product of units with as many of activations; `by` weights share a scale, 16 or 32.
    fn dot(self, by: usize, units: &[Unit], x: &[Words]) -> f32;
}

// SAFETY: the operations are ordinary Rust and need no CPU feature.
unsafe impl Lanes for Portable {
    #[inline(always)]
    fn halves(self, bits: [u16; 8]) -> [f32; 8] {
        bits.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], codes: &mut [i8; UNIT]) {
        codes.iter_mut().for_each(|code| *code = table[usize::from(*code as u8 & 15)]);
    }
    #[inline(always)]
    fn dot(self, _: usize, units: &[Unit], x: &[Words]) -> f32 {
        let (mut sums, mut minima) = ([0.0f32; GROUPS], [0.0f32; GROUPS]);
        for (unit, x) in units.iter().zip(x) {
            let groups = unit.codes.as_chunks::<GROUP>().0.iter();
            for (g, (codes, levels)) in groups.zip(x.levels.as_chunks::<GROUP>().0).enumerate() {
                let products = codes.iter().zip(levels).map(|(c, x)| i32::from(*c) * i32::from(*x));
                sums[g] += products.sum::<i32>() as f32 * (unit.scales[g] * x.grids.scales[g]);
                minima[g] += unit.minima[g] * x.grids.sums[g];
            }
        }
        sums.iter().sum::<f32>() - minima.iter().sum::<f32>()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, UNIT, Unit, Words};
    use crate::simd::Avx2;

    // SAFETY: a token exists only where the features do.
    unsafe impl Lanes for Avx2 {
        #[inline(always)]
        fn halves(self, bits: [u16; 8]) -> [f32; 8] {
            let mut floats = [0.0; 8];
            // SAFETY: the token proves the features; both arrays hold eight.
            unsafe {
                let wide = _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast()));
                _mm256_storeu_ps(floats.as_mut_ptr(), wide);
            }
            floats
        }
        #[inline(always)]
        fn look_up(self, table: &[i8; 16], codes: &mut [i8; UNIT]) {
            // SAFETY: the token proves the features; chunks hold 32 bytes.
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                for codes in codes.as_chunks_mut::<32>().0 {
                    let at: *mut __m256i = codes.as_mut_ptr().cast();
                    _mm256_storeu_si256(at, _mm256_shuffle_epi8(table, _mm256_loadu_si256(at)));
                }
            }
        }
        #[inline(always)]
        fn dot(self, by: usize, units: &[Unit], x: &[Words]) -> f32 {
            // SAFETY: the token proves the features; reads lie within arrays of 256 codes and 16 scales.
            unsafe {
                let mut sums = [_mm256_setzero_ps(); 4];
                let mut minima = [_mm256_setzero_ps(); 2];
                for (unit, x) in units.iter().zip(x) {
                    let mut scales = [0.0f32; 16];
                    for half in 0..2 {
                        let at = 8 * half;
                        let grid = _mm256_loadu_ps(x.grids.scales.as_ptr().add(at));
                        let scale = _mm256_loadu_ps(unit.scales.as_ptr().add(at));
                        _mm256_storeu_ps(scales.as_mut_ptr().add(at), _mm256_mul_ps(grid, scale));
                        let sum = _mm256_loadu_ps(x.grids.sums.as_ptr().add(at));
                        let minimum = _mm256_loadu_ps(unit.minima.as_ptr().add(at));
                        minima[half] = _mm256_fmadd_ps(minimum, sum, minima[half]);
                    }
                    let mut g = 0;
                    while g < 16 {
                        let mut dot = pairs(unit, x, g);
                        if by == 32 {
                            dot = _mm256_add_epi32(dot, pairs(unit, x, g + 1));
                        }
                        let scale = _mm256_set1_ps(scales[g]);
                        let sum = &mut sums[g / (by / 16) % 4];
                        *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, *sum);
                        g += by / 16;
                    }
                }
                let sums =
                    _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
                let eight = _mm256_sub_ps(sums, _mm256_add_ps(minima[0], minima[1]));
                let four =
                    _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
    }

    /// The products of group `g`, added by pairs.
    ///
    /// # Safety
    ///
    /// Where AVX2 is; `g < 16`.
    #[inline(always)]
    unsafe fn pairs(unit: &Unit, x: &Words, g: usize) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = _mm_loadu_si128(unit.codes.as_ptr().add(16 * g).cast());
            let levels = _mm256_loadu_si256(x.levels.as_ptr().add(16 * g).cast());
            _mm256_madd_epi16(_mm256_cvtepi8_epi16(codes), levels)
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use half::f16;

    use super::{Lanes, UNIT, Unit, Words};
    use crate::simd::Neon;

    // SAFETY: a token exists only where the feature does.
    unsafe impl Lanes for Neon {
        #[inline(always)]
        fn halves(self, bits: [u16; 8]) -> [f32; 8] {
            bits.map(|bits| f16::from_bits(bits).to_f32())
        }
        #[inline(always)]
        fn look_up(self, table: &[i8; 16], codes: &mut [i8; UNIT]) {
            // SAFETY: the token proves the feature; chunks hold 16 bytes.
            unsafe {
                let table = vld1q_s8(table.as_ptr());
                for codes in codes.as_chunks_mut::<16>().0 {
                    let at = codes.as_mut_ptr();
                    vst1q_s8(at, vqtbl1q_s8(table, vreinterpretq_u8_s8(vld1q_s8(at))));
                }
            }
        }
        #[inline(always)]
        fn dot(self, by: usize, units: &[Unit], x: &[Words]) -> f32 {
            // SAFETY: the token proves the feature; reads lie within arrays of 256 codes and 16 scales.
            unsafe {
                let mut sums = [vdupq_n_f32(0.0); 4];
                let mut minima = vdupq_n_f32(0.0);
                for (unit, x) in units.iter().zip(x) {
                    let mut scales = [0.0f32; 16];
                    for at in [0, 4, 8, 12] {
                        let grid = vld1q_f32(x.grids.scales.as_ptr().add(at));
                        let scale = vld1q_f32(unit.scales.as_ptr().add(at));
                        vst1q_f32(scales.as_mut_ptr().add(at), vmulq_f32(grid, scale));
                        let sum = vld1q_f32(x.grids.sums.as_ptr().add(at));
                        minima = vfmaq_f32(minima, vld1q_f32(unit.minima.as_ptr().add(at)), sum);
                    }
                    let mut g = 0;
                    while g < 16 {
                        let mut dot = fours(unit, x, g);
                        if by == 32 {
                            dot = vaddq_s32(dot, fours(unit, x, g + 1));
                        }
                        let sum = &mut sums[g / (by / 16) % 4];
                        *sum = vfmaq_n_f32(*sum, vcvtq_f32_s32(dot), scales[g]);
                        g += by / 16;
                    }
                }
                let sums = vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3]));
                vaddvq_f32(vsubq_f32(sums, minima))
            }
        }
    }

    /// The products of group `g`, added by fours.
    ///
    /// # Safety
    ///
    /// Where NEON is; `g < 16`.
    #[inline(always)]
    unsafe fn fours(unit: &Unit, x: &Words, g: usize) -> int32x4_t {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = vld1q_s8(unit.codes.as_ptr().add(16 * g));
            let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
            let at = x.levels.as_ptr().add(16 * g);
            let (first, second) = (vld1q_s16(at), vld1q_s16(at.add(8)));
            let dot = vmull_s16(vget_low_s16(low), vget_low_s16(first));
            let dot = vmlal_high_s16(dot, low, first);
            let dot = vmlal_s16(dot, vget_low_s16(high), vget_low_s16(second));
            vmlal_high_s16(dot, high, second)
        }
    }
}
