//! The lanes of AVX-512 (one register) and AVX2 (two).

use std::arch::x86_64::*;

use super::{Line, PanelLanes, ROWS};
use crate::simd::{Avx2, Avx512, prefetch};

// SAFETY: a token exists only where the features do.
unsafe impl PanelLanes for Avx512 {
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn line(self, line: &Line) -> __m512i {
        // SAFETY: the token proves the features; a line is 64 aligned bytes.
        unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
    }
    #[inline(always)]
    fn shift_left(self, v: __m512i, by: usize) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_sllv_epi32(v, _mm512_set1_epi32(by as i32)) }
    }
    #[inline(always)]
    fn shift_right(self, v: __m512i, by: usize) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_srlv_epi32(v, _mm512_set1_epi32(by as i32)) }
    }
    #[inline(always)]
    fn mask(self, v: __m512i, mask: u8) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn dot<const BITS: usize>(self, sum: __m512i, codes: __m512i, x: [i8; 4]) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(word(x))) }
    }
    #[inline(always)]
    fn to_floats(self, v: __m512i) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn splat_f(self, v: f32) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn floats(self, v: &[f32; ROWS]) -> __m512 {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe { _mm512_loadu_ps(v.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; ROWS], v: __m512) {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn line_floats(self, line: &Line) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_castsi512_ps(self.line(line)) }
    }
    #[inline(always)]
    fn halves(self, line: &Line) -> (__m512, __m512) {
        let line = self.line(line);
        // SAFETY: the token proves the features.
        unsafe {
            let low = _mm512_castsi512_si256(line);
            let high = _mm512_extracti64x4_epi64::<1>(line);
            (_mm512_cvtph_ps(low), _mm512_cvtph_ps(high))
        }
    }
    #[inline(always)]
    fn prefetch(self, line: *const Line, keep: bool) {
        prefetch(line, keep);
    }
}

/// Four bytes as one lane; x86 is little-endian.
#[inline(always)]
fn word(x: [i8; 4]) -> i32 {
    i32::from_le_bytes(x.map(|x| x as u8))
}

// SAFETY: a token exists only where the features do.
unsafe impl PanelLanes for Avx2 {
    type I = [__m256i; 2];
    type F = [__m256; 2];

    #[inline(always)]
    fn zero(self) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    fn line(self, line: &Line) -> [__m256i; 2] {
        let at: *const __m256i = line.0.as_ptr().cast();
        // SAFETY: the token proves the features; a line is 64 aligned bytes.
        unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
    }
    #[inline(always)]
    fn shift_left(self, v: [__m256i; 2], by: usize) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe { v.map(|v| _mm256_sllv_epi32(v, _mm256_set1_epi32(by as i32))) }
    }
    #[inline(always)]
    fn shift_right(self, v: [__m256i; 2], by: usize) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe { v.map(|v| _mm256_srlv_epi32(v, _mm256_set1_epi32(by as i32))) }
    }
    #[inline(always)]
    fn mask(self, v: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe { v.map(|v| _mm256_and_si256(v, _mm256_set1_epi8(mask as i8))) }
    }
    #[inline(always)]
    fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn add_i(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    fn dot<const BITS: usize>(
        self,
        sum: [__m256i; 2],
        codes: [__m256i; 2],
        x: [i8; 4],
    ) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe {
            let x = _mm256_set1_epi32(word(x));
            // Sums of pairs saturate at 16 bits, which codes of up to 7 bits never reach: those of
            // 8 bits are taken in halves.
            let pairs = |sum, codes, weight| {
                let pairs = _mm256_maddubs_epi16(codes, x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(weight)))
            };
            let half = _mm256_set1_epi8(15);
            let one = |sum, codes| {
                if BITS < 8 {
                    pairs(sum, codes, 1)
                } else {
                    let low = _mm256_and_si256(codes, half);
                    let high = _mm256_and_si256(_mm256_srli_epi32::<4>(codes), half);
                    pairs(pairs(sum, low, 1), high, 16)
                }
            };
            [one(sum[0], codes[0]), one(sum[1], codes[1])]
        }
    }
    #[inline(always)]
    fn to_floats(self, v: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    fn splat_f(self, v: f32) -> [__m256; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn floats(self, v: &[f32; ROWS]) -> [__m256; 2] {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe { [_mm256_loadu_ps(v.as_ptr()), _mm256_loadu_ps(v.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; ROWS], v: [__m256; 2]) {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn line_floats(self, line: &Line) -> [__m256; 2] {
        let line = self.line(line);
        // SAFETY: the token proves the features.
        unsafe { [_mm256_castsi256_ps(line[0]), _mm256_castsi256_ps(line[1])] }
    }
    #[inline(always)]
    fn halves(self, line: &Line) -> ([__m256; 2], [__m256; 2]) {
        let line = self.line(line);
        // SAFETY: the token proves the features.
        unsafe {
            let widen = |v| {
                let (low, high) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
            };
            (widen(line[0]), widen(line[1]))
        }
    }
    #[inline(always)]
    fn prefetch(self, line: *const Line, keep: bool) {
        prefetch(line, keep);
    }
}
