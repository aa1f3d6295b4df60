//! AVX-512: one register.

use std::arch::x86_64::*;

use super::{LANES, Line, Wide, word};
use crate::simd::{Avx512, avx512};

// SAFETY: a token exists only where the features do.
unsafe impl Wide for Avx512 {
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
    fn word(self, x: [i8; 4]) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_epi32(word(x)) }
    }
    #[inline(always)]
    fn quarter(self, x: &[[i8; 4]; 4]) -> __m512i {
        // SAFETY: the token proves the features; 16 bytes are there.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [&[u8; 16]; 4]) -> __m512i {
        // SAFETY: the token proves the features; each has 16 bytes.
        unsafe {
            let v = _mm512_castsi128_si512(_mm_loadu_si128(a.as_ptr().cast()));
            let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(b.as_ptr().cast()));
            let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(c.as_ptr().cast()));
            _mm512_inserti32x4::<3>(v, _mm_loadu_si128(d.as_ptr().cast()))
        }
    }
    #[inline(always)]
    fn lookup(self, table: __m512i, codes: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_shuffle_epi8(table, codes) }
    }
    #[inline(always)]
    fn dots<const BITS: usize>(self, sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpbusd_epi32(sum, codes, x) }
    }
    #[inline(always)]
    fn sum_quarters(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe {
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
        }
    }
    #[inline(always)]
    fn to_floats(self, v: __m512i) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_ps(a, b) }
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
    fn load(self, v: &[f32; LANES]) -> __m512 {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe { _mm512_loadu_ps(v.as_ptr()) }
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8; 4 * LANES]) -> __m512 {
        // SAFETY: the token proves the features; 64 bytes are there.
        unsafe { _mm512_loadu_ps(v.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: the token proves the features; 32 bytes are there.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(v.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: the token proves the features; 32 bytes are there.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(v.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
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
    fn store(self, to: &mut [f32; LANES], v: __m512) {
        // SAFETY: the token proves the features; the array has 16 numbers.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: the token proves the features.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            let all = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
            let four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            _mm_storeu_ps(sums.as_mut_ptr(), four);
        }
        sums
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn max_abs(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the features. The second operand is what a NaN in the first gives.
        unsafe { _mm512_max_ps(_mm512_abs_ps(b), a) }
    }
    #[inline(always)]
    fn planes(self, x: __m512, high: &mut [i8; LANES], low: &mut [i8; LANES]) {
        // SAFETY: the token proves the features; both arrays have 16 bytes.
        unsafe {
            let n = _mm512_cvtps_epi32(x);
            let h = _mm512_srai_epi32::<8>(_mm512_add_epi32(n, _mm512_set1_epi32(128)));
            _mm_storeu_si128(high.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(h));
            _mm_storeu_si128(low.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(n));
        }
    }
    #[inline(always)]
    fn planes4(self, x: [__m512; 4], high: &mut [[i8; LANES]; 4], low: &mut [[i8; LANES]; 4]) {
        // SAFETY: the token proves the features; both arrays have 64 bytes.
        unsafe {
            // Packing works within quarters: fours of bytes come out transposed, and are put in order at the end.
            let a = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1]));
            let b = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let (half, byte) = (_mm512_set1_epi16(128), _mm512_set1_epi16(255));
            let h = _mm512_packs_epi16(
                _mm512_srai_epi16::<8>(_mm512_add_epi16(a, half)),
                _mm512_srai_epi16::<8>(_mm512_add_epi16(b, half)),
            );
            let l = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
            let to: *mut __m512i = high.as_mut_ptr().cast();
            _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, h));
            let to: *mut __m512i = low.as_mut_ptr().cast();
            _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, l));
        }
    }
    #[inline(always)]
    fn expand(self, mask: u16, v: __m512) -> __m512 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_maskz_expand_ps(mask, v) }
    }
    #[inline(always)]
    fn expand_f16(self, mask: u16, v: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: the token proves the features; 32 bytes are there.
        unsafe { _mm512_cvtph_ps(spread_16(mask, _mm256_loadu_si256(v.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn expand_f16_pair(self, mask: u32, v: &[u8; 4 * LANES]) -> [__m512; 2] {
        // SAFETY: the token proves the features; 64 bytes are there.
        unsafe {
            let words = spread_32(mask, _mm512_loadu_si512(v.as_ptr().cast()));
            let high = _mm512_extracti64x4_epi64::<1>(words);
            [_mm512_cvtph_ps(_mm512_castsi512_si256(words)), _mm512_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    fn expand_bf16(self, mask: u32, v: &[u8; 4 * LANES]) -> [__m512; 2] {
        // SAFETY: the token proves the features; 64 bytes are there.
        unsafe {
            let words = spread_32(mask, _mm512_loadu_si512(v.as_ptr().cast()));
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(-0x1_0000));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
        }
    }
}

// Expanding from a register takes one or two cycles, straight from memory more than ten (Zen 4), and compilers fold the
// load in: hence the assembly.

avx512! {
#[inline]
fn spread_16(mask: u16, v: __m256i) -> __m256i {
    let out;
    // SAFETY: registers only.
    unsafe {
        std::arch::asm!(
            "vpexpandw {out}{{{mask}}}{{z}}, {v}",
            out = lateout(ymm_reg) out, v = in(ymm_reg) v, mask = in(kreg) mask,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}
}

avx512! {
#[inline]
fn spread_32(mask: u32, v: __m512i) -> __m512i {
    let out;
    // SAFETY: registers only.
    unsafe {
        std::arch::asm!(
            "vpexpandw {out}{{{mask}}}{{z}}, {v}",
            out = lateout(zmm_reg) out, v = in(zmm_reg) v, mask = in(kreg) mask,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}
}
