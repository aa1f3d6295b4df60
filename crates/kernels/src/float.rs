//! Products of f32 vectors and matrices.
//!
//! Every entry of [`gemm_nt`] is summed in the same order whatever the number of rows and tokens,
//! so cutting a product into pieces (threads, blocks of rows) never changes a bit of the result.
//! Instruction sets differ from one another in the order of the sum.

use std::ops::Range;

use super::simd::{Simd, stamp};
use super::work::together;

stamp! {
    /// The scalar product of two vectors of one length.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn dot, dot_on(a: &[f32], b: &[f32]) -> f32 = dot_body
}

#[inline(always)]
pub(super) fn dot_body<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot: lengths differ");
    let mut sums = [s.splat(0.0); 4];
    let mut at = 0;
    while at + 4 * S::LANES <= a.len() {
        for (i, sum) in sums.iter_mut().enumerate() {
            let from = at + i * S::LANES;
            // SAFETY: four vectors from `at` on lie within both slices.
            *sum = unsafe { s.mul_add(s.load(a, from), s.load(b, from), *sum) };
        }
        at += 4 * S::LANES;
    }
    while at + S::LANES <= a.len() {
        // SAFETY: one vector from `at` on lies within both slices.
        sums[0] = unsafe { s.mul_add(s.load(a, at), s.load(b, at), sums[0]) };
        at += S::LANES;
    }
    let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
    dot_tail(s, &a[at..], &b[at..], s.sum(sum))
}

/// Adds the products of the last few entries, one by one.
#[inline(always)]
fn dot_tail<S: Simd>(s: S, a: &[f32], b: &[f32], sum: f32) -> f32 {
    a.iter().zip(b).fold(sum, |sum, (&a, &b)| s.mul_add1(a, b, sum))
}

stamp! {
    /// The scalar product of two vectors, multiplied and summed in f64.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn dot_f64, dot_f64_on(a: &[f32], b: &[f32]) -> f64 = dot_f64_body
}

#[inline(always)]
fn dot_f64_body<S: Simd>(_: S, a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "dot_f64: lengths differ");
    let mut sums = [0.0f64; 16];
    let (a_blocks, a_rest) = a.as_chunks::<16>();
    let (b_blocks, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..16 {
            // A product of two f32 is exact in f64, so fusing would change nothing.
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] += f64::from(*a) * f64::from(*b);
    }
    sums.iter().sum()
}

stamp! {
    /// `y += alpha * x`, entry by entry.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn axpy, axpy_on(alpha: f32, x: &[f32], y: &mut [f32]) = axpy_body
}

#[inline(always)]
fn axpy_body<S: Simd>(s: S, alpha: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "axpy: lengths differ");
    for (y, &x) in y.iter_mut().zip(x) {
        *y = s.mul_add1(alpha, x, *y);
    }
}

/// `y = W x` for a row-major `w [rows, cols]`: overwrites `y`.
///
/// # Panics
///
/// If `w`, `x` or `y` does not have `rows * cols`, `cols` or `rows` entries.
pub fn gemv(w: &[f32], rows: usize, cols: usize, x: &[f32], y: &mut [f32]) {
    gemv_on(crate::Isa::detect(), w, rows, cols, x, y);
}

/// [`gemv`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn gemv_on(isa: super::Isa, w: &[f32], rows: usize, cols: usize, x: &[f32], y: &mut [f32]) {
    gemm_nt_on(isa, x, w, 1, rows, cols, y, false);
}

stamp! {
    /// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) for row-major `x [t, k]`, `w [n, k]` and
    /// `y [t, n]`. Meant for a few tokens (`t`), or for as many rows as fit the second cache; correct for any number. Fastest
    /// where rows begin at cache lines. Allocates nothing.
    ///
    /// # Panics
    ///
    /// If a slice does not have the size its shape says.
    pub fn gemm_nt, gemm_nt_on(
        x: &[f32], w: &[f32], t: usize, n: usize, k: usize, y: &mut [f32], accumulate: bool,
    ) = gemm_body
}

/// Inputs that are summed before they are added to `y`, so that the order of a sum depends on nothing else. Those of a tile
/// of tokens stay in the nearest cache.
const DEPTH: usize = 2048;

#[inline(always)]
fn gemm_body<S: Simd>(
    s: S,
    x: &[f32],
    w: &[f32],
    t: usize,
    n: usize,
    k: usize,
    y: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(Some(x.len()), t.checked_mul(k), "gemm_nt: x is not [t, k]");
    assert_eq!(Some(w.len()), n.checked_mul(k), "gemm_nt: w is not [n, k]");
    assert_eq!(Some(y.len()), t.checked_mul(n), "gemm_nt: y is not [t, n]");
    if !accumulate {
        y.fill(0.0);
    }
    // A few tokens go with every row from its first input to its last, as memory likes to be read. More meet some inputs of
    // all rows, which are expected to be in a cache, before the next ones.
    let some = if t > S::TILE { DEPTH } else { k.max(1) };
    for from in (0..k).step_by(some) {
        let inputs = from..(from + some).min(k);
        let mut token = 0;
        while token < t {
            let tokens = together(t - token).min(S::TILE);
            let x = &x[token * k..(token + tokens) * k];
            let mut row = 0;
            while row < n {
                // Eight rows keep the adders busy for one token; four suffice for several tokens.
                let rows = match n - row {
                    left if left >= 8 && tokens == 1 => 8,
                    left if left >= 4 => 4,
                    _ => 1,
                };
                let w = &w[row * k..(row + rows) * k];
                let y = &mut y[token * n + row..];
                for from in inputs.clone().step_by(DEPTH) {
                    let depth = from..(from + DEPTH).min(inputs.end);
                    match (tokens, rows) {
                        (1, 8) => tile::<S, 1, 8>(s, x, w, k, depth, y, n),
                        (1, 4) => tile::<S, 1, 4>(s, x, w, k, depth, y, n),
                        (1, _) => tile::<S, 1, 1>(s, x, w, k, depth, y, n),
                        (2, 4) => tile::<S, 2, 4>(s, x, w, k, depth, y, n),
                        (2, _) => tile::<S, 2, 1>(s, x, w, k, depth, y, n),
                        (3, 4) => tile::<S, 3, 4>(s, x, w, k, depth, y, n),
                        (3, _) => tile::<S, 3, 1>(s, x, w, k, depth, y, n),
                        (_, 4) => tile::<S, 4, 4>(s, x, w, k, depth, y, n),
                        (_, _) => tile::<S, 4, 1>(s, x, w, k, depth, y, n),
                    }
                }
                row += rows;
            }
            token += tokens;
        }
    }
}

/// Adds a `T x R` tile of the product over some inputs to `y`, whose rows lie `stride` apart.
#[inline(always)]
fn tile<S: Simd, const T: usize, const R: usize>(
    s: S,
    x: &[f32],
    w: &[f32],
    k: usize,
    depth: Range<usize>,
    y: &mut [f32],
    stride: usize,
) {
    assert!(x.len() == T * k && w.len() == R * k && depth.end <= k);
    let mut sums = [[s.splat(0.0); R]; T];
    let mut at = depth.start;
    while at + S::LANES <= depth.end {
        let mut xs = [s.splat(0.0); T];
        for (i, xs) in xs.iter_mut().enumerate() {
            // SAFETY: `i * k + at + LANES <= (i + 1) * k`, within the slices asserted above.
            *xs = unsafe { s.load(x, i * k + at) };
        }
        for r in 0..R {
            // SAFETY: as above, for the rows of `w`.
            let w = unsafe { s.load(w, r * k + at) };
            for i in 0..T {
                sums[i][r] = s.mul_add(xs[i], w, sums[i][r]);
            }
        }
        at += S::LANES;
    }
    for i in 0..T {
        let y = &mut y[i * stride..i * stride + R];
        for r in (0..R).step_by(4) {
            let mut four = [s.splat(0.0); 4];
            let held = (R - r).min(4);
            four[..held].copy_from_slice(&sums[i][r..r + held]);
            let totals = s.sums(four);
            for j in 0..(R - r).min(4) {
                let row = r + j;
                let mut total = totals[j];
                if at < depth.end {
                    let (x, w) = (&x[i * k..(i + 1) * k], &w[row * k..(row + 1) * k]);
                    total = dot_tail(s, &x[at..depth.end], &w[at..depth.end], total);
                }
                y[row] += total;
            }
        }
    }
}
