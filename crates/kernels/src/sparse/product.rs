//! The loop over the columns of a few rows.

use std::ops::Range;

use super::picked::Rows;
use super::stream::{Apart, AtRow, BF16, F16, F32, Plain, Stream};
use super::{FloatType, Padded, StoredRows, WORD};
use crate::simd::{Stored, stamp};
use crate::work::Places;

stamp! {
    /// The products of the first of these rows with all tokens: `out` is `[some rows, t]`.
    pub(super) fn product_on(
        w: &StoredRows<'_>, x: &Padded<'_>, places: &mut Places, which: Rows<'_>, out: &mut [f32],
    ) = product_body
}

#[inline(always)]
fn product_body<S: Stored>(
    s: S,
    w: &StoredRows<'_>,
    x: &Padded<'_>,
    places: &mut Places,
    which: Rows<'_>,
    out: &mut [f32],
) {
    match w.format {
        FloatType::F32 => formatted::<S, F32>(s, w, x, places, which, out),
        FloatType::F16 => formatted::<S, F16>(s, w, x, places, which, out),
        FloatType::Bf16 => formatted::<S, BF16>(s, w, x, places, which, out),
    }
}

#[inline(always)]
fn formatted<S: Stored, const FORMAT: u8>(
    s: S,
    w: &StoredRows<'_>,
    x: &Padded<'_>,
    places: &mut Places,
    which: Rows<'_>,
    out: &mut [f32],
) {
    match (w.support, which) {
        (None, Rows::From(_)) => rows::<S, Plain<FORMAT>, DENSE>(s, w, x, places, which, out),
        (None, Rows::Picked(_)) => rows::<S, Apart<FORMAT>, DENSE>(s, w, x, places, which, out),
        (Some(support), _) if even(support.every, S::LANES) => {
            rows::<S, Plain<FORMAT>, EVEN>(s, w, x, places, which, out);
        }
        (Some(_), _) => rows::<S, Plain<FORMAT>, SPARSE>(s, w, x, places, which, out),
    }
}

/// Whether every vector of columns keeps as many, and at most half of them.
fn even([n, m]: [usize; 2], lanes: usize) -> bool {
    m > 0 && lanes.is_multiple_of(m) && 2 * n <= m
}

/// All entries are stored.
const DENSE: u8 = 0;
/// Those of a support.
pub(super) const SPARSE: u8 = 1;
/// Those of a support that keeps the same number in each vector of columns, at most half of them.
const EVEN: u8 = 2;

/// Rows that share one reading of the activations.
pub(super) const TOGETHER: usize = 4;

#[inline(always)]
fn rows<S: Stored, W: Stream<S> + AtRow, const MODE: u8>(
    s: S,
    w: &StoredRows<'_>,
    x: &Padded<'_>,
    places: &mut Places,
    which: Rows<'_>,
    out: &mut [f32],
) {
    let t = x.tokens;
    let count = out.len() / t;
    let [n, m] = w.support.map_or([0, 1], |support| support.every);
    let each = if MODE == EVEN { S::LANES / m * n } else { 0 };
    let copies = &mut places.bytes;
    // A few tokens with all rows: their activations stay in the nearest cache where they can, the rows in the second.
    let mut token = 0;
    while token < t {
        let some = token..token + at_once(t - token, 2 * S::TILE);
        let mut place = 0;
        while place < count {
            let out = &mut out[place * t..];
            if count - place >= TOGETHER {
                let streams: [W; TOGETHER] = std::array::from_fn(|r| {
                    let at = place + r;
                    W::at_row(w, which.at(at), which.at(at + TOGETHER), &mut copies[r])
                });
                let bits = std::array::from_fn(|r| w.bits(which.at(place + r)));
                // SAFETY: the streams are those of the rows and bits.
                unsafe {
                    tokens::<S, _, TOGETHER, MODE>(s, streams, bits, each, w.cols, x, &some, out)
                };
                place += TOGETHER;
            } else {
                let row = which.at(place);
                let stream = W::at_row(w, row, which.at(place + 1), &mut copies[0]);
                // SAFETY: as above.
                unsafe {
                    tokens::<S, _, 1, MODE>(s, [stream], [w.bits(row)], each, w.cols, x, &some, out)
                };
                place += 1;
            }
        }
        token = some.end;
    }
}

/// How many of the tokens that are left go together where `most` can: about equally many each time.
#[inline(always)]
fn at_once(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most))
}

/// The products of `R` rows with some tokens.
///
/// # Safety
///
/// `rows` are the streams of the rows whose mask bits are `bits`, and `each` is how many a vector of columns keeps.
#[inline(always)]
pub(super) unsafe fn tokens<S: Stored, W: Stream<S>, const R: usize, const MODE: u8>(
    s: S,
    rows: [W; R],
    bits: [&[u8]; R],
    each: usize,
    cols: usize,
    x: &Padded<'_>,
    some: &Range<usize>,
    out: &mut [f32],
) {
    let mut token = some.start;
    while token < some.end {
        let out = &mut out[token..];
        // Reading and spreading a number costs more than its products: as many tokens at once as registers hold, of all rows
        // or of half of them.
        let most = if R == TOGETHER { 2 * S::TILE } else { S::TILE };
        let tokens = at_once(some.end - token, most);
        // What a set never does is not compiled for it.
        // SAFETY: the caller's.
        unsafe {
            match tokens {
                1 => tile::<S, W, 1, R, MODE>(s, rows, bits, each, cols, x, token, out),
                2 if const { S::TILE >= 2 } => {
                    tile::<S, W, 2, R, MODE>(s, rows, bits, each, cols, x, token, out);
                }
                3 if const { S::TILE >= 4 } => {
                    tile::<S, W, 3, R, MODE>(s, rows, bits, each, cols, x, token, out);
                }
                4 if const { S::TILE >= 4 } => {
                    tile::<S, W, 4, R, MODE>(s, rows, bits, each, cols, x, token, out);
                }
                _ if const { R == TOGETHER } => {
                    for half in [0, 2] {
                        let rows = [rows[half], rows[half + 1]];
                        let bits = [bits[half], bits[half + 1]];
                        let out = &mut out[half * x.tokens..];
                        match tokens {
                            2 if const { S::TILE == 1 } => {
                                tile::<S, W, 2, 2, MODE>(s, rows, bits, each, cols, x, token, out);
                            }
                            3 | 4 if const { S::TILE == 2 } => {
                                tile::<S, W, 4, 2, MODE>(s, rows, bits, each, cols, x, token, out);
                            }
                            5 | 6 if const { S::TILE == 4 } => {
                                tile::<S, W, 6, 2, MODE>(s, rows, bits, each, cols, x, token, out);
                            }
                            7 | 8 if const { S::TILE == 4 } => {
                                tile::<S, W, 8, 2, MODE>(s, rows, bits, each, cols, x, token, out);
                            }
                            _ => unreachable!("{tokens} tokens in tiles of {}", S::TILE),
                        }
                    }
                }
                _ => unreachable!("{tokens} tokens in tiles of {}", S::TILE),
            }
        }
        token += tokens;
    }
}

/// Puts a tile of `T` tokens and `R` rows into `out [R, all tokens]`; tokens behind the last one are left out.
///
/// # Safety
///
/// As [`tokens`].
#[inline(always)]
unsafe fn tile<S: Stored, W: Stream<S>, const T: usize, const R: usize, const MODE: u8>(
    s: S,
    mut rows: [W; R],
    bits: [&[u8]; R],
    each: usize,
    cols: usize,
    x: &Padded<'_>,
    token: usize,
    out: &mut [f32],
) {
    let whole = cols / WORD * WORD;
    let xs: [&[f32]; T] = std::array::from_fn(|i| x.token(token + i));
    let mut sums = [[s.splat(0.0); R]; T];
    let starts = bits.map(<[u8]>::as_ptr);
    for col in (0..whole).step_by(WORD) {
        for r in 0..R {
            let word = if MODE == DENSE {
                0
            } else {
                // SAFETY: a row of a mask has a bit for every column.
                u64::from_le_bytes(unsafe { starts[r].add(col / 8).cast::<[u8; 8]>().read() })
            };
            rows[r].prefetch((MODE == DENSE).then(|| [cols - col, (R - 1) * cols]));
            for lane in (0..WORD).step_by(S::LANES) {
                let keep = (word >> lane) as u32 & (!0 >> (32 - S::LANES));
                // SAFETY: so many numbers of the row lie before this column.
                let v = unsafe {
                    match MODE {
                        DENSE => rows[r].load(s, lane, col + lane),
                        EVEN => {
                            let at = lane / S::LANES * each;
                            s.expand(keep, rows[r].load_half(s, at, col + lane))
                        }
                        _ => s.expand(keep, rows[r].load(s, before(word, lane), col + lane)),
                    }
                };
                for i in 0..T {
                    // SAFETY: tokens are as long as all columns.
                    let x = unsafe { s.load(xs[i], col + lane) };
                    sums[i][r] = s.mul_add(v, x, sums[i][r]);
                }
            }
            rows[r].advance(match MODE {
                DENSE => WORD,
                EVEN => WORD / S::LANES * each,
                _ => word.count_ones() as usize,
            });
        }
    }
    for r in 0..R {
        let word = if MODE == DENSE { !0 } else { last_word(bits[r], whole / 8) };
        let n = cols - whole;
        let word = word & !(!0u64).checked_shl(n as u32).unwrap_or(0);
        for lane in (0..n).step_by(S::LANES) {
            let keep = (word >> lane) as u32 & (!0 >> (32 - S::LANES));
            // SAFETY: as above.
            let v = unsafe { rows[r].load(s, before(word, lane), whole + lane) };
            let v = s.expand(keep, v);
            for i in 0..T {
                // SAFETY: tokens are padded to whole words.
                let x = unsafe { s.load(xs[i], whole + lane) };
                sums[i][r] = s.mul_add(v, x, sums[i][r]);
            }
        }
    }
    for i in 0..T.min(x.tokens - token) {
        for r in 0..R {
            out[r * x.tokens + i] = s.sum(sums[i][r]);
        }
    }
}

/// How many bits are set below bit `lane`.
#[inline(always)]
fn before(word: u64, lane: usize) -> usize {
    if lane == 0 { 0 } else { (word << (WORD - lane)).count_ones() as usize }
}

/// Up to 64 mask bits from a byte on; those behind the end are 0.
#[inline(always)]
fn last_word(bits: &[u8], at: usize) -> u64 {
    match bits[at..].first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..bits.len() - at].copy_from_slice(&bits[at..]);
            u64::from_le_bytes(bytes)
        }
    }
}

stamp! {
    /// Decodes a row.
    pub(super) fn decode_on(
        w: &StoredRows<'_>, row: usize, out: &mut [f32], accumulate: bool, places: &mut Places,
    ) = decode_body
}

#[inline(always)]
fn decode_body<S: Stored>(
    s: S,
    w: &StoredRows<'_>,
    row: usize,
    out: &mut [f32],
    accumulate: bool,
    places: &mut Places,
) {
    match w.format {
        FloatType::F32 => decode_row::<S, F32>(s, w, row, out, accumulate, places),
        FloatType::F16 => decode_row::<S, F16>(s, w, row, out, accumulate, places),
        FloatType::Bf16 => decode_row::<S, BF16>(s, w, row, out, accumulate, places),
    }
}

#[inline(always)]
fn decode_row<S: Stored, const FORMAT: u8>(
    s: S,
    w: &StoredRows<'_>,
    row: usize,
    out: &mut [f32],
    accumulate: bool,
    places: &mut Places,
) {
    let stream: Plain<FORMAT> = w.stream(row, &mut places.bytes[0]);
    let bits = w.support.map(|_| w.bits(row));
    // SAFETY: the stream is that of the row and its bits.
    unsafe { spread(s, stream, bits, out, accumulate) };
}

/// Spreads a row's numbers over its columns.
///
/// # Safety
///
/// As [`tokens`].
#[inline(always)]
pub(super) unsafe fn spread<S: Stored, W: Stream<S>>(
    s: S,
    mut row: W,
    bits: Option<&[u8]>,
    out: &mut [f32],
    accumulate: bool,
) {
    let cols = out.len();
    for col in (0..cols).step_by(WORD) {
        let n = (cols - col).min(WORD);
        let bits = bits.map_or(!0 >> (WORD - n), |bits| last_word(bits, col / 8));
        for lane in (0..n).step_by(S::LANES) {
            let keep = (bits >> lane) as u32 & (!0 >> (32 - S::LANES));
            // SAFETY: the row is advanced by the bits of its mask.
            let v = s.expand(keep, unsafe { row.load(s, 0, col + lane) });
            row.advance(keep.count_ones() as usize);
            let out = &mut out[col + lane..];
            if out.len() >= S::LANES {
                // SAFETY: so many numbers are left.
                unsafe {
                    let v = if accumulate { s.add(s.load(out, 0), v) } else { v };
                    s.store(out.as_mut_ptr(), v);
                }
            } else {
                let mut last = [0.0; BEHIND];
                // SAFETY: no vector has more lanes.
                unsafe { s.store(last.as_mut_ptr(), v) };
                let last = out.iter_mut().zip(last);
                last.for_each(|(o, v)| *o = if accumulate { *o + v } else { v });
            }
        }
    }
}

use super::stream::BEHIND;
