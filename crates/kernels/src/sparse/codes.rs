//! Multiplying by the codes of kept entries on an integer grid.

use std::ops::Range;

use super::product::{SPARSE, TOGETHER, spread, tokens};
use super::stream::{BEHIND, Stream};
use super::{Padded, Support};
use crate::Isa;
use crate::bitpack::check_bits;
use crate::rows::{by_rows, check_sizes};
use crate::simd::{Stored, stamp};
use crate::work::{Places, Work};
use crate::{packed_len, unpack_bits_on};

/// A matrix on an integer grid of which only the entries of a support are stored: weight `(r, j)` is
/// `scales[r, g] * (code[r, j] - zeros[r, g])` with `g = j / group` in the support, else 0.
#[derive(Clone, Copy, Debug)]
pub struct KeptAffine<'a> {
    /// The entries that are stored.
    pub support: Support<'a>,
    /// Their codes as one stream (see [`pack_bits`](crate::pack_bits)).
    pub packed: &'a [u8],
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Weights along a row that share a scale: see [`KeptAffine::fits`].
    pub group: usize,
    /// `[rows, cols.div_ceil(group)]`
    pub scales: &'a [f32],
    /// `[rows, cols.div_ceil(group)]`
    pub zeros: &'a [f32],
}

impl KeptAffine<'_> {
    /// Whether kernels know a group size: a power of two of at least 16, or whole rows.
    #[must_use]
    pub fn fits(group: usize, cols: usize) -> bool {
        group >= cols.max(1) || (group >= BEHIND && group.is_power_of_two())
    }

    fn rows(&self) -> usize {
        self.support.starts.len() - 1
    }

    fn groups(&self) -> usize {
        self.support.cols.div_ceil(self.group)
    }

    /// # Panics
    ///
    /// If the fields do not fit together.
    fn check(&self) {
        assert!(Self::fits(self.group, self.support.cols), "kept affine: group");
        check_bits(self.bits);
        let codes = packed_len(self.support.starts[self.rows()], self.bits);
        assert_eq!(self.packed.len(), codes, "kept affine: size of the packed codes");
        let grids = self.groups().checked_mul(self.rows());
        assert_eq!(Some(self.scales.len()), grids, "kept affine: number of scales");
        assert_eq!(Some(self.zeros.len()), grids, "kept affine: number of zeros");
    }

    /// The codes of a row in `place`, a byte each.
    #[inline(always)]
    fn row(&self, isa: Isa, row: usize, place: &mut Vec<u8>) -> Codes {
        let (start, end) = (self.support.starts[row], self.support.starts[row + 1]);
        place.resize(end - start + BEHIND, 0);
        unpack_bits_on(isa, self.packed, self.bits, start, &mut place[..end - start]);
        let grids = row * self.groups();
        Codes {
            codes: place.as_ptr(),
            scales: self.scales[grids..].as_ptr(),
            zeros: self.zeros[grids..].as_ptr(),
            shift: if self.group >= self.support.cols { 63 } else { self.group.ilog2() },
        }
    }
}

/// The codes of a row, a byte each, and the grids of its groups.
#[derive(Clone, Copy)]
struct Codes {
    codes: *const u8,
    scales: *const f32,
    zeros: *const f32,
    /// The group of a column is the column shifted by this.
    shift: u32,
}

impl<S: Stored> Stream<S> for Codes {
    #[inline(always)]
    unsafe fn load(self, s: S, at: usize, col: usize) -> S::F32 {
        // SAFETY: the row and [`BEHIND`] bytes behind it can be read; every column has a group.
        unsafe {
            let group = col >> self.shift;
            let (scale, zero) = (*self.scales.add(group), *self.zeros.add(group));
            s.affine(s.bytes(self.codes.add(at)), scale, zero)
        }
    }
    #[inline(always)]
    unsafe fn load_half(self, s: S, at: usize, col: usize) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { self.load(s, at, col) }
    }
    #[inline(always)]
    fn advance(&mut self, by: usize) {
        self.codes = self.codes.wrapping_add(by);
    }
    #[inline(always)]
    fn prefetch(self, _: Option<[usize; 2]>) {}
}

/// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]` and
/// `y [t, rows.len()]`, straight from the packed codes, a row of which is unpacked to bytes at a time. Meant for a few
/// tokens. An entry of `y` depends neither on threads nor on which other rows are asked for.
///
/// # Panics
///
/// If a size does not fit.
pub fn kept_affine_matmul(
    w: &KeptAffine<'_>,
    rows: Range<usize>,
    x: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    check_sizes([w.rows(), w.support.cols], &rows, x, t, y);
    let isa = work.isa();
    Padded::with(x, t, w.support.cols, work, |x, work| {
        by_rows(rows, t, y, accumulate, work, |places, first, out| {
            rows_on(isa, w, &x, places, first, out);
        });
    });
}

stamp! {
    /// The products of the rows from `first` on with all tokens: `out` is `[some rows, t]`.
    fn rows_on(w: &KeptAffine<'_>, x: &Padded<'_>, places: &mut Places, first: usize, out: &mut [f32]) = rows_body
}

#[inline(always)]
fn rows_body<S: Stored>(
    s: S,
    w: &KeptAffine<'_>,
    x: &Padded<'_>,
    places: &mut Places,
    first: usize,
    out: &mut [f32],
) {
    let end = first + out.len() / x.tokens;
    let cols = w.support.cols;
    let (places, all) = (&mut places.bytes, 0..x.tokens);
    let mut row = first;
    while row < end {
        let out = &mut out[(row - first) * x.tokens..];
        if end - row >= TOGETHER {
            let rows: [Codes; TOGETHER] =
                std::array::from_fn(|r| w.row(S::ISA, row + r, &mut places[r]));
            let bits = std::array::from_fn(|r| w.support.row(row + r));
            // SAFETY: the streams are those of the rows and bits.
            unsafe { tokens::<S, _, TOGETHER, SPARSE>(s, rows, bits, 0, cols, x, &all, out) };
            row += TOGETHER;
        } else {
            let codes = [w.row(S::ISA, row, &mut places[0])];
            // SAFETY: as above.
            unsafe {
                tokens::<S, _, 1, SPARSE>(s, codes, [w.support.row(row)], 0, cols, x, &all, out)
            };
            row += 1;
        }
    }
}

/// Decodes row `row` into `out [cols]` (or adds it). Bit-identical on every instruction set: one subtraction and one
/// product, both rounded.
///
/// # Panics
///
/// If a size does not fit.
pub fn kept_affine_decode(
    w: &KeptAffine<'_>,
    row: usize,
    out: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    assert!(row < w.rows() && out.len() == w.support.cols, "kept_affine_decode: row or size");
    decode_on(work.isa(), w, row, out, accumulate, &mut work.places);
}

stamp! {
    /// Decodes a row.
    fn decode_on(
        w: &KeptAffine<'_>, row: usize, out: &mut [f32], accumulate: bool, places: &mut Places,
    ) = decode_body
}

#[inline(always)]
fn decode_body<S: Stored>(
    s: S,
    w: &KeptAffine<'_>,
    row: usize,
    out: &mut [f32],
    accumulate: bool,
    places: &mut Places,
) {
    let codes = w.row(S::ISA, row, &mut places.bytes[0]);
    // SAFETY: the stream is that of the row and its bits.
    unsafe { spread(s, codes, Some(w.support.row(row)), out, accumulate) };
}
