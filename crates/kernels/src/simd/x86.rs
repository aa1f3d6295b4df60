//! AVX2 and AVX-512 tokens.

use std::arch::x86_64::*;

use super::{Simd, Token};
use crate::Isa;

/// Proof that code runs with what [`Isa::Avx2`] names.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    ///
    /// The caller must have been compiled with these features and run on a CPU that has them.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

/// Proof that code runs with what [`Isa::Avx512`] names.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    ///
    /// The caller must have been compiled with these features and run on a CPU that has them.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

// SAFETY: as `new` demands.
unsafe impl Token for Avx2 {
    const ISA: Isa = Isa::Avx2;
}

// SAFETY: a token exists only where the features do.
unsafe impl Simd for Avx2 {
    type F32 = __m256;
    const LANES: usize = 8;
    const TILE: usize = 2;

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        // SAFETY: the token proves the feature.
        unsafe { _mm256_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(self, src: &[f32], at: usize) -> __m256 {
        // SAFETY: the token proves the feature; the caller keeps within the slice.
        unsafe { _mm256_loadu_ps(src.as_ptr().add(at)) }
    }
    #[inline(always)]
    unsafe fn put(self, to: &mut [f32], at: usize, v: __m256) {
        // SAFETY: the token proves the feature; the caller keeps within the slice.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr().add(at), v) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves the feature.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the feature.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves the feature.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: the token proves the feature.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn mul_add1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

// SAFETY: as `new` demands.
unsafe impl Token for Avx512 {
    const ISA: Isa = Isa::Avx512;
}

// SAFETY: a token exists only where the features do.
unsafe impl Simd for Avx512 {
    type F32 = __m512;
    const LANES: usize = 16;
    const TILE: usize = 4;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(self, src: &[f32], at: usize) -> __m512 {
        // SAFETY: the token proves the feature; the caller keeps within the slice.
        unsafe { _mm512_loadu_ps(src.as_ptr().add(at)) }
    }
    #[inline(always)]
    unsafe fn put(self, to: &mut [f32], at: usize, v: __m512) {
        // SAFETY: the token proves the feature; the caller keeps within the slice.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr().add(at), v) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: the token proves the feature.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: the token proves the feature.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            // Each quarter holds a part of the four sums.
            let quarters = _mm512_add_ps(low, high);
            let upper = _mm512_extractf32x8_ps::<1>(quarters);
            let half = _mm256_add_ps(_mm512_castps512_ps256(quarters), upper);
            let four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            std::mem::transmute(four)
        }
    }
    #[inline(always)]
    fn mul_add1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}
