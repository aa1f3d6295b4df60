//! NEON: four registers.

use std::arch::aarch64::*;

use super::LANES;
use super::lanes::{Lanes, Line, Portable, expand_portable, planes_portable};

/// Proof that code is compiled for, and runs on, NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    /// # Safety
    /// In code compiled for the feature, on a CPU that has it.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: a token exists only where the feature does.
unsafe impl Lanes for Neon {
    type I = [int32x4_t; 4];
    type F = [float32x4_t; 4];

    #[inline(always)]
    fn zero_i(self) -> Self::I {
        // SAFETY: the token proves the feature.
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    fn line(self, line: &Line) -> Self::I {
        // SAFETY: the token proves the feature; a line is 64 bytes.
        unsafe {
            std::array::from_fn(|i| vreinterpretq_s32_u8(vld1q_u8(line.0.as_ptr().add(16 * i))))
        }
    }
    #[inline(always)]
    fn bits(self, v: Self::I, shift: u32, mask: u8) -> Self::I {
        // SAFETY: the token proves the feature.
        unsafe {
            // To the right is to the left by a negative number here; unsigned brings in zeros.
            let by = vdupq_n_s32(-(shift as i32));
            let mask = vreinterpretq_s32_u8(vdupq_n_u8(mask));
            v.map(|v| {
                vandq_s32(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), by)), mask)
            })
        }
    }
    #[inline(always)]
    fn dot<const BITS: u32>(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I {
        // SAFETY: the token proves the feature.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8))));
            // Sums of pairs stay within 16 bits for codes of up to 7 bits, which are the same signed as unsigned:
            // those of 8 bits are taken in halves.
            let pairs = |codes: int32x4_t| {
                let codes = vreinterpretq_s8_s32(codes);
                let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
                vpaddq_s16(low, vmull_high_s8(codes, x))
            };
            std::array::from_fn(|i| {
                if BITS < 8 {
                    vpadalq_s16(sum[i], pairs(codes[i]))
                } else {
                    let bytes = vreinterpretq_u8_s32(codes[i]);
                    let low = vreinterpretq_s32_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                    let high = vreinterpretq_s32_u8(vshrq_n_u8::<4>(bytes));
                    let high = vshlq_n_s32::<4>(vpaddlq_s16(pairs(high)));
                    vaddq_s32(vpadalq_s16(sum[i], pairs(low)), high)
                }
            })
        }
    }
    #[inline(always)]
    fn to_floats(self, v: Self::I) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { v.map(|v| vcvtq_f32_s32(v)) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { [vdupq_n_f32(v); 4] }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vaddq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vmulq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> Self::F {
        // SAFETY: the token proves the feature; 16 numbers are there.
        unsafe { std::array::from_fn(|i| vld1q_f32(v.as_ptr().add(4 * i))) }
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8; 4 * LANES]) -> Self::F {
        // SAFETY: the token proves the feature; 64 bytes are there.
        unsafe { std::array::from_fn(|i| vreinterpretq_f32_u8(vld1q_u8(v.as_ptr().add(16 * i)))) }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8; 2 * LANES]) -> Self::F {
        self.load(&Portable.load_f16(v))
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8; 2 * LANES]) -> Self::F {
        self.load(&Portable.load_bf16(v))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: Self::F) {
        for (to, v) in to.chunks_exact_mut(4).zip(v) {
            // SAFETY: the token proves the feature; a chunk has four numbers.
            unsafe { vst1q_f32(to.as_mut_ptr(), v) }
        }
    }
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        // SAFETY: the token proves the feature.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(v[0], v[1]), vaddq_f32(v[2], v[3]))) }
    }
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        // SAFETY: the token proves the feature.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(v[0], v[1]), vmaxnmq_f32(v[2], v[3]))) }
    }
    #[inline(always)]
    fn max_abs(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vmaxnmq_f32(a[i], vabsq_f32(b[i]))) }
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
    fn prefetch(self, _: *const u8) {}
}
