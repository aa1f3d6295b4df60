//! The K types: 256 codes in groups with scales of their own.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{Kind, add_bits, centre, nibbles, planes, two_halves};
#[cfg(target_arch = "x86_64")]
use crate::blocks::avx512;
use crate::blocks::lanes::{Lanes, Unit};

/// 16 scales and minima of 4 bits, 64 bytes of codes in planes, d, dmin.
#[allow(non_camel_case_types)] // ggml's own name
pub(crate) struct Q2_K;

impl Kind for Q2_K {
    const BYTES: usize = 84;
    const BY: usize = 16;

    #[inline(always)]
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit) {
        planes(&bytes[16..80], &mut to.codes);
        let [d, dmin] = two_halves(s, bytes, [80, 82]);
        for ((scale, minimum), both) in to.scales.iter_mut().zip(&mut to.minima).zip(bytes) {
            *scale = d * f32::from(both & 15);
            *minimum = dmin * f32::from(both >> 4);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4] {
        // SAFETY: as the caller promises.
        unsafe { avx512::planes_in_place(unit.add(16)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn grids(unit: *const u8) -> (__m512, __m512) {
        // SAFETY: as the caller promises.
        unsafe {
            let both = _mm512_cvtepu8_epi32(_mm_loadu_si128(unit.cast()));
            let scales = _mm512_cvtepi32_ps(_mm512_and_si512(both, avx512::splat(15)));
            let minima = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(both));
            let (d, dmin) = avx512::two_halves(unit.add(80));
            let d = _mm512_mul_ps(d, _mm512_loadu_ps(avx512::SHARES.as_ptr()));
            (_mm512_mul_ps(scales, d), _mm512_mul_ps(minima, dmin))
        }
    }
}

/// 32 bytes of third bits, 64 of codes in planes, 12 of scales of 6 bits, d.
#[allow(non_camel_case_types)] // ggml's own name
pub(crate) struct Q3_K;

impl Kind for Q3_K {
    const BYTES: usize = 110;
    const BY: usize = 16;

    #[inline(always)]
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit) {
        planes(&bytes[32..96], &mut to.codes);
        add_bits(&bytes[..32], 4, &mut to.codes);
        centre(4, &mut to.codes);
        let ([d, _], six) = (two_halves(s, bytes, [108, 108]), &bytes[96..108]);
        for (i, scale) in to.scales.iter_mut().enumerate() {
            let low = six[i % 8] >> (4 * (i / 8)) & 15;
            let high = six[8 + i % 4] >> (2 * (i / 4)) & 3;
            *scale = d * (f32::from(low | high << 4) - 32.0);
        }
        to.minima = [0.0; 16];
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4] {
        // SAFETY: as the caller promises.
        unsafe {
            let mut codes = avx512::planes(unit.add(32));
            avx512::add_bits(unit, 4, &mut codes);
            codes
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn grids(unit: *const u8) -> (__m512, __m512) {
        // SAFETY: as the caller promises.
        unsafe {
            let low = _mm_set1_epi64x(unit.add(96).cast::<i64>().read_unaligned());
            let low = _mm_and_si128(_mm_srlv_epi64(low, _mm_set_epi64x(4, 0)), _mm_set1_epi8(15));
            let high = _mm_set1_epi32(unit.add(104).cast::<i32>().read_unaligned());
            let high = _mm_srlv_epi32(high, _mm_set_epi32(6, 4, 2, 0));
            let high = _mm_slli_epi16::<4>(_mm_and_si128(high, _mm_set1_epi8(3)));
            let six = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
            let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(six));
            let scales = _mm512_mul_ps(scales, avx512::half(unit.add(108)));
            (scales, _mm512_mul_ps(scales, _mm512_set1_ps(4.0)))
        }
    }
}

/// d, dmin, 12 bytes of scales and minima of 6 bits, 32 bytes of fifth bits if there are, 128 of two codes by 32.
pub(crate) struct Long<const FIFTH: bool>;
#[allow(non_camel_case_types)] // ggml's own names
pub(crate) type Q4_K = Long<false>;
#[allow(non_camel_case_types)]
pub(crate) type Q5_K = Long<true>;

/// What codes in low and in high nibbles are to be multiplied with, by 16.
#[cfg(target_arch = "x86_64")]
static SHARES: [f32; 16] = {
    let (a, b) = (1.0, 1.0 / 16.0);
    [a, a, b, b, a, a, b, b, a, a, b, b, a, a, b, b]
};

impl<const FIFTH: bool> Long<FIFTH> {
    const QS: usize = if FIFTH { 48 } else { 16 };
}

impl<const FIFTH: bool> Kind for Long<FIFTH> {
    const BYTES: usize = Self::QS + 128;
    const BY: usize = 32;

    #[inline(always)]
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit) {
        let runs = bytes[Self::QS..].as_chunks::<32>().0;
        for (qs, codes) in runs.iter().zip(to.codes.as_chunks_mut::<64>().0) {
            nibbles(qs, codes);
        }
        if FIFTH {
            add_bits(&bytes[16..48], 16, &mut to.codes);
        }
        let ([d, dmin], six) = (two_halves(s, bytes, [0, 2]), &bytes[4..16]);
        for j in 0..8 {
            let [scale, minimum] = match j {
                0..4 => [six[j] & 63, six[j + 4] & 63],
                _ => [six[j + 4] & 15 | six[j - 4] >> 6 << 4, six[j + 4] >> 4 | six[j] >> 6 << 4],
            };
            to.scales[2 * j..2 * j + 2].fill(d * f32::from(scale));
            to.minima[2 * j..2 * j + 2].fill(dmin * f32::from(minimum));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4] {
        // SAFETY: as the caller promises.
        unsafe {
            let mut codes = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < 4 {
                let qs = _mm256_loadu_si256(unit.add(Self::QS + 32 * i).cast());
                let qs = _mm512_broadcast_i64x4(qs);
                codes[i] = if FIFTH {
                    let split = _mm512_srlv_epi64(qs, avx512::halves(0, 4));
                    _mm512_and_si512(split, _mm512_set1_epi8(15))
                } else {
                    // High nibbles stay where they are: times 16, which their scales make good.
                    let low = 0x0f0f_0f0f_0f0f_0f0f;
                    _mm512_and_si512(qs, avx512::halves(low, low << 4))
                };
                i += 1;
            }
            if FIFTH {
                avx512::add_bits(unit.add(16), 16, &mut codes);
            }
            codes
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn grids(unit: *const u8) -> (__m512, __m512) {
        // The bytes of the block's head whose low bits count, those whose two high bits do, and -1 for none: scales of
        // the groups 0 to 7, then minima.
        static LOW: [i8; 16] = [4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15];
        static HIGH: [i8; 16] = [-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11];
        static KEPT: [i8; 16] = [63, 63, 63, 63, 15, 15, 15, 15, 63, 63, 63, 63, 15, 15, 15, 15];
        // The first or second half of eight, twice each.
        static SCALES: [i8; 16] = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7];
        static MINIMA: [i8; 16] = [8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15];
        // SAFETY: as the caller promises; the arrays hold 16 bytes.
        unsafe {
            let head = _mm_loadu_si128(unit.cast());
            let low = _mm_shuffle_epi8(head, avx512::sixteen(&LOW));
            let low = _mm_srlv_epi32(low, _mm_set_epi32(4, 0, 0, 0));
            let low = _mm_and_si128(low, avx512::sixteen(&KEPT));
            let high = _mm_srli_epi16::<2>(_mm_shuffle_epi8(head, avx512::sixteen(&HIGH)));
            // low | high & 48
            let six = _mm_ternarylogic_epi32::<0xf8>(low, high, _mm_set1_epi8(48));
            let scales = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(six, avx512::sixteen(&SCALES)));
            let minima = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(six, avx512::sixteen(&MINIMA)));
            let (mut d, dmin) = avx512::two_halves(unit);
            if !FIFTH {
                d = _mm512_mul_ps(d, _mm512_loadu_ps(SHARES.as_ptr()));
            }
            let scales = _mm512_mul_ps(_mm512_cvtepi32_ps(scales), d);
            (scales, _mm512_mul_ps(_mm512_cvtepi32_ps(minima), dmin))
        }
    }
}

/// 128 bytes of low halves, 64 of upper quarters, 16 signed scales, d.
#[allow(non_camel_case_types)] // ggml's own name
pub(crate) struct Q6_K;

impl Kind for Q6_K {
    const BYTES: usize = 210;
    const BY: usize = 16;

    #[inline(always)]
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit) {
        let (low, high) = (bytes[..128].as_chunks::<64>().0, bytes[128..192].as_chunks::<32>().0);
        for ((low, high), codes) in low.iter().zip(high).zip(to.codes.as_chunks_mut::<128>().0) {
            nibbles(low, codes);
            for (plane, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (code, high) in codes.iter_mut().zip(high) {
                    *code |= ((high >> (2 * plane) & 3) << 4) as i8;
                }
            }
        }
        centre(32, &mut to.codes);
        let [d, _] = two_halves(s, bytes, [208, 208]);
        for (scale, byte) in to.scales.iter_mut().zip(&bytes[192..208]) {
            *scale = d * f32::from(*byte as i8);
        }
        to.minima = [0.0; 16];
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4] {
        // SAFETY: as the caller promises.
        unsafe {
            let (low_bits, high_bits) = (_mm512_set1_epi8(15), _mm512_set1_epi8(48));
            let mut codes = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < 2 {
                let low = _mm512_loadu_si512(unit.add(64 * i).cast());
                let high = _mm256_loadu_si256(unit.add(128 + 32 * i).cast());
                let high = _mm512_broadcast_i64x4(high);
                // Two bits of each plane, moved above the low four.
                let first = _mm512_sllv_epi64(high, avx512::halves(4, 2));
                let second = _mm512_srlv_epi64(high, avx512::halves(0, 2));
                let lower = _mm512_and_si512(low, low_bits);
                let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(low), low_bits);
                // a | b & c
                codes[2 * i] = _mm512_ternarylogic_epi32::<0xf8>(lower, first, high_bits);
                codes[2 * i + 1] = _mm512_ternarylogic_epi32::<0xf8>(upper, second, high_bits);
                i += 1;
            }
            codes
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn grids(unit: *const u8) -> (__m512, __m512) {
        // SAFETY: as the caller promises.
        unsafe {
            let scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(unit.add(192).cast()));
            let d = avx512::half(unit.add(208));
            let scales = _mm512_mul_ps(_mm512_cvtepi32_ps(scales), d);
            (scales, _mm512_mul_ps(scales, _mm512_set1_ps(32.0)))
        }
    }
}
