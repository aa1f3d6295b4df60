//! Exact scalar products of 8-bit integers.
//!
//! Sums are exact modulo 2^32 on every instruction set: no intermediate saturates. The result is
//! the true sum for up to 65 536 entries.

use super::Isa;
use crate::simd::dispatch;

/// The scalar product of two vectors of signed bytes.
///
/// # Panics
///
/// If the lengths differ.
pub fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    dot_i8_on(Isa::detect(), a, b)
}

/// [`dot_i8`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn dot_i8_on(isa: Isa, a: &[i8], b: &[i8]) -> i32 {
    assert_eq!(a.len(), b.len(), "dot_i8: lengths differ");
    dispatch! { isa;
        avx512 => x86::dot_i8_avx512(a, b);
        avx2 => x86::dot_i8_avx2(a, b);
        neon => neon::dot_i8(a, b);
        _ => a.iter().zip(b).fold(0, |sum, (&a, &b)| add(sum, i32::from(a), i32::from(b)))
    }
}

/// The scalar product of unsigned bytes `a` and signed bytes `b`.
///
/// # Panics
///
/// If the lengths differ.
pub fn dot_u8_i8(a: &[u8], b: &[i8]) -> i32 {
    dot_u8_i8_on(Isa::detect(), a, b)
}

/// [`dot_u8_i8`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn dot_u8_i8_on(isa: Isa, a: &[u8], b: &[i8]) -> i32 {
    assert_eq!(a.len(), b.len(), "dot_u8_i8: lengths differ");
    dispatch! { isa;
        avx512 => x86::dot_u8_i8_avx512(a, b);
        avx2 => x86::dot_u8_i8_avx2(a, b);
        neon => neon::dot_u8_i8(a, b);
        _ => a.iter().zip(b).fold(0, |sum, (&a, &b)| add(sum, i32::from(a), i32::from(b)))
    }
}

#[inline(always)]
fn add(sum: i32, a: i32, b: i32) -> i32 {
    sum.wrapping_add(a * b)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::simd::{avx2, avx512};

    /// A mask of the first `n < 64` lanes.
    fn first(n: usize) -> __mmask64 {
        (1u64 << n) - 1
    }

    avx512! {
        pub(super) fn dot_u8_i8_avx512(a: &[u8], b: &[i8]) -> i32 {
            let mut sums = [_mm512_setzero_si512(); 4];
            let len = a.len().min(b.len());
            let mut at = 0;
            while at + 256 <= len {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: 256 bytes from `at` on lie within both slices.
                    let (a, b) = unsafe {
                        (
                            _mm512_loadu_epi8(a.as_ptr().add(at + 64 * i).cast()),
                            _mm512_loadu_epi8(b.as_ptr().add(at + 64 * i)),
                        )
                    };
                    *sum = _mm512_dpbusd_epi32(*sum, a, b);
                }
                at += 256;
            }
            while at < len {
                let mask = if len - at >= 64 { !0 } else { first(len - at) };
                // SAFETY: the mask keeps the reads within both slices.
                let (a, b) = unsafe {
                    (
                        _mm512_maskz_loadu_epi8(mask, a.as_ptr().add(at).cast()),
                        _mm512_maskz_loadu_epi8(mask, b.as_ptr().add(at)),
                    )
                };
                sums[0] = _mm512_dpbusd_epi32(sums[0], a, b);
                at += 64;
            }
            let sum = _mm512_add_epi32(
                _mm512_add_epi32(sums[0], sums[1]),
                _mm512_add_epi32(sums[2], sums[3]),
            );
            _mm512_reduce_add_epi32(sum)
        }
    }

    avx512! {
        pub(super) fn dot_i8_avx512(a: &[i8], b: &[i8]) -> i32 {
            // The instruction wants one unsigned side: a + 128 is that, and the surplus 128 * sum(b)
            // is counted beside and taken off at the end.
            let flip = _mm512_set1_epi8(-128);
            let ones = _mm512_set1_epi8(1);
            let mut sums = [_mm512_setzero_si512(); 2];
            let mut surplus = [_mm512_setzero_si512(); 2];
            let len = a.len().min(b.len());
            let mut at = 0;
            while at + 128 <= len {
                for i in 0..2 {
                    // SAFETY: 128 bytes from `at` on lie within both slices.
                    let (a, b) = unsafe {
                        (
                            _mm512_loadu_epi8(a.as_ptr().add(at + 64 * i)),
                            _mm512_loadu_epi8(b.as_ptr().add(at + 64 * i)),
                        )
                    };
                    sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_xor_si512(a, flip), b);
                    surplus[i] = _mm512_dpbusd_epi32(surplus[i], ones, b);
                }
                at += 128;
            }
            while at < len {
                let mask = if len - at >= 64 { !0 } else { first(len - at) };
                // SAFETY: the mask keeps the reads within both slices.
                let (a, b) = unsafe {
                    (
                        _mm512_maskz_loadu_epi8(mask, a.as_ptr().add(at)),
                        _mm512_maskz_loadu_epi8(mask, b.as_ptr().add(at)),
                    )
                };
                sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_xor_si512(a, flip), b);
                surplus[0] = _mm512_dpbusd_epi32(surplus[0], ones, b);
                at += 64;
            }
            let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
            let surplus = _mm512_reduce_add_epi32(_mm512_add_epi32(surplus[0], surplus[1]));
            sum.wrapping_sub(surplus.wrapping_mul(128))
        }
    }

    avx2! {
        /// The sum of eight lanes, wrapping.
        fn sum_avx2(v: __m256i) -> i32 {
            let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }
    }

    // Both AVX2 kernels widen to 16 bits first: the byte instruction `maddubs` would saturate.

    avx2! {
        pub(super) fn dot_i8_avx2(a: &[i8], b: &[i8]) -> i32 {
            let mut sums = [_mm256_setzero_si256(); 2];
            let (a_blocks, a_rest) = a.as_chunks::<32>();
            let (b_blocks, b_rest) = b.as_chunks::<32>();
            for (a, b) in a_blocks.iter().zip(b_blocks) {
                for i in 0..2 {
                    // SAFETY: a block holds 32 bytes; each read takes one half of it.
                    let (a, b) = unsafe {
                        (
                            _mm_loadu_si128(a.as_ptr().add(16 * i).cast()),
                            _mm_loadu_si128(b.as_ptr().add(16 * i).cast()),
                        )
                    };
                    let pairs = _mm256_madd_epi16(_mm256_cvtepi8_epi16(a), _mm256_cvtepi8_epi16(b));
                    sums[i] = _mm256_add_epi32(sums[i], pairs);
                }
            }
            let sum = sum_avx2(_mm256_add_epi32(sums[0], sums[1]));
            a_rest.iter().zip(b_rest).fold(sum, |s, (&a, &b)| super::add(s, a.into(), b.into()))
        }
    }

    avx2! {
        pub(super) fn dot_u8_i8_avx2(a: &[u8], b: &[i8]) -> i32 {
            let mut sums = [_mm256_setzero_si256(); 2];
            let (a_blocks, a_rest) = a.as_chunks::<32>();
            let (b_blocks, b_rest) = b.as_chunks::<32>();
            for (a, b) in a_blocks.iter().zip(b_blocks) {
                for i in 0..2 {
                    // SAFETY: a block holds 32 bytes; each read takes one half of it.
                    let (a, b) = unsafe {
                        (
                            _mm_loadu_si128(a.as_ptr().add(16 * i).cast()),
                            _mm_loadu_si128(b.as_ptr().add(16 * i).cast()),
                        )
                    };
                    let pairs = _mm256_madd_epi16(_mm256_cvtepu8_epi16(a), _mm256_cvtepi8_epi16(b));
                    sums[i] = _mm256_add_epi32(sums[i], pairs);
                }
            }
            let sum = sum_avx2(_mm256_add_epi32(sums[0], sums[1]));
            a_rest.iter().zip(b_rest).fold(sum, |s, (&a, &b)| super::add(s, a.into(), b.into()))
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    #[target_feature(enable = "neon")]
    pub(super) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
        let mut sums = [vdupq_n_s32(0); 2];
        let (a_blocks, a_rest) = a.as_chunks::<16>();
        let (b_blocks, b_rest) = b.as_chunks::<16>();
        for (a, b) in a_blocks.iter().zip(b_blocks) {
            // SAFETY: a block holds 16 bytes.
            let (a, b) = unsafe { (vld1q_s8(a.as_ptr()), vld1q_s8(b.as_ptr())) };
            sums[0] = vpadalq_s16(sums[0], vmull_s8(vget_low_s8(a), vget_low_s8(b)));
            sums[1] = vpadalq_s16(sums[1], vmull_high_s8(a, b));
        }
        let sum = vaddvq_s32(vaddq_s32(sums[0], sums[1]));
        a_rest.iter().zip(b_rest).fold(sum, |s, (&a, &b)| super::add(s, a.into(), b.into()))
    }

    #[target_feature(enable = "neon")]
    pub(super) fn dot_u8_i8(a: &[u8], b: &[i8]) -> i32 {
        let mut sums = [vdupq_n_s32(0); 2];
        let (a_blocks, a_rest) = a.as_chunks::<16>();
        let (b_blocks, b_rest) = b.as_chunks::<16>();
        for (a, b) in a_blocks.iter().zip(b_blocks) {
            // SAFETY: a block holds 16 bytes.
            let (a, b) = unsafe { (vld1q_u8(a.as_ptr()), vld1q_s8(b.as_ptr())) };
            // 255 * 128 does not fit 16 signed bits, so both sides are widened before.
            let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(a)));
            let high = vreinterpretq_s16_u16(vmovl_high_u8(a));
            let (b_low, b_high) = (vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b));
            sums[0] = vmlal_s16(sums[0], vget_low_s16(low), vget_low_s16(b_low));
            sums[0] = vmlal_high_s16(sums[0], low, b_low);
            sums[1] = vmlal_s16(sums[1], vget_low_s16(high), vget_low_s16(b_high));
            sums[1] = vmlal_high_s16(sums[1], high, b_high);
        }
        let sum = vaddvq_s32(vaddq_s32(sums[0], sums[1]));
        a_rest.iter().zip(b_rest).fold(sum, |s, (&a, &b)| super::add(s, a.into(), b.into()))
    }
}
