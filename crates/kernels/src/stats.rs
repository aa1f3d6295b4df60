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
            low[i] = less(block[i], low[i]);
            high[i] = greater(block[i], high[i]);
        }
    }
    let low = rest.iter().fold(reduce(low, less), |m, &v| less(v, m));
    let high = rest.iter().fold(reduce(high, greater), |m, &v| greater(v, m));
    (low, high)
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
            most[i] = greater(block[i].abs(), most[i]);
        }
    }
    rest.iter().fold(reduce(most, greater), |m, v| greater(v.abs(), m))
}

/// The lesser; `so_far` where `v` is NaN.
#[inline(always)]
fn less(v: f32, so_far: f32) -> f32 {
    if v < so_far { v } else { so_far }
}

/// The greater; `so_far` where `v` is NaN.
#[inline(always)]
fn greater(v: f32, so_far: f32) -> f32 {
    if v > so_far { v } else { so_far }
}

/// Halves the block again and again: short chains, where one after the other would wait 64 times.
#[inline(always)]
fn reduce(mut block: [f32; BLOCK], choose: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = BLOCK / 2;
    while width > 0 {
        for i in 0..width {
            block[i] = choose(block[i + width], block[i]);
        }
        width /= 2;
    }
    block[0]
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
