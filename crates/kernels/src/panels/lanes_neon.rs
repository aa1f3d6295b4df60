//! The lanes of NEON: four registers.

use std::arch::aarch64::*;

use super::{Line, PanelLanes, ROWS};
use crate::simd::{Neon, Portable};

// SAFETY: a token exists only where the feature does.
unsafe impl PanelLanes for Neon {
    type I = [int32x4_t; 4];
    type F = [float32x4_t; 4];

    #[inline(always)]
    fn zero(self) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    fn line(self, line: &Line) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature; a line is 64 bytes.
        unsafe {
            std::array::from_fn(|i| vreinterpretq_s32_u8(vld1q_u8(line.0.as_ptr().add(16 * i))))
        }
    }
    #[inline(always)]
    fn shift_left(self, v: [int32x4_t; 4], by: usize) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { v.map(|v| vshlq_s32(v, vdupq_n_s32(by as i32))) }
    }
    #[inline(always)]
    fn shift_right(self, v: [int32x4_t; 4], by: usize) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe {
            // To the right is to the left by a negative number here; unsigned brings in zeros.
            let by = vdupq_n_s32(-(by as i32));
            v.map(|v| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), by)))
        }
    }
    #[inline(always)]
    fn mask(self, v: [int32x4_t; 4], mask: u8) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe {
            let mask = vreinterpretq_s32_u8(vdupq_n_u8(mask));
            v.map(|v| vandq_s32(v, mask))
        }
    }
    #[inline(always)]
    fn or(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vorrq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    fn add_i(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vaddq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    fn dot<const BITS: usize>(
        self,
        sum: [int32x4_t; 4],
        codes: [int32x4_t; 4],
        x: [i8; 4],
    ) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8))));
            // Sums of pairs stay within 16 bits for codes of up to 7 bits, which are the same
            // signed as unsigned: those of 8 bits are taken in halves.
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
    fn to_floats(self, v: [int32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { v.map(|v| vcvtq_f32_s32(v)) }
    }
    #[inline(always)]
    fn splat_f(self, v: f32) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { [vdupq_n_f32(v); 4] }
    }
    #[inline(always)]
    fn mul(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vmulq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    fn fma(
        self,
        a: [float32x4_t; 4],
        b: [float32x4_t; 4],
        c: [float32x4_t; 4],
    ) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    fn floats(self, v: &[f32; ROWS]) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature; the array has 16 numbers.
        unsafe { std::array::from_fn(|i| vld1q_f32(v.as_ptr().add(4 * i))) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; ROWS], v: [float32x4_t; 4]) {
        for (to, v) in to.chunks_exact_mut(4).zip(v) {
            // SAFETY: the token proves the feature; a chunk has four numbers.
            unsafe { vst1q_f32(to.as_mut_ptr(), v) }
        }
    }
    #[inline(always)]
    fn line_floats(self, line: &Line) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { self.line(line).map(|v| vreinterpretq_f32_s32(v)) }
    }
    #[inline(always)]
    fn halves(self, line: &Line) -> ([float32x4_t; 4], [float32x4_t; 4]) {
        // Once a group only: the portable conversion is cheap beside the integer work.
        let (scales, zeros) = Portable.halves(line);
        (self.floats(&scales), self.floats(&zeros))
    }
    #[inline(always)]
    fn prefetch(self, _: *const Line, _: bool) {}
}
