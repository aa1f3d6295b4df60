//! Conversions between f32 and the 16-bit floats.
//!
//! All are bit-identical on every instruction set. Narrowing rounds to nearest, ties to even,
//! and overflows to infinity; NaN stays NaN in both directions (and comes out quiet from f16).
//! The `_bytes` forms read and write little-endian bytes as they lie in a file, at any alignment.

use half::{bf16, f16};

use super::Isa;
use super::simd::{Simd, stamp};
use crate::simd::dispatch;

stamp! {
    /// Widens bf16 to f32.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn bf16_to_f32, bf16_to_f32_on(src: &[bf16], dst: &mut [f32]) = bf16_to_f32_body
}

#[inline(always)]
fn bf16_to_f32_body<S: Simd>(_: S, src: &[bf16], dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len(), "bf16_to_f32: lengths differ");
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
    }
}

stamp! {
    /// Widens bf16, given as little-endian bytes, to f32.
    ///
    /// # Panics
    ///
    /// Unless there are two bytes for each number of `dst`.
    pub fn bf16_bytes_to_f32, bf16_bytes_to_f32_on(src: &[u8], dst: &mut [f32])
        = bf16_bytes_to_f32_body
}

#[inline(always)]
fn bf16_bytes_to_f32_body<S: Simd>(_: S, src: &[u8], dst: &mut [f32]) {
    let src = pairs(src, dst.len());
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = f32::from_bits(u32::from(u16::from_le_bytes(*src)) << 16);
    }
}

stamp! {
    /// Rounds f32 to bf16.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn f32_to_bf16, f32_to_bf16_on(src: &[f32], dst: &mut [bf16]) = f32_to_bf16_body
}

#[inline(always)]
fn f32_to_bf16_body<S: Simd>(_: S, src: &[f32], dst: &mut [bf16]) {
    assert_eq!(src.len(), dst.len(), "f32_to_bf16: lengths differ");
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = bf16::from_bits(narrow_bf16(*src));
    }
}

stamp! {
    /// Rounds f32 to bf16, written as little-endian bytes.
    ///
    /// # Panics
    ///
    /// Unless there are two bytes for each number of `src`.
    pub fn f32_to_bf16_bytes, f32_to_bf16_bytes_on(src: &[f32], dst: &mut [u8])
        = f32_to_bf16_bytes_body
}

#[inline(always)]
fn f32_to_bf16_bytes_body<S: Simd>(_: S, src: &[f32], dst: &mut [u8]) {
    let dst = pairs_mut(dst, src.len());
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = narrow_bf16(*src).to_le_bytes();
    }
}

/// Widens f16 to f32.
///
/// # Panics
///
/// If the lengths differ.
pub fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    f16_to_f32_on(Isa::detect(), src, dst);
}

/// [`f16_to_f32`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn f16_to_f32_on(isa: Isa, src: &[f16], dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len(), "f16_to_f32: lengths differ");
    dispatch! { isa;
        avx2 => {
            // f16 is a transparent u16, and x86 is little-endian; every byte is initialised.
            let src = std::slice::from_raw_parts(src.as_ptr().cast(), src.len());
            x86::widen_f16(src, dst);
        };
        _ => for (dst, src) in dst.iter_mut().zip(src) {
            *dst = widen_f16(src.to_bits());
        }
    }
}

/// Widens f16, given as little-endian bytes, to f32.
///
/// # Panics
///
/// Unless there are two bytes for each number of `dst`.
pub fn f16_bytes_to_f32(src: &[u8], dst: &mut [f32]) {
    f16_bytes_to_f32_on(Isa::detect(), src, dst);
}

/// [`f16_bytes_to_f32`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn f16_bytes_to_f32_on(isa: Isa, src: &[u8], dst: &mut [f32]) {
    let src = pairs(src, dst.len());
    dispatch! { isa;
        avx2 => x86::widen_f16(src, dst);
        _ => for (dst, src) in dst.iter_mut().zip(src) {
            *dst = widen_f16(u16::from_le_bytes(*src));
        }
    }
}

/// Rounds f32 to f16.
///
/// # Panics
///
/// If the lengths differ.
pub fn f32_to_f16(src: &[f32], dst: &mut [f16]) {
    f32_to_f16_on(Isa::detect(), src, dst);
}

/// [`f32_to_f16`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn f32_to_f16_on(isa: Isa, src: &[f32], dst: &mut [f16]) {
    assert_eq!(src.len(), dst.len(), "f32_to_f16: lengths differ");
    dispatch! { isa;
        avx2 => {
            // f16 is a transparent u16, x86 is little-endian, and any bytes are a valid f16.
            let dst = std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len());
            x86::narrow_f16(src, dst);
        };
        _ => for (dst, src) in dst.iter_mut().zip(src) {
            *dst = f16::from_bits(narrow_f16(*src));
        }
    }
}

/// Rounds f32 to f16, written as little-endian bytes.
///
/// # Panics
///
/// Unless there are two bytes for each number of `src`.
pub fn f32_to_f16_bytes(src: &[f32], dst: &mut [u8]) {
    f32_to_f16_bytes_on(Isa::detect(), src, dst);
}

/// [`f32_to_f16_bytes`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn f32_to_f16_bytes_on(isa: Isa, src: &[f32], dst: &mut [u8]) {
    let dst = pairs_mut(dst, src.len());
    dispatch! { isa;
        avx2 => x86::narrow_f16(src, dst);
        _ => for (dst, src) in dst.iter_mut().zip(src) {
            *dst = narrow_f16(*src).to_le_bytes();
        }
    }
}

#[inline(always)]
fn pairs(bytes: &[u8], numbers: usize) -> &[[u8; 2]] {
    let (pairs, rest) = bytes.as_chunks::<2>();
    assert!(pairs.len() == numbers && rest.is_empty(), "16-bit floats take two bytes each");
    pairs
}

#[inline(always)]
fn pairs_mut(bytes: &mut [u8], numbers: usize) -> &mut [[u8; 2]] {
    let (pairs, rest) = bytes.as_chunks_mut::<2>();
    assert!(pairs.len() == numbers && rest.is_empty(), "16-bit floats take two bytes each");
    pairs
}

#[inline(always)]
fn narrow_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding a NaN could carry into infinity or zero: cut it and set the quiet bit instead.
    let nan = bits >> 16 | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16
}

/// Branch-free in effect, so that loops over it become vector code where no F16C exists.
#[inline(always)]
pub(super) fn widen_f16(h: u16) -> f32 {
    const EXPONENT: u32 = 0x7c00 << 13;
    const REBIAS: u32 = (127 - 15) << 23;
    let sign = u32::from(h & 0x8000) << 16;
    let shifted = u32::from(h & 0x7fff) << 13;
    let normal = shifted + REBIAS;
    // One unit above the smallest exponent, the float subtraction renormalises a subnormal.
    let one = REBIAS + (1 << 23);
    let subnormal = (f32::from_bits(shifted + one) - f32::from_bits(one)).to_bits();
    let quiet = if shifted > EXPONENT { 1 << 22 } else { 0 };
    let special = (normal + REBIAS) | quiet;
    let magnitude = match shifted & EXPONENT {
        EXPONENT => special,
        0 => subnormal,
        _ => normal,
    };
    f32::from_bits(sign | magnitude)
}

#[inline(always)]
fn narrow_f16(v: f32) -> u16 {
    const INFINITY: u32 = 0xff << 23;
    const TOO_BIG: u32 = (127 + 16) << 23;
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    // Adding this float leaves a subnormal's bits at the bottom, rounded by the addition itself.
    const ALIGN: u32 = ((127 - 15) + (23 - 10) + 1) << 23;
    let bits = v.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let unsigned = if magnitude > INFINITY {
        0x7e00 | (magnitude >> 13 & 0x3ff)
    } else if magnitude >= TOO_BIG {
        0x7c00
    } else if magnitude < SMALLEST_NORMAL {
        (f32::from_bits(magnitude) + f32::from_bits(ALIGN)).to_bits() - ALIGN
    } else {
        let odd = magnitude >> 13 & 1;
        (magnitude - ((127 - 15) << 23) + 0xfff + odd) >> 13
    };
    sign | unsigned as u16
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::simd::avx2;

    avx2! {
        /// Widens eight numbers at a time.
        pub(super) fn widen_f16(src: &[[u8; 2]], dst: &mut [f32]) {
            let (src_blocks, src_rest) = src.as_chunks::<8>();
            let (dst_blocks, dst_rest) = dst.as_chunks_mut::<8>();
            for (src, dst) in src_blocks.iter().zip(dst_blocks) {
                // SAFETY: a block of the source holds 16 bytes, one of the target eight numbers.
                unsafe {
                    let halves = _mm_loadu_si128(src.as_ptr().cast());
                    _mm256_storeu_ps(dst.as_mut_ptr(), _mm256_cvtph_ps(halves));
                }
            }
            for (src, dst) in src_rest.iter().zip(dst_rest) {
                *dst = super::widen_f16(u16::from_le_bytes(*src));
            }
        }
    }

    avx2! {
        /// Narrows eight numbers at a time.
        pub(super) fn narrow_f16(src: &[f32], dst: &mut [[u8; 2]]) {
            let (src_blocks, src_rest) = src.as_chunks::<8>();
            let (dst_blocks, dst_rest) = dst.as_chunks_mut::<8>();
            for (src, dst) in src_blocks.iter().zip(dst_blocks) {
                // SAFETY: a block of the source holds eight numbers, one of the target 16 bytes.
                unsafe {
                    let wide = _mm256_loadu_ps(src.as_ptr());
                    let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(wide);
                    _mm_storeu_si128(dst.as_mut_ptr().cast(), halves);
                }
            }
            for (src, dst) in src_rest.iter().zip(dst_rest) {
                *dst = super::narrow_f16(*src).to_le_bytes();
            }
        }
    }
}
