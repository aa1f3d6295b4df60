//! Rows of floats.
//!
//! Rows are read in the order they lie, once for every four queries; sums are added across lanes four at a time. Nothing is
//! asked for ahead: the hardware foresees such long runs, and asking made it a tenth to a quarter slower (Zen 4).

use crate::FloatType;

use super::elem::{Elem, with_elem};
use super::{LANES, Scores, Weights, Wide, stamp};

/// Queries that share a pass, and sums that are added across lanes together.
const FOUR: usize = 4;

stamp! {
    /// `out[i][t] = queries[i] . row t` for rows of `dim` little-endian values of a float type.
    pub fn float_dots(
        dtype: FloatType, rows: &[u8], dim: usize, queries: &[f32], out: Scores<'_>
    ) = dots_body
}

#[inline(always)]
fn dots_body<L: Wide>(
    l: L,
    dtype: FloatType,
    rows: &[u8],
    dim: usize,
    queries: &[f32],
    mut out: Scores<'_>,
) {
    assert_eq!(rows.len(), out.len * dim * dtype.size(), "rows and results");
    let fours = queries.len() / (FOUR * dim) * FOUR;
    with_elem!(dtype, E => match dim / LANES {
        4 => dots::<L, E, 4>(l, rows, dim, queries, fours, &mut out),
        8 => dots::<L, E, 8>(l, rows, dim, queries, fours, &mut out),
        _ => dots::<L, E, 0>(l, rows, dim, queries, fours, &mut out),
    });
}

/// `N` whole chunks a row; 0 stands for any number.
#[inline(always)]
fn dots<L: Wide, E: Elem, const N: usize>(
    l: L,
    rows: &[u8],
    dim: usize,
    queries: &[f32],
    fours: usize,
    out: &mut Scores<'_>,
) {
    let stride = dim * E::SIZE;
    let chunks = if N > 0 { N } else { dim / LANES };
    for first in (0..fours).step_by(FOUR) {
        let q: [&[f32]; FOUR] = std::array::from_fn(|i| &queries[(first + i) * dim..][..dim]);
        let whole = q.map(|q| &q[..chunks * LANES]);
        for (t, row) in rows.chunks_exact(stride).enumerate() {
            let sums =
                l.sum4(dots_of_row::<L, E, FOUR>(l, &row[..chunks * LANES * E::SIZE], whole));
            for i in 0..FOUR {
                out.row(first + i)[t] = sums[i] + tail::<E>(row, q[i], chunks * LANES);
            }
        }
    }
    for i in fours..queries.len() / dim {
        let (q, out) = (&queries[i * dim..][..dim], out.row(i));
        let whole = &q[..chunks * LANES];
        let size = chunks * LANES * E::SIZE;
        let mut held = [l.splat(0.0); N];
        for c in 0..N {
            held[c] = l.load(whole[c * LANES..].first_chunk().expect("a chunk"));
        }
        let (fours, rest) = out.as_chunks_mut::<FOUR>();
        let at = fours.len() * FOUR;
        for (rows, out) in rows.chunks_exact(FOUR * stride).zip(fours) {
            let mut sums = [l.splat(0.0); FOUR];
            for r in 0..FOUR {
                let row = &rows[r * stride..][..size];
                // Where the row's length is known, the query stays in registers.
                sums[r] = if N > 0 {
                    dot_in_registers::<L, E, N>(l, row, held)
                } else {
                    let [sum] = dots_of_row::<L, E, 1>(l, row, [whole]);
                    sum
                };
            }
            *out = l.sum4(sums);
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(stride)) {
                *out += tail::<E>(row, q, chunks * LANES);
            }
        }
        for (row, out) in rows.chunks_exact(stride).skip(at).zip(rest) {
            let [sum] = dots_of_row::<L, E, 1>(l, &row[..size], [whole]);
            *out = l.sum(sum) + tail::<E>(row, q, chunks * LANES);
        }
    }
}

/// Products of the whole chunks of a row with those of queries.
#[inline(always)]
fn dots_of_row<L: Wide, E: Elem, const Q: usize>(l: L, row: &[u8], q: [&[f32]; Q]) -> [L::F; Q] {
    let mut sums = [l.splat(0.0); Q];
    for (i, v) in row.chunks_exact(LANES * E::SIZE).enumerate() {
        let v = E::load(l, v);
        for j in 0..Q {
            let q = l.load(q[j][i * LANES..].first_chunk().expect("a chunk"));
            sums[j] = l.mul_add(v, q, sums[j]);
        }
    }
    sums
}

#[inline(always)]
fn dot_in_registers<L: Wide, E: Elem, const N: usize>(l: L, row: &[u8], q: [L::F; N]) -> L::F {
    let row = &row[..N * LANES * E::SIZE];
    let mut sum = l.splat(0.0);
    for c in 0..N {
        sum = l.mul_add(E::load(l, &row[c * LANES * E::SIZE..]), q[c], sum);
    }
    sum
}

/// What is left of a product behind whole chunks.
#[inline(always)]
fn tail<E: Elem>(row: &[u8], q: &[f32], from: usize) -> f32 {
    let mut sum = 0.0;
    for (v, q) in row[from * E::SIZE..].chunks_exact(E::SIZE).zip(&q[from..]) {
        sum += E::one(v) * q;
    }
    sum
}

stamp! {
    /// `out[i] += sum over t of weights[i][t] * row t` for rows of `dim` values, `out` as many.
    pub fn float_mix(
        dtype: FloatType, rows: &[u8], dim: usize, weights: Weights<'_>, out: &mut [f32]
    ) = mix_body
}

#[inline(always)]
fn mix_body<L: Wide>(
    l: L,
    dtype: FloatType,
    rows: &[u8],
    dim: usize,
    weights: Weights<'_>,
    out: &mut [f32],
) {
    assert_eq!(rows.len(), weights.len * dim * dtype.size(), "rows and weights");
    with_elem!(dtype, E => mix::<L, E>(l, rows, dim, weights, out));
}

#[inline(always)]
fn mix<L: Wide, E: Elem>(l: L, rows: &[u8], dim: usize, weights: Weights<'_>, out: &mut [f32]) {
    let mut outs = out.chunks_exact_mut(dim);
    let mut first = 0;
    while outs.len() > 0 {
        let columns = Columns { rows, dim };
        if outs.len() >= FOUR {
            let mut out: [&mut [f32]; FOUR] =
                std::array::from_fn(|_| outs.next().expect("four are left"));
            let w: [&[f32]; FOUR] = std::array::from_fn(|i| weights.row(first + i));
            let mut at = columns.mix::<L, E, 4, FOUR>(l, w, &mut out, 0);
            at = columns.mix::<L, E, 1, FOUR>(l, w, &mut out, at);
            columns.rest::<E, FOUR>(w, &mut out, at);
            first += FOUR;
        } else {
            let (mut out, w) = ([outs.next().expect("one is left")], [weights.row(first)]);
            let mut at = columns.mix::<L, E, 8, 1>(l, w, &mut out, 0);
            at = columns.mix::<L, E, 2, 1>(l, w, &mut out, at);
            at = columns.mix::<L, E, 1, 1>(l, w, &mut out, at);
            columns.rest::<E, 1>(w, &mut out, at);
            first += 1;
        }
    }
}

struct Columns<'a> {
    rows: &'a [u8],
    dim: usize,
}

impl Columns<'_> {
    /// As many blocks of `N` x 16 columns as there are from `at` on, the sums of `Q` queries in registers; gives the next
    /// column.
    #[inline(always)]
    fn mix<L: Wide, E: Elem, const N: usize, const Q: usize>(
        &self,
        l: L,
        weights: [&[f32]; Q],
        out: &mut [&mut [f32]; Q],
        mut at: usize,
    ) -> usize {
        let (stride, width) = (self.dim * E::SIZE, N * LANES * E::SIZE);
        while at + N * LANES <= self.dim {
            let mut sums = [[l.splat(0.0); N]; Q];
            for (t, row) in self.rows.chunks_exact(stride).enumerate() {
                let row = &row[at * E::SIZE..][..width];
                let mut w = [l.splat(0.0); Q];
                for q in 0..Q {
                    w[q] = l.splat(weights[q][t]);
                }
                for i in 0..N {
                    let v = E::load(l, &row[i * LANES * E::SIZE..]);
                    for q in 0..Q {
                        sums[q][i] = l.mul_add(v, w[q], sums[q][i]);
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                let out = out[at..][..N * LANES].as_chunks_mut::<LANES>().0;
                for (out, sum) in out.iter_mut().zip(sums) {
                    let sum = l.add(l.load(out), sum);
                    l.store(out, sum);
                }
            }
            at += N * LANES;
        }
        at
    }

    /// Columns behind whole chunks.
    #[inline(always)]
    fn rest<E: Elem, const Q: usize>(
        &self,
        weights: [&[f32]; Q],
        out: &mut [&mut [f32]; Q],
        at: usize,
    ) {
        for (out, weights) in out.iter_mut().zip(weights) {
            for (i, out) in out.iter_mut().enumerate().skip(at) {
                for (row, w) in self.rows.chunks_exact(self.dim * E::SIZE).zip(weights) {
                    *out += w * E::one(&row[i * E::SIZE..]);
                }
            }
        }
    }
}
