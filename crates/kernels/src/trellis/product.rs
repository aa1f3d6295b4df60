//! Tiles times activations, and tiles as floats.

use std::ops::Range;

use super::input::{CHUNK, Chunk, LANES, PAIRS, Totals, prepare_on};
use super::values::{Lanes, Pair};
use super::{MEAN, SIDE, TrellisRows};
use crate::rows::{by_rows_of, check_sizes};
use crate::simd::stamp;
use crate::work::{Places, Work};

/// Rows that a thread takes at once.
const ROWS: usize = 4 * SIDE;
/// Tokens that meet the values of a band once they are found: their activations and sums stay in the second cache.
const TOKENS: usize = 64;

/// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]` and `y [t, rows.len()]`.
/// Values are found in registers for one token, and a chunk of 16 rows at a time for many.
///
/// Activations are rounded to 16 bits, 256 of a token on one scale, which is an error of about 3e-5 of the product; all else
/// is exact but for a few f32 sums. Bit-identical on every instruction set, for any cut of the tokens and of the rows, and
/// for any number of threads, among which the rows are shared.
///
/// A NaN or an infinity in `x` makes all products of its token NaN.
///
/// # Panics
///
/// If a size does not fit.
pub fn trellis_matmul(
    w: &TrellisRows<'_>,
    rows: Range<usize>,
    x: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    check_sizes([w.rows, w.cols], &rows, x, t, y);
    if y.is_empty() || w.cols == 0 {
        if !accumulate {
            y.fill(0.0);
        }
        return;
    }
    let isa = work.isa();
    let mut inputs = work.take_trellis();
    prepare_on(isa, x, w.cols, &mut inputs);
    by_rows_of(ROWS, rows, t, y, accumulate, work, |places, first, out| {
        rows_on(isa, w, &inputs, t, first, places, out);
    });
    work.put_trellis(inputs);
}

stamp! {
    /// The products of the rows from `first` on with all tokens: `out` is `[some rows, t]`, and 0.
    fn rows_on(
        w: &TrellisRows<'_>, x: &[Chunk], t: usize, first: usize, places: &mut Places, out: &mut [f32],
    ) = rows_body
}

#[inline(always)]
fn rows_body<S: Lanes>(
    s: S,
    w: &TrellisRows<'_>,
    x: &[Chunk],
    t: usize,
    first: usize,
    places: &mut Places,
    out: &mut [f32],
) {
    let (rows, chunks) = (first..first + out.len() / t, w.cols.div_ceil(CHUNK));
    for band in rows.start / SIDE..rows.end.div_ceil(SIDE) {
        let mut tokens = 0..t.min(TOKENS);
        while !tokens.is_empty() {
            let x = &x[tokens.start * chunks..tokens.end * chunks];
            let totals = &mut places.trellis_totals;
            totals.clear();
            totals.resize(tokens.len(), [[0.0; LANES]; SIDE]);
            if tokens.len() > 1 || !s.alone(w.bits, w.band(band), x, &mut totals[0]) {
                add_band(s, w.bits, w.band(band), x, totals);
            }
            for r in rows.start.max(band * SIDE)..rows.end.min((band + 1) * SIDE) {
                let step = w.step(r);
                let out = &mut out[(r - first) * t..][tokens.clone()];
                for (out, totals) in out.iter_mut().zip(&*totals) {
                    *out = step * halved(totals[r - band * SIDE]);
                }
            }
            tokens = tokens.end..t.min(tokens.end + TOKENS);
        }
    }
}

/// Adds the products of the tiles of a band with tokens, chunk by chunk.
#[inline(always)]
fn add_band<S: Lanes>(s: S, bits: u32, band: &[u8], x: &[Chunk], totals: &mut [Totals]) {
    let chunks = x.len() / totals.len();
    let tile = SIDE * SIDE / 8 * bits as usize;
    let mut values = [Pair::ZERO; PAIRS];
    for (c, tiles) in band.chunks(2 * PAIRS * tile).enumerate() {
        let pairs = tiles.chunks(2 * tile);
        let values = &mut values[..pairs.len()];
        for (pair, to) in pairs.zip(&mut *values) {
            s.pair(bits, both(pair, tile), to);
        }
        for (x, totals) in x[c..].iter().step_by(chunks).zip(&mut *totals) {
            s.dots(values, x, totals);
        }
    }
}

/// The tiles of a pair: a last one without another is taken twice, and meets levels of 0 the second time.
#[inline(always)]
pub(super) fn both(pair: &[u8], tile: usize) -> [&[u8]; 2] {
    match pair.split_at(tile) {
        (first, []) => [first; 2],
        (first, second) => [first, second],
    }
}

/// The sum, one half added to the other again and again.
#[inline(always)]
fn halved(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

stamp! {
    /// Decodes a part of a matrix, some columns of some rows, into `out`, row-major and without gaps. Bit-identical on every
    /// instruction set, whatever the part.
    ///
    /// # Panics
    ///
    /// If the fields of `w` do not fit together, the part does not lie in it, or `out` has another size.
    pub fn trellis_part, trellis_part_on(
        w: &TrellisRows<'_>, rows: Range<usize>, columns: Range<usize>, out: &mut [f32],
    ) = part_body
}

#[inline(always)]
fn part_body<S: Lanes>(
    s: S,
    w: &TrellisRows<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &mut [f32],
) {
    w.check();
    assert!(rows.end <= w.rows && columns.end <= w.cols, "trellis part: outside of the matrix");
    assert_eq!(Some(out.len()), rows.len().checked_mul(columns.len()), "trellis part: size of out");
    if out.is_empty() {
        return;
    }
    let (tile, width) = (w.tile_bytes(), columns.len());
    let mut values = Pair::ZERO;
    for band in rows.start / SIDE..rows.end.div_ceil(SIDE) {
        let rows_here = rows.start.max(band * SIDE)..rows.end.min((band + 1) * SIDE);
        let from = columns.start / SIDE * SIDE;
        let tiles = &w.band(band)[from / SIDE * tile..columns.end.div_ceil(SIDE) * tile];
        for (i, pair) in tiles.chunks(2 * tile).enumerate() {
            s.pair(w.bits, both(pair, tile), &mut values);
            for half in 0..2 {
                let at = from + (2 * i + half) * SIDE;
                let here = columns.start.max(at)..columns.end.min(at + SIDE);
                if here.is_empty() {
                    continue;
                }
                for r in rows_here.clone() {
                    let step = w.step(r);
                    let values = &values.0[r - band * SIDE][here.start - at..here.end - at];
                    let to = (r - rows.start) * width + here.start - columns.start;
                    let pairs = out[to..to + here.len()].iter_mut().zip(values);
                    for (out, v) in pairs {
                        *out = step * ((v >> (16 * half) & 0xFFFF) as i32 - MEAN) as f32;
                    }
                }
            }
        }
    }
}
