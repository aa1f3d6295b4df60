//! Blocks of 32, eight to a unit.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{E2M1, IQ4, Kind, nibbles, offset, word};
use crate::blocks::UNIT;
#[cfg(target_arch = "x86_64")]
use crate::blocks::avx512;
use crate::blocks::lanes::{Lanes, Unit};

const BLOCKS: usize = UNIT / 32;

/// No table of levels.
const NONE: u8 = 0;
const IQ4_LEVELS: u8 = 1;
const E2M1_LEVELS: u8 = 2;

/// Blocks of `BYTES` bytes: a scale (f16, or E8M0 with E2M1), with `MIN` an f16 that is added, 32 fifth bits at byte
/// `FIFTH` unless that is 0, and 16 bytes of two codes from byte `QS` on, low ones first. Codes may name levels of a table.
pub(crate) struct Short<
    const BYTES: usize,
    const QS: usize,
    const FIFTH: usize,
    const MIN: bool,
    const LEVELS: u8,
>;

#[allow(non_camel_case_types)] // ggml's own names
pub(crate) type Q4_0 = Short<18, 2, 0, false, NONE>;
#[allow(non_camel_case_types)]
pub(crate) type Q4_1 = Short<20, 4, 0, true, NONE>;
#[allow(non_camel_case_types)]
pub(crate) type Q5_0 = Short<22, 6, 2, false, NONE>;
#[allow(non_camel_case_types)]
pub(crate) type Q5_1 = Short<24, 8, 4, true, NONE>;
#[allow(non_camel_case_types)]
pub(crate) type IQ4_NL = Short<18, 2, 0, false, IQ4_LEVELS>;
pub(crate) type MXFP4 = Short<17, 1, 0, false, E2M1_LEVELS>;

impl<const BYTES: usize, const QS: usize, const FIFTH: usize, const MIN: bool, const LEVELS: u8>
    Short<BYTES, QS, FIFTH, MIN, LEVELS>
{
    const TABLE: &'static [i8; 16] = if LEVELS == E2M1_LEVELS { &E2M1 } else { &IQ4 };

    /// What is taken off unsigned codes.
    const OFFSET: i8 = match LEVELS {
        NONE if MIN => 0,
        NONE if FIFTH > 0 => 16,
        NONE => 8,
        _ => offset(Self::TABLE),
    };

    #[cfg(target_arch = "x86_64")]
    const TABLE_FROM_0: &'static [i8; 16] = &avx512::from_0(Self::TABLE, Self::OFFSET);
}

impl<const BYTES: usize, const QS: usize, const FIFTH: usize, const MIN: bool, const LEVELS: u8>
    Kind for Short<BYTES, QS, FIFTH, MIN, LEVELS>
{
    const BYTES: usize = BLOCKS * BYTES;
    const BY: usize = 32;

    #[inline(always)]
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit) {
        let blocks = bytes.as_chunks::<BYTES>().0;
        for (block, codes) in blocks.iter().zip(to.codes.as_chunks_mut::<32>().0) {
            nibbles(&block[QS..QS + 16], codes);
            if FIFTH > 0 {
                let [low, high] = [word(block, FIFTH), word(block, FIFTH + 2)].map(u32::from);
                let bits = low | high << 16;
                for (i, code) in codes.iter_mut().enumerate() {
                    *code |= ((bits >> i & 1) << 4) as i8;
                }
            }
        }
        if LEVELS == NONE {
            super::centre(Self::OFFSET, &mut to.codes);
        } else {
            s.look_up(Self::TABLE, &mut to.codes);
        }
        let mut scales = [0.0; BLOCKS];
        if LEVELS == E2M1_LEVELS {
            for (scale, block) in scales.iter_mut().zip(blocks) {
                *scale = half_e8m0(block[0]);
            }
        } else {
            scales = halves::<S, BYTES>(s, bytes, 0);
        }
        spread(&scales, &mut to.scales);
        if MIN {
            spread(&halves::<S, BYTES>(s, bytes, 2).map(|m| -m), &mut to.minima);
        } else {
            to.minima = [0.0; 16];
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4] {
        // SAFETY: as the caller promises: all reads lie within eight blocks.
        unsafe {
            let mut codes = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < 4 {
                let block = unit.add(2 * i * BYTES);
                codes[i] = avx512::two_by_two(block.add(QS), block.add(BYTES + QS));
                if FIFTH > 0 {
                    let low = block.add(FIFTH).cast::<u32>().read_unaligned();
                    let high = block.add(BYTES + FIFTH).cast::<u32>().read_unaligned();
                    let bits = u64::from(low) | u64::from(high) << 32;
                    codes[i] = _mm512_mask_add_epi8(codes[i], bits, codes[i], _mm512_set1_epi8(16));
                }
                if LEVELS != NONE {
                    let table = avx512::sixteen(Self::TABLE_FROM_0);
                    codes[i] = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes[i]);
                }
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
            let scales = if LEVELS == E2M1_LEVELS {
                avx512::half_e8m0(avx512::Strided::<BYTES, 0>::bytes(unit))
            } else {
                _mm512_cvtph_ps(avx512::Strided::<BYTES, 0>::words(unit))
            };
            if MIN {
                let added = _mm512_cvtph_ps(avx512::Strided::<BYTES, 2>::words(unit));
                let sign = avx512::splat(i32::MIN);
                (scales, _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(added), sign)))
            } else {
                (scales, _mm512_mul_ps(scales, _mm512_set1_ps(f32::from(Self::OFFSET))))
            }
        }
    }
}

/// Blocks of an f16 and 32 signed bytes.
#[allow(non_camel_case_types)] // ggml's own name
pub(crate) struct Q8_0;

impl Kind for Q8_0 {
    const BYTES: usize = BLOCKS * 34;
    const BY: usize = 32;

    #[inline(always)]
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit) {
        let codes = to.codes.as_chunks_mut::<32>().0;
        for (block, codes) in bytes.as_chunks::<34>().0.iter().zip(codes) {
            for (code, byte) in codes.iter_mut().zip(&block[2..]) {
                *code = *byte as i8;
            }
        }
        spread(&halves::<S, 34>(s, bytes, 0), &mut to.scales);
        to.minima = [0.0; 16];
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4] {
        // SAFETY: as the caller promises: all reads lie within eight blocks.
        unsafe {
            let mut codes = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < 4 {
                let low = _mm256_loadu_si256(unit.add(68 * i + 2).cast());
                let high = _mm256_loadu_si256(unit.add(68 * i + 36).cast());
                let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
                codes[i] = _mm512_xor_si512(both, _mm512_set1_epi8(i8::MIN));
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
            let scales = _mm512_cvtph_ps(avx512::Strided::<34, 0>::words(unit));
            (scales, _mm512_mul_ps(scales, _mm512_set1_ps(128.0)))
        }
    }
}

/// The f16 at byte `at` of each block.
#[inline(always)]
fn halves<S: Lanes, const BYTES: usize>(s: S, bytes: &[u8], at: usize) -> [f32; BLOCKS] {
    let mut bits = [0; BLOCKS];
    for (bits, block) in bits.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        *bits = word(block, at);
    }
    s.halves(bits)
}

/// What each 32 share, for each 16.
#[inline(always)]
fn spread(values: &[f32; BLOCKS], to: &mut [f32; 2 * BLOCKS]) {
    for (to, value) in to.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *to = [*value; 2];
    }
}

/// Half of a power of two: `2^(e - 128)`.
#[inline(always)]
fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 1 << 21 << e } else { u32::from(e - 1) << 23 })
}
