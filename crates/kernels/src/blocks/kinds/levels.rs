//! Uneven levels in blocks of 256.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{IQ4, Kind, nibbles, two_halves, word};
#[cfg(target_arch = "x86_64")]
use crate::blocks::avx512;
use crate::blocks::lanes::{Lanes, Unit};

/// d, 8 scales of 6 bits in two parts, 128 bytes of two indices by 16.
#[allow(non_camel_case_types)] // ggml's own name
pub(crate) struct IQ4_XS;

#[cfg(target_arch = "x86_64")]
const OFFSET: i8 = super::offset(&IQ4);
#[cfg(target_arch = "x86_64")]
static FROM_0: [i8; 16] = avx512::from_0(&IQ4, OFFSET);

impl Kind for IQ4_XS {
    const BYTES: usize = 136;
    const BY: usize = 32;

    #[inline(always)]
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit) {
        let groups = to.codes.as_chunks_mut::<32>().0;
        for (qs, codes) in bytes[8..136].as_chunks::<16>().0.iter().zip(groups) {
            nibbles(qs, codes);
        }
        s.look_up(&IQ4, &mut to.codes);
        let ([d, _], high) = (two_halves(s, bytes, [0, 0]), word(bytes, 2));
        for (g, scale) in to.scales.iter_mut().enumerate() {
            let group = g / 2;
            let low = bytes[4 + group / 2] >> (4 * (group % 2)) & 15;
            let level = low | ((high >> (2 * group) & 3) as u8) << 4;
            *scale = d * (f32::from(level) - 32.0);
        }
        to.minima = [0.0; 16];
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4] {
        // SAFETY: as the caller promises: a block has 128 bytes of codes from the eighth on.
        unsafe {
            let table = _mm512_broadcast_i32x4(avx512::sixteen(&FROM_0));
            let mut codes = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < 4 {
                let qs = unit.add(8 + 32 * i);
                codes[i] = _mm512_shuffle_epi8(table, avx512::two_by_two(qs, qs.add(16)));
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
            let low = _mm512_set1_epi32(unit.add(4).cast::<i32>().read_unaligned());
            let low = _mm512_srlv_epi32(low, avx512::by_two(0, 4));
            let high = _mm512_set1_epi32(i32::from(unit.add(2).cast::<u16>().read_unaligned()));
            let high = _mm512_srlv_epi32(high, avx512::by_two(0, 2));
            let high = _mm512_slli_epi32::<4>(_mm512_and_si512(high, avx512::splat(3)));
            // high | low & 15
            let level = _mm512_ternarylogic_epi32::<0xf8>(high, low, avx512::splat(15));
            let level = _mm512_sub_epi32(level, avx512::splat(32));
            let scales = _mm512_mul_ps(_mm512_cvtepi32_ps(level), avx512::half(unit));
            (scales, _mm512_mul_ps(scales, _mm512_set1_ps(f32::from(OFFSET))))
        }
    }
}
