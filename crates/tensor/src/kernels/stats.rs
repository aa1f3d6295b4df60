//! Extremes of a vector.

use super::simd::{Simd, stamp};

const BLOCK: usize = 64;

stamp! {
    /// The least and the greatest entry; NaN entries are passed over (see [`has_non_finite`]).
    /// `(inf, -inf)` where there is no entry to compare.
    pub fn minmax, minmax_on(x: &[f32]) -> (f32, f32) = minmax_body
}

#[inline(always)]
fn minmax_body<S: Simd>(_: S, x: &[f32]) -> (f32, f32) {
    let mut low = [f32::INFINITY; BLOCK];
    let mut high = [f32::NEG_INFINITY; BLOCK];
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    for block in blocks {
        for i in 0..BLOCK {
            low[i] = if block[i] < low[i] { block[i] } else { low[i] };
            high[i] = if block[i] > high[i] { block[i] } else { high[i] };
        }
    }
    let seen = low.iter().chain(rest).fold(f32::INFINITY, |m, &v| if v < m { v } else { m });
    let most = high.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    (seen, most)
}

stamp! {
    /// The greatest absolute value; NaN entries are passed over, 0 for an empty vector.
    pub fn abs_max, abs_max_on(x: &[f32]) -> f32 = abs_max_body
}

#[inline(always)]
pub(super) fn abs_max_body<S: Simd>(_: S, x: &[f32]) -> f32 {
    let mut most = [0.0f32; BLOCK];
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    for block in blocks {
        for i in 0..BLOCK {
            let v = block[i].abs();
            most[i] = if v > most[i] { v } else { most[i] };
        }
    }
    most.iter().copied().chain(rest.iter().map(|v| v.abs())).fold(
        0.0,
        |m, v| {
            if v > m { v } else { m }
        },
    )
}

stamp! {
    /// Whether any entry is NaN or infinite.
    pub fn has_non_finite, has_non_finite_on(x: &[f32]) -> bool = has_non_finite_body
}

#[inline(always)]
pub(super) fn has_non_finite_body<S: Simd>(_: S, x: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    // A whole block before each branch: the inner loop has no exit and becomes vector code.
    let found = blocks.iter().any(|block| {
        block.iter().fold(false, |found, v| found | (v.to_bits() & EXPONENT == EXPONENT))
    });
    found || rest.iter().any(|v| !v.is_finite())
}
