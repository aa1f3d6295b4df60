//! Rows of floats.

use tensorpress_tensor::DType;

use super::lanes::{Elem, Lanes, with_elem};
use super::{LANES, stamp};

/// How far ahead of the reading memory is asked for.
const AHEAD: usize = 4096;

stamp! {
    /// `out[t] = q . row t` for rows of `q.len()` little-endian values of a float type.
    fn float_dots(dtype: DType, rows: &[u8], q: &[f32], out: &mut [f32]) = dots_body
}

#[inline(always)]
fn dots_body<L: Lanes>(l: L, dtype: DType, rows: &[u8], q: &[f32], out: &mut [f32]) {
    with_elem!(dtype, E => dots::<L, E>(l, rows, q, out));
}

#[inline(always)]
fn dots<L: Lanes, E: Elem>(l: L, rows: &[u8], q: &[f32], out: &mut [f32]) {
    let stride = q.len() * E::SIZE;
    assert_eq!(rows.len(), out.len() * stride, "rows and results");
    let (chunks, rest) = q.as_chunks::<LANES>();
    for (row, out) in rows.chunks_exact(stride).zip(out) {
        let ahead = row.as_ptr().wrapping_add(AHEAD);
        let mut sums = [l.splat(0.0); 2];
        for (i, q) in chunks.iter().enumerate() {
            if (i * LANES * E::SIZE).is_multiple_of(64) {
                l.prefetch(ahead.wrapping_add(i * LANES * E::SIZE));
            }
            let v = E::load(l, &row[i * LANES * E::SIZE..][..LANES * E::SIZE]);
            sums[i % 2] = l.fma(v, l.load(q), sums[i % 2]);
        }
        let mut sum = l.sum(l.add(sums[0], sums[1]));
        let tail = &row[chunks.len() * LANES * E::SIZE..];
        for (v, q) in tail.chunks_exact(E::SIZE).zip(rest) {
            sum += E::one(v) * q;
        }
        *out = sum;
    }
}

stamp! {
    /// `out += sum over t of weights[t] * row t`.
    fn float_mix(dtype: DType, rows: &[u8], weights: &[f32], out: &mut [f32]) = mix_body
}

#[inline(always)]
fn mix_body<L: Lanes>(l: L, dtype: DType, rows: &[u8], weights: &[f32], out: &mut [f32]) {
    with_elem!(dtype, E => mix::<L, E>(l, rows, weights, out));
}

#[inline(always)]
fn mix<L: Lanes, E: Elem>(l: L, rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let stride = out.len() * E::SIZE;
    assert_eq!(rows.len(), weights.len() * stride, "rows and weights");
    let mut at = 0;
    at = mix_columns::<L, E, 8>(l, rows, weights, out, at);
    at = mix_columns::<L, E, 2>(l, rows, weights, out, at);
    at = mix_columns::<L, E, 1>(l, rows, weights, out, at);
    for (i, out) in out[at..].iter_mut().enumerate() {
        for (row, w) in rows.chunks_exact(stride).zip(weights) {
            *out += w * E::one(&row[(at + i) * E::SIZE..]);
        }
    }
}

/// As many blocks of `N` x 16 columns as there are from `at` on, their sums in registers; gives the next column.
#[inline(always)]
fn mix_columns<L: Lanes, E: Elem, const N: usize>(
    l: L,
    rows: &[u8],
    weights: &[f32],
    out: &mut [f32],
    mut at: usize,
) -> usize {
    let stride = out.len() * E::SIZE;
    while at + N * LANES <= out.len() {
        let mut sums = [l.splat(0.0); N];
        for (row, w) in rows.chunks_exact(stride).zip(weights) {
            let w = l.splat(*w);
            let row = &row[at * E::SIZE..][..N * LANES * E::SIZE];
            for i in 0..N {
                if (i * LANES * E::SIZE).is_multiple_of(64) {
                    l.prefetch(row.as_ptr().wrapping_add(AHEAD + i * LANES * E::SIZE));
                }
                let v = E::load(l, &row[i * LANES * E::SIZE..][..LANES * E::SIZE]);
                sums[i] = l.fma(v, w, sums[i]);
            }
        }
        for (i, out) in out[at..at + N * LANES].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let sum = l.add(l.load(out), sums[i]);
            l.store(out, sum);
        }
        at += N * LANES;
    }
    at
}
