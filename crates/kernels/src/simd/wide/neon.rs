//! NEON: four registers.

use std::arch::aarch64::*;

use super::portable::{expand, planes};
use super::{LANES, Line, Wide};
use crate::simd::{Neon, Portable};

// SAFETY: a token exists only where the feature does.
unsafe impl Wide for Neon {
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
    fn word(self, x: [i8; 4]) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { [vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8))); 4] }
    }
    #[inline(always)]
    fn quarter(self, x: &[[i8; 4]; 4]) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature; 16 bytes are there.
        unsafe { [vreinterpretq_s32_s8(vld1q_s8(x.as_ptr().cast())); 4] }
    }
    #[inline(always)]
    fn quarters(self, v: [&[u8; 16]; 4]) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature; each has 16 bytes.
        unsafe { v.map(|v| vreinterpretq_s32_u8(vld1q_u8(v.as_ptr()))) }
    }
    #[inline(always)]
    fn lookup(self, table: [int32x4_t; 4], codes: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe {
            std::array::from_fn(|i| {
                let (table, codes) =
                    (vreinterpretq_u8_s32(table[i]), vreinterpretq_u8_s32(codes[i]));
                vreinterpretq_s32_u8(vqtbl1q_u8(table, codes))
            })
        }
    }
    #[inline(always)]
    fn dots<const BITS: usize>(
        self,
        sum: [int32x4_t; 4],
        codes: [int32x4_t; 4],
        x: [int32x4_t; 4],
    ) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe {
            // Sums of pairs stay within 16 bits for codes of up to 7 bits, which are the same
            // signed as unsigned: those of 8 bits are taken in halves.
            let pairs = |codes: int32x4_t, x: int32x4_t| {
                let (codes, x) = (vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
                let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
                vpaddq_s16(low, vmull_high_s8(codes, x))
            };
            std::array::from_fn(|i| {
                if BITS < 8 {
                    vpadalq_s16(sum[i], pairs(codes[i], x[i]))
                } else {
                    let bytes = vreinterpretq_u8_s32(codes[i]);
                    let low = vreinterpretq_s32_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                    let high = vreinterpretq_s32_u8(vshrq_n_u8::<4>(bytes));
                    let high = vshlq_n_s32::<4>(vpaddlq_s16(pairs(high, x[i])));
                    vaddq_s32(vpadalq_s16(sum[i], pairs(low, x[i])), high)
                }
            })
        }
    }
    #[inline(always)]
    fn sum_quarters(self, [a, b, c, d]: [[int32x4_t; 4]; 4]) -> [int32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe {
            std::array::from_fn(|i| vpaddq_s32(vpaddq_s32(a[i], b[i]), vpaddq_s32(c[i], d[i])))
        }
    }
    #[inline(always)]
    fn to_floats(self, v: [int32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { v.map(|v| vcvtq_f32_s32(v)) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { [vdupq_n_f32(v); 4] }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the feature.
        unsafe { std::array::from_fn(|i| vaddq_f32(a[i], b[i])) }
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
    fn load(self, v: &[f32; LANES]) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature; the array has 16 numbers.
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
    fn line_floats(self, line: &Line) -> [float32x4_t; 4] {
        // SAFETY: the token proves the feature.
        unsafe { self.line(line).map(|v| vreinterpretq_f32_s32(v)) }
    }
    #[inline(always)]
    fn halves(self, line: &Line) -> ([float32x4_t; 4], [float32x4_t; 4]) {
        // Once a group only: the portable conversion is cheap beside the integer work.
        let (scales, zeros) = Portable.halves(line);
        (self.load(&scales), self.load(&zeros))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: [float32x4_t; 4]) {
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
        planes(values, high, low);
    }
    #[inline(always)]
    fn expand(self, mask: u16, v: Self::F) -> Self::F {
        let mut values = [0.0; LANES];
        self.store(&mut values, v);
        self.load(&expand(mask, values))
    }
}
