//! Expanding with NEON: a table of byte permutations.

use std::arch::aarch64::*;

use super::Stored;
use crate::simd::Neon;

/// For every set of kept lanes, which byte goes where; 255, which reads as 0, where none does.
static PLACES: [[u8; 16]; 16] = {
    let mut places = [[255; 16]; 16];
    let mut keep = 0;
    while keep < 16 {
        let (mut lane, mut next) = (0, 0);
        while lane < 4 {
            if keep >> lane & 1 == 1 {
                let mut byte = 0;
                while byte < 4 {
                    places[keep][4 * lane + byte] = (4 * next + byte) as u8;
                    byte += 1;
                }
                next += 1;
            }
            lane += 1;
        }
        keep += 1;
    }
    places
};

// SAFETY: a token exists only where the feature does.
unsafe impl Stored for Neon {
    #[inline(always)]
    unsafe fn f32s(self, at: *const u8) -> float32x4_t {
        // SAFETY: the token proves the feature; the caller has 16 bytes there, at any alignment.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(at)) }
    }
    #[inline(always)]
    unsafe fn f16s(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller has four halves there.
        let halves = unsafe { at.cast::<[[u8; 2]; 4]>().read() };
        let wide = halves.map(|b| crate::convert::widen_f16(u16::from_le_bytes(b)));
        // SAFETY: the token proves the feature; the array has four numbers.
        unsafe { vld1q_f32(wide.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn bf16s(self, at: *const u8) -> float32x4_t {
        // SAFETY: the token proves the feature; the caller has eight bytes there.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(at)))) }
    }
    #[inline(always)]
    unsafe fn bytes(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller has four bytes there.
        let wide = unsafe { at.cast::<[u8; 4]>().read() }.map(u32::from);
        // SAFETY: the token proves the feature; the array has four numbers.
        unsafe { vcvtq_f32_u32(vld1q_u32(wide.as_ptr())) }
    }
    #[inline(always)]
    unsafe fn half_f32s(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller has two numbers there; the array has four.
        unsafe {
            let [a, b] = at.cast::<[[u8; 4]; 2]>().read().map(f32::from_le_bytes);
            vld1q_f32([a, b, 0.0, 0.0].as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn half_f16s(self, at: *const u8) -> float32x4_t {
        // SAFETY: as above.
        unsafe {
            let halves = at.cast::<[[u8; 2]; 2]>().read();
            let wide = halves.map(|b| crate::convert::widen_f16(u16::from_le_bytes(b)));
            vld1q_f32([wide[0], wide[1], 0.0, 0.0].as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn half_bf16s(self, at: *const u8) -> float32x4_t {
        // SAFETY: as above.
        unsafe {
            let halves = at.cast::<[[u8; 2]; 2]>().read();
            let wide = halves.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));
            vld1q_f32([wide[0], wide[1], 0.0, 0.0].as_ptr())
        }
    }
    #[inline(always)]
    fn expand(self, keep: u32, v: float32x4_t) -> float32x4_t {
        // SAFETY: the token proves the feature; a row of the table has 16 bytes.
        unsafe {
            let places = vld1q_u8(PLACES[keep as usize & 15].as_ptr());
            vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), places))
        }
    }
    #[inline(always)]
    fn affine(self, v: float32x4_t, scale: f32, zero: f32) -> float32x4_t {
        // SAFETY: the token proves the feature.
        unsafe { vmulq_f32(vdupq_n_f32(scale), vsubq_f32(v, vdupq_n_f32(zero))) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: float32x4_t) {
        // SAFETY: the token proves the feature; the caller has place there.
        unsafe { vst1q_f32(at, v) }
    }
}
