//! Decoding rows of an integer grid.

use super::simd::{Simd, stamp};
use super::unpack_bits_on;

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
