//! Decoding rows of an integer grid.

use std::ops::Range;

use super::simd::{Ahead, Simd, prefetch, stamp};
use super::{AffineRows, packed_len, unpack_bits_on};

/// Codes are unpacked into a buffer of this many bytes, which stays in the nearest cache.
pub(super) const BUFFER: usize = 512;

stamp! {
    /// Decodes `out.len()` weights of a packed row, the first being number `start`:
    /// `scale * (code - zero)` in f32, with `scales[g]` and `zeros[g]` of group
    /// `g = (start + j) / group`. With `accumulate` the values are added to `out`.
    ///
    /// Bit-identical on every instruction set: one subtraction and one product, both rounded.
    ///
    /// # Panics
    ///
    /// Unless `bits` is 1 to 8 and `group` is positive, or if the row, `scales` or `zeros` is
    /// too short.
    pub fn decode_affine, decode_affine_on(
        packed: &[u8], bits: u32, start: usize, scales: &[f32], zeros: &[f32], group: usize,
        out: &mut [f32], accumulate: bool,
    ) = decode_body
}

#[inline(always)]
pub(super) fn decode_body<S: Simd>(
    _: S,
    packed: &[u8],
    bits: u32,
    start: usize,
    scales: &[f32],
    zeros: &[f32],
    group: usize,
    out: &mut [f32],
    accumulate: bool,
) {
    assert!(group > 0, "decode_affine: group is zero");
    let mut codes = [0u8; BUFFER];
    let mut index = start;
    for out in out.chunks_mut(BUFFER) {
        let codes = &mut codes[..out.len()];
        unpack_bits_on(S::ISA, packed, bits, index, codes);
        let mut at = 0;
        while at < out.len() {
            let g = (index + at) / group;
            let end = (at + group - (index + at) % group).min(out.len());
            let (scale, zero) = (scales[g], zeros[g]);
            let pairs = out[at..end].iter_mut().zip(&codes[at..end]);
            if accumulate {
                pairs.for_each(|(out, &code)| *out += scale * (f32::from(code) - zero));
            } else {
                pairs.for_each(|(out, &code)| *out = scale * (f32::from(code) - zero));
            }
            at = end;
        }
        index += out.len();
    }
}

/// How many rows ahead the codes of a part are asked for.
const AHEAD: usize = 8;

stamp! {
    /// Decodes a part of a matrix, some columns of some rows, into `out`, row-major and without gaps. Bit-identical to
    /// [`decode_affine`] of the rows.
    ///
    /// # Panics
    ///
    /// If the fields of `w` do not fit together, the part does not lie in it, or `out` has another size.
    pub fn decode_part, decode_part_on(
        w: &AffineRows<'_>, rows: Range<usize>, columns: Range<usize>, out: &mut [f32],
    ) = part_body
}

#[inline(always)]
fn part_body<S: Simd>(
    s: S,
    w: &AffineRows<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &mut [f32],
) {
    w.check();
    assert!(rows.end <= w.rows && columns.end <= w.cols, "decode_part: outside of the matrix");
    assert_eq!(Some(out.len()), rows.len().checked_mul(columns.len()), "decode_part: size of out");
    if out.is_empty() {
        return;
    }
    // A few columns of each row: no hardware sees them coming.
    let codes = columns.start / 8 * w.bits as usize..packed_len(columns.end, w.bits);
    let group = columns.start / w.group;
    for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
        let (packed, scales, zeros) = w.row((row + AHEAD).min(w.rows - 1));
        for at in codes.clone().step_by(64) {
            prefetch(&raw const packed[at], Ahead::Near);
        }
        prefetch(&raw const scales[group], Ahead::Near);
        prefetch(&raw const zeros[group], Ahead::Near);
        let (packed, scales, zeros) = w.row(row);
        #[cfg(target_arch = "x86_64")]
        if S::ISA == crate::Isa::Avx512
            && columns.start.is_multiple_of(16)
            && w.group.is_multiple_of(16)
        {
            let packed = &packed[codes.clone()];
            // SAFETY: the token `s` proves the features.
            unsafe { x86::decode(packed, w.bits, columns.start, scales, zeros, w.group, out) };
            continue;
        }
        decode_body(s, packed, w.bits, columns.start, scales, zeros, w.group, out, false);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::bitpack::x86::Unpacker;
    use crate::simd::avx512;

    avx512! {
        /// As [`super::decode_affine`], of codes `packed` that begin with number `start`, which a multiple of 16 is,
        /// as is `group`. In registers: bytes written are not there yet when they are read a moment later.
        #[inline]
        pub(super) fn decode(
            packed: &[u8],
            bits: u32,
            start: usize,
            scales: &[f32],
            zeros: &[f32],
            group: usize,
            out: &mut [f32],
        ) {
            let unpacker = Unpacker::new(bits);
            let bytes = 8 * bits as usize;
            let (mut g, mut left) = (start / group, group - start % group);
            for (i, out) in out.chunks_mut(64).enumerate() {
                let packed = &packed[i * bytes..];
                let held = if packed.len() >= 64 { !0 } else { (1u64 << packed.len()) - 1 };
                // SAFETY: the mask keeps the read within the slice.
                let raw =
                    unsafe { _mm512_maskz_loadu_epi8(unpacker.full & held, packed.as_ptr().cast()) };
                let codes = unpacker.unpack(raw);
                let quarters = [
                    _mm512_castsi512_si128(codes),
                    _mm512_extracti32x4_epi32::<1>(codes),
                    _mm512_extracti32x4_epi32::<2>(codes),
                    _mm512_extracti32x4_epi32::<3>(codes),
                ];
                for (out, quarter) in out.chunks_mut(16).zip(quarters) {
                    if left == 0 {
                        (g, left) = (g + 1, group);
                    }
                    left -= 16;
                    let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(quarter));
                    let codes = _mm512_sub_ps(codes, _mm512_set1_ps(zeros[g]));
                    let weights = _mm512_mul_ps(codes, _mm512_set1_ps(scales[g]));
                    let keep = !0u16 >> (16 - out.len());
                    // SAFETY: the mask keeps the write within the slice.
                    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), keep, weights) };
                }
            }
        }
    }
}
