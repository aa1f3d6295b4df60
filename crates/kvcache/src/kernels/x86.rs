//! AVX-512 (one register) and AVX2 (two).

use std::arch::x86_64::*;

use super::LANES;
use super::lanes::{Lanes, Line, expand_portable, planes_portable};

/// Proof that code is compiled for, and runs on, AVX-512 F, BW, DQ, VL, VBMI, VBMI2 and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx512 {
    /// # Safety
    /// In code compiled for the features, on a CPU that has them.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Avx2 {
    /// # Safety
    /// In code compiled for the features, on a CPU that has them.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// Four bytes as one lane; x86 is little-endian.
#[inline(always)]
fn word(x: [i8; 4]) -> i32 {
    i32::from_le_bytes(x.map(|x| x as u8))
}

// SAFETY: a token exists only where the features do.
unsafe impl Lanes for Avx512 {
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    fn zero_i(self) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn line(self, line: &Line) -> __m512i {
        // SAFETY: the token proves the features; a line is 64 aligned bytes.
        unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
    }
    #[inline(always)]
    fn bits(self, v: __m512i, shift: u32, mask: u8) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe {
            let v =
                if shift == 0 { v } else { _mm512_srlv_epi32(v, _mm512_set1_epi32(shift as i32)) };
            if mask == 255 { v } else { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
        }
    }
    #[inline(always)]
    fn dot<const BITS: u32>(self, sum: __m512i, codes: __m512i, x: [i8; 4]) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(word(x))) }
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
        // SAFETY: the token proves the features; 16 numbers are there.
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
    fn store(self, to: &mut [f32; LANES], v: __m512) {
        // SAFETY: the token proves the features; 16 numbers are there.
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
    fn expand_bf16(self, mask: u32, v: &[u8; 4 * LANES]) -> [__m512; 2] {
        // SAFETY: the token proves the features; 64 bytes are there.
        unsafe {
            let words = spread_32(mask, _mm512_loadu_si512(v.as_ptr().cast()));
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(-0x1_0000));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
        }
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: the token proves the features; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

// Expanding from a register takes one or two cycles, straight from memory more than ten (Zen 4), and compilers fold the
// load in: hence the assembly.

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
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

// SAFETY: a token exists only where the features do.
unsafe impl Lanes for Avx2 {
    type I = [__m256i; 2];
    type F = [__m256; 2];

    #[inline(always)]
    fn zero_i(self) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    fn line(self, line: &Line) -> Self::I {
        let at: *const __m256i = line.0.as_ptr().cast();
        // SAFETY: the token proves the features; a line is 64 aligned bytes.
        unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
    }
    #[inline(always)]
    fn bits(self, v: Self::I, shift: u32, mask: u8) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe {
            let (by, mask) = (_mm256_set1_epi32(shift as i32), _mm256_set1_epi8(mask as i8));
            [
                _mm256_and_si256(_mm256_srlv_epi32(v[0], by), mask),
                _mm256_and_si256(_mm256_srlv_epi32(v[1], by), mask),
            ]
        }
    }
    #[inline(always)]
    fn dot<const BITS: u32>(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe {
            let x = _mm256_set1_epi32(word(x));
            let (one, sixteen) = (_mm256_set1_epi16(1), _mm256_set1_epi16(16));
            let half = _mm256_set1_epi8(15);
            let mut out = sum;
            for i in 0..2 {
                // Sums of pairs saturate at 16 bits, which codes of up to 7 bits never reach: those of 8 bits are
                // taken in halves.
                let low = if BITS < 8 { codes[i] } else { _mm256_and_si256(codes[i], half) };
                let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), one);
                out[i] = _mm256_add_epi32(out[i], pairs);
                if BITS == 8 {
                    let high = _mm256_and_si256(_mm256_srli_epi32::<4>(codes[i]), half);
                    let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), sixteen);
                    out[i] = _mm256_add_epi32(out[i], pairs);
                }
            }
            out
        }
    }
    #[inline(always)]
    fn to_floats(self, v: Self::I) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> Self::F {
        // SAFETY: the token proves the features; 16 numbers are there.
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
    fn store(self, to: &mut [f32; LANES], v: Self::F) {
        // SAFETY: the token proves the features; 16 numbers are there.
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
        planes_portable(values, high, low);
    }
    #[inline(always)]
    fn expand(self, mask: u16, v: Self::F) -> Self::F {
        let mut values = [0.0; LANES];
        self.store(&mut values, v);
        self.load(&expand_portable(mask, values))
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: the token proves the features; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
