//! The NEON token.

use std::arch::aarch64::*;

use super::{Simd, Token};
use crate::Isa;

/// Proof that code runs with NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    ///
    /// The caller must have been compiled with NEON and run on a CPU that has it.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Neon(())
    }
}

// SAFETY: as `new` demands.
unsafe impl Token for Neon {
    const ISA: Isa = Isa::Neon;
}

// SAFETY: a token exists only where the feature does.
unsafe impl Simd for Neon {
    type F32 = float32x4_t;
    const LANES: usize = 4;
    const TILE: usize = 4;

    #[inline(always)]
    fn splat(self, v: f32) -> float32x4_t {
        // SAFETY: the token proves the feature.
        unsafe { vdupq_n_f32(v) }
    }
    #[inline(always)]
    unsafe fn load(self, src: &[f32], at: usize) -> float32x4_t {
        // SAFETY: the token proves the feature; the caller keeps within the slice.
        unsafe { vld1q_f32(src.as_ptr().add(at)) }
    }
    #[inline(always)]
    unsafe fn put(self, to: &mut [f32], at: usize, v: float32x4_t) {
        // SAFETY: the token proves the feature; the caller keeps within the slice.
        unsafe { vst1q_f32(to.as_mut_ptr().add(at), v) }
    }
    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: the token proves the feature.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the token proves the feature.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the token proves the feature.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        // SAFETY: the token proves the feature.
        unsafe { vaddvq_f32(v) }
    }
    #[inline(always)]
    fn mul_add1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}
