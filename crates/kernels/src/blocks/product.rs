//! Rows of blocks times prepared activations.

use std::ops::Range;

use super::UNIT;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::input::BlockActivations;
use super::kinds::{self, Kind};
use super::lanes::{Lanes, Unit};
use super::types::{BlockRows, BlockType};
use crate::rows::by_rows_of;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, avx2};
use crate::simd::{Portable, dispatch};
use crate::work::{Places, Work};

/// Units of a row that are summed up before their sum is added to those before: of what several tokens share, so much
/// stays in the nearest cache.
pub(super) const TILE: usize = 8;
/// Rows that are unpacked together for several tokens.
pub(super) const TOGETHER: usize = 8;
/// Tokens whose activations stay in the second cache while rows pass by.
const TOKENS: usize = 32;
/// Bytes of the longest unit.
pub(super) const LONGEST: usize = 8 * 34;

/// As [`super::block_rows_matmul_input`], of sizes that were checked and are not zero.
pub(super) fn product(
    w: &BlockRows<'_>,
    rows: Range<usize>,
    input: &BlockActivations,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    macro_rules! by_kind {
        ($($kind:ident)*) => {
            match w.kind {
                $(BlockType::$kind => run::<kinds::$kind>(w, rows, input, y, accumulate, work),)*
            }
        };
    }
    by_kind!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4)
}

fn run<K: Kind>(
    w: &BlockRows<'_>,
    rows: Range<usize>,
    input: &BlockActivations,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    let (isa, t) = (input.isa(), input.tokens());
    // Many tokens come by once for so many rows.
    let height = if t > TOKENS { 128 } else { 16 };
    by_rows_of(height, rows, t, y, accumulate, work, |places, first, out| {
        dispatch! { isa;
            avx512 => avx512::rows::<K>(w, input, first, places, out);
            avx2 => rows_avx2::<K>(w, input, first, places, out);
            neon => rows_neon::<K>(w, input, first, places, out);
            _ => rows_of::<Portable, K>(Portable, w, input, first, places, out)
        }
    });
}

#[cfg(target_arch = "x86_64")]
avx2! {
    fn rows_avx2<K: Kind>(
        w: &BlockRows<'_>,
        input: &BlockActivations,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        // SAFETY: this function has the features of the token.
        rows_of::<Avx2, K>(unsafe { Avx2::new() }, w, input, first, places, out);
    }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn rows_neon<K: Kind>(
    w: &BlockRows<'_>,
    input: &BlockActivations,
    first: usize,
    places: &mut Places,
    out: &mut [f32],
) {
    // SAFETY: this function has the features of the token.
    rows_of::<Neon, K>(unsafe { Neon::new() }, w, input, first, places, out);
}

/// Some units of some rows, and the tokens they meet while they are unpacked.
pub(super) struct Part {
    pub(super) tokens: Range<usize>,
    pub(super) rows: Range<usize>,
    pub(super) units: Range<usize>,
}

/// The parts of some rows in the order in which they are multiplied. The sum of a row and a token is one of whole tiles
/// from the first to the last, whatever is asked for beside.
pub(super) fn parts(tokens: usize, rows: Range<usize>, units: usize) -> impl Iterator<Item = Part> {
    let together = if tokens == 1 { 1 } else { TOGETHER };
    pieces(0..tokens, TOKENS).flat_map(move |tokens| {
        pieces(rows.clone(), together).flat_map(move |rows| {
            let tokens = tokens.clone();
            pieces(0..units, TILE).map(move |units| Part {
                tokens: tokens.clone(),
                rows: rows.clone(),
                units,
            })
        })
    })
}

fn pieces(all: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = all.end;
    all.step_by(size).map(move |first| first..end.min(first + size))
}

/// The bytes of a unit; of the last one, where the row ends before it does, in `buffer` with zeros behind: blocks whose
/// weights are zeros, if the scales they are given are finite.
#[inline(always)]
pub(super) fn unit_bytes<'a>(
    row: &'a [u8],
    unit: usize,
    bytes: usize,
    buffer: &'a mut [u8; LONGEST],
) -> &'a [u8] {
    let rest = &row[unit * bytes..];
    if rest.len() >= bytes {
        return &rest[..bytes];
    }
    buffer.fill(0);
    buffer[..rest.len()].copy_from_slice(rest);
    &buffer[..bytes]
}

/// Adds the products of the rows from `first` on with all tokens to `out [some rows, t]`.
#[inline(always)]
fn rows_of<S: Lanes, K: Kind>(
    s: S,
    w: &BlockRows<'_>,
    input: &BlockActivations,
    first: usize,
    places: &mut Places,
    out: &mut [f32],
) {
    let (t, units) = (input.tokens(), w.cols.div_ceil(UNIT));
    let mut buffer = [0; LONGEST];
    for part in parts(t, first..first + out.len() / t, units) {
        let tile = part.units.len();
        places.units.resize(TOGETHER * TILE, Unit::ZERO);
        let mut unpacked = places.units.iter_mut();
        for r in part.rows.clone() {
            for (unit, to) in part.units.clone().zip(&mut unpacked) {
                K::unpack(s, unit_bytes(w.row(r), unit, K::BYTES, &mut buffer), to);
            }
        }
        for token in part.tokens {
            let x = &input.words[token * units..][part.units.clone()];
            for (r, unpacked) in part.rows.clone().zip(places.units.chunks_exact(tile)) {
                out[(r - first) * t + token] += s.dot(K::BY, unpacked, x);
            }
        }
    }
}
