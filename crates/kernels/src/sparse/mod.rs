//! Multiplying by stored numbers as they lie in a file: all entries of a matrix, or only those of a support.
//!
//! A support is a bitmap, and the numbers of its entries lie one after the other, row after row. A vector of mask
//! bits spreads as many consecutive numbers over the lanes as it has bits set (*expand*); products and decoded rows
//! never see the others. Nothing is repacked, so memory is read once and in order.

mod bitmap;
mod blocks;
mod codes;
mod picked;
mod product;
mod stream;

pub use bitmap::{Bitmap, BitmapFault};
pub use blocks::{BlockInputs, block_matmul};
pub use codes::{KeptAffine, kept_affine_decode, kept_affine_matmul};
pub use picked::{picked_matmul, picked_sum};

use std::ops::Range;

use super::FloatType;
use super::rows::{by_rows, check_sizes};
use super::work::Work;
use picked::Rows;
use product::{decode_on, product_on};

/// Which entries of a matrix are stored: a borrowed [`Bitmap`], which has counted the bits.
#[derive(Clone, Copy, Debug)]
pub struct Support<'a> {
    cols: usize,
    bits: &'a [u8],
    /// Stored entries before each row, and in all.
    starts: &'a [usize],
    /// `[n, m]` if every group of `m` columns, a power of two that divides `cols`, stores `n`; else `[0, 0]`.
    every: [usize; 2],
    /// So many consecutive rows are alike, from each multiple of the number on.
    alike: usize,
}

impl<'a> Support<'a> {
    /// The bits of a row.
    fn row(&self, row: usize) -> &'a [u8] {
        let stride = self.cols.div_ceil(8);
        &self.bits[row * stride..(row + 1) * stride]
    }
}

/// A matrix `[rows, cols]` of stored numbers.
#[derive(Clone, Copy, Debug)]
pub struct StoredRows<'a> {
    /// The numbers, at any alignment.
    pub values: &'a [u8],
    /// Their type.
    pub format: FloatType,
    /// Output size.
    pub rows: usize,
    /// Padded size.
    pub cols: usize,
    /// The entries that are stored; `None` for all.
    pub support: Option<Support<'a>>,
}

impl StoredRows<'_> {
    /// # Panics
    ///
    /// If the fields do not fit together.
    fn check(&self) {
        let count = match &self.support {
            Some(support) => {
                assert_eq!(support.cols, self.cols, "stored rows: columns of the support");
                assert_eq!(support.starts.len(), self.rows + 1, "stored rows: rows of the support");
                Some(support.starts[self.rows])
            }
            None => self.rows.checked_mul(self.cols),
        };
        let bytes = count.and_then(|count| count.checked_mul(self.format.size()));
        assert_eq!(bytes, Some(self.values.len()), "stored rows: bytes of the values");
    }

    /// Stored numbers before a row.
    fn start(&self, row: usize) -> usize {
        self.support.map_or(row * self.cols, |support| support.starts[row])
    }
}

/// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]` and
/// `y [t, rows.len()]`, straight from the stored numbers. Meant for a few tokens.
///
/// An entry of `y` does not depend on the number of tokens or threads, nor on which other rows are asked for; the rows
/// are shared among the threads that `work` allows.
///
/// # Panics
///
/// If a size does not fit.
pub fn stored_matmul(
    w: &StoredRows<'_>,
    rows: Range<usize>,
    x: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    check_sizes([w.rows, w.cols], &rows, x, t, y);
    let isa = work.isa();
    Padded::with(x, t, w.cols, work, |x, work| {
        by_rows(rows, t, y, accumulate, work, |places, first, out| {
            product_on(isa, w, &x, places, Rows::From(first), out);
        });
    });
}

/// Decodes row `row` into `out [cols]` (or adds it): entries outside the support are 0. Bit-identical on every
/// instruction set.
///
/// # Panics
///
/// If a size does not fit.
pub fn stored_decode(
    w: &StoredRows<'_>,
    row: usize,
    out: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    assert!(row < w.rows && out.len() == w.cols, "stored_decode: row or size of out");
    decode_on(work.isa(), w, row, out, accumulate, &mut work.places);
}

/// Columns of a word of mask bits.
const WORD: usize = 64;

/// Activations, each token's padded with zeros to whole words.
struct Padded<'a> {
    x: &'a [f32],
    tokens: usize,
    stride: usize,
}

impl Padded<'_> {
    /// Calls `f` with a copy of `x [tokens, cols]`, each token at a cache line: rows of a file begin anywhere, so that half of
    /// the reads are slow already.
    fn with(
        x: &[f32],
        tokens: usize,
        cols: usize,
        work: &mut Work,
        f: impl FnOnce(Padded<'_>, &mut Work),
    ) {
        let stride = cols.next_multiple_of(WORD);
        let mut padded = work.take_lines((tokens + 1) * stride);
        padded[tokens * stride..].fill(0.0);
        if cols > 0 {
            for (to, from) in padded.chunks_exact_mut(stride).zip(x.chunks_exact(cols)) {
                to[..cols].copy_from_slice(from);
                to[cols..].fill(0.0);
            }
        }
        f(Padded { x: &padded, tokens, stride }, work);
        work.put_lines(padded);
    }

    /// A token, or a last one of zeros.
    fn token(&self, token: usize) -> &[f32] {
        &self.x[token * self.stride..(token + 1) * self.stride]
    }
}
