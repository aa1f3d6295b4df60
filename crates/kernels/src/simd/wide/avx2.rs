//! AVX2: two registers.

use std::arch::x86_64::*;

use super::portable::{expand, planes};
use super::{LANES, Line, Wide, word};
use crate::simd::Avx2;

// SAFETY: a token exists only where the features do.
unsafe impl Wide for Avx2 {
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
        unsafe {
            let by = _mm256_set1_epi32(by as i32);
            [_mm256_sllv_epi32(v[0], by), _mm256_sllv_epi32(v[1], by)]
        }
    }
    #[inline(always)]
    fn shift_right(self, v: [__m256i; 2], by: usize) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe {
            let by = _mm256_set1_epi32(by as i32);
            [_mm256_srlv_epi32(v[0], by), _mm256_srlv_epi32(v[1], by)]
        }
    }
    #[inline(always)]
    fn mask(self, v: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            [_mm256_and_si256(v[0], mask), _mm256_and_si256(v[1], mask)]
        }
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
    fn word(self, x: [i8; 4]) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_set1_epi32(word(x)); 2] }
    }
    #[inline(always)]
    fn quarter(self, x: &[[i8; 4]; 4]) -> [__m256i; 2] {
        // SAFETY: the token proves the features; 16 bytes are there.
        unsafe { [_mm256_broadcastsi128_si256(_mm_loadu_si128(x.as_ptr().cast())); 2] }
    }
    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [&[u8; 16]; 4]) -> [__m256i; 2] {
        let at = |v: &[u8; 16]| v.as_ptr().cast();
        // SAFETY: the token proves the features; each has 16 bytes.
        unsafe { [_mm256_loadu2_m128i(at(b), at(a)), _mm256_loadu2_m128i(at(d), at(c))] }
    }
    #[inline(always)]
    fn lookup(self, table: [__m256i; 2], codes: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe {
            [_mm256_shuffle_epi8(table[0], codes[0]), _mm256_shuffle_epi8(table[1], codes[1])]
        }
    }
    #[inline(always)]
    fn dots<const BITS: usize>(
        self,
        sum: [__m256i; 2],
        codes: [__m256i; 2],
        x: [__m256i; 2],
    ) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe {
            // Sums of pairs saturate at 16 bits, which codes of up to 7 bits never reach: those of
            // 8 bits are taken in halves.
            let pairs = |sum, codes, x, weight| {
                let pairs = _mm256_maddubs_epi16(codes, x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(weight)))
            };
            let half = _mm256_set1_epi8(15);
            let one = |sum, codes, x| {
                if BITS < 8 {
                    pairs(sum, codes, x, 1)
                } else {
                    let low = _mm256_and_si256(codes, half);
                    let high = _mm256_and_si256(_mm256_srli_epi32::<4>(codes), half);
                    pairs(pairs(sum, low, x, 1), high, x, 16)
                }
            };
            [one(sum[0], codes[0], x[0]), one(sum[1], codes[1], x[1])]
        }
    }
    #[inline(always)]
    fn sum_quarters(self, [a, b, c, d]: [[__m256i; 2]; 4]) -> [__m256i; 2] {
        // SAFETY: the token proves the features.
        unsafe {
            let half =
                |a, b, c, d| _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            [half(a[0], b[0], c[0], d[0]), half(a[1], b[1], c[1], d[1])]
        }
    }
    #[inline(always)]
    fn to_floats(self, v: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> [__m256; 2] {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
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
    fn load(self, v: &[f32; LANES]) -> [__m256; 2] {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe { [_mm256_loadu_ps(v.as_ptr()), _mm256_loadu_ps(v.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8; 4 * LANES]) -> Self::F {
        let at: *const f32 = v.as_ptr().cast();
        // SAFETY: the token proves the features; 64 bytes are there.
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8; 2 * LANES]) -> Self::F {
        let at: *const __m128i = v.as_ptr().cast();
        // SAFETY: the token proves the features; 32 bytes are there.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)))]
        }
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8; 2 * LANES]) -> Self::F {
        let at: *const __m128i = v.as_ptr().cast();
        // SAFETY: the token proves the features; 32 bytes are there.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(at));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(1)));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
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
    fn store(self, to: &mut [f32; LANES], v: [__m256; 2]) {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        // SAFETY: the token proves the features.
        unsafe {
            let eight = _mm256_add_ps(v[0], v[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        lanes.iter().fold(0.0, |a, b| if *b > a { *b } else { a })
    }
    #[inline(always)]
    fn max_abs(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features. The second operand is what a NaN in the first gives.
        unsafe {
            let abs = |v| _mm256_andnot_ps(_mm256_set1_ps(-0.0), v);
            [_mm256_max_ps(abs(b[0]), a[0]), _mm256_max_ps(abs(b[1]), a[1])]
        }
    }
    #[inline(always)]
    fn planes(self, x: Self::F, high: &mut [i8; LANES], low: &mut [i8; LANES]) {
        let mut values = [0.0; LANES];
        self.store(&mut values, x);
        planes(values, high, low);
    }
    #[inline(always)]
    fn expand(self, mask: u16, v: Self::F) -> Self::F {
        let mut values = [0.0; LANES];
        self.store(&mut values, v);
        self.load(&expand(mask, values))
    }
}
