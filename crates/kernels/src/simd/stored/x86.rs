//! Expanding with AVX-512 (one instruction) and AVX2 (a table of permutations).

use std::arch::x86_64::*;

use super::Stored;
use crate::simd::{Avx2, Avx512};

// SAFETY: a token exists only where the features do.
unsafe impl Stored for Avx512 {
    #[inline(always)]
    unsafe fn f32s(self, at: *const u8) -> __m512 {
        // SAFETY: the token proves the features; the caller has the numbers there.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
    #[inline(always)]
    unsafe fn f16s(self, at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn bf16s(self, at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn half_f32s(self, at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_zextps256_ps512(_mm256_loadu_ps(at.cast())) }
    }
    #[inline(always)]
    unsafe fn half_f16s(self, at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm_loadu_si128(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn half_bf16s(self, at: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())));
            _mm512_castsi512_ps(_mm512_zextsi256_si512(wide))
        }
    }
    #[inline(always)]
    fn expand(self, keep: u32, v: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_maskz_expand_ps(keep as u16, v) }
    }
    #[inline(always)]
    fn affine(self, v: __m512, scale: f32, zero: f32) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_sub_ps(v, _mm512_set1_ps(zero))) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: __m512) {
        // SAFETY: the token proves the features; the caller has place there.
        unsafe { _mm512_storeu_ps(at, v) }
    }
}

/// For every set of kept lanes, which number goes to each lane; the highest bit where none does.
static PLACES: [[u8; 8]; 256] = {
    let mut places = [[0x80; 8]; 256];
    let mut keep = 0;
    while keep < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            if keep >> lane & 1 == 1 {
                places[keep][lane] = next;
                next += 1;
            }
            lane += 1;
        }
        keep += 1;
    }
    places
};

// SAFETY: a token exists only where the features do.
unsafe impl Stored for Avx2 {
    #[inline(always)]
    unsafe fn f32s(self, at: *const u8) -> __m256 {
        // SAFETY: the token proves the features; the caller has the numbers there.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
    #[inline(always)]
    unsafe fn f16s(self, at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn bf16s(self, at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn half_f32s(self, at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_zextps128_ps256(_mm_loadu_ps(at.cast())) }
    }
    #[inline(always)]
    unsafe fn half_f16s(self, at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_zextps128_ps256(_mm_cvtph_ps(_mm_loadl_epi64(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn half_bf16s(self, at: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let wide = _mm_slli_epi32::<16>(_mm_cvtepu16_epi32(_mm_loadl_epi64(at.cast())));
            _mm256_castsi256_ps(_mm256_zextsi128_si256(wide))
        }
    }
    #[inline(always)]
    fn expand(self, keep: u32, v: __m256) -> __m256 {
        // SAFETY: the token proves the features; a row of the table has eight bytes.
        unsafe {
            let places = PLACES[keep as usize & 0xff].as_ptr();
            let places = _mm256_cvtepi8_epi32(_mm_loadl_epi64(places.cast()));
            let spread = _mm256_permutevar8x32_ps(v, places);
            _mm256_blendv_ps(spread, _mm256_setzero_ps(), _mm256_castsi256_ps(places))
        }
    }
    #[inline(always)]
    fn affine(self, v: __m256, scale: f32, zero: f32) -> __m256 {
        // SAFETY: the token proves the features.
        unsafe { _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_sub_ps(v, _mm256_set1_ps(zero))) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: __m256) {
        // SAFETY: the token proves the features; the caller has place there.
        unsafe { _mm256_storeu_ps(at, v) }
    }
}
