//! Sums of entries of codebooks, in panels.
//!
//! A product never sees a weight. What a token makes of each entry of each codebook is the same for all rows: these products
//! of few numbers are tables, and a row is a sum of what its codes look up among them. The memory layout is in
//! [`pack`](mod@self::pack), how tables are made in [`tables`](self::tables), how they are read in [`product`](self::product).

#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
mod product;
mod tables;

use std::ops::Range;

use crate::Par;
use crate::rows::check_sizes;
use crate::simd::wide::Line;
use crate::work::Work;
use pack::{Shape, pack};
pub(crate) use tables::Tables;

/// A matrix `[rows, cols]` of codes into codebooks: the `size` weights of row r from column `g * size` on are `scales[r]` times
/// the sum over books b of entry `codes[r, g, b]`. The last ones of a row may be fewer.
#[derive(Clone, Copy, Debug)]
pub struct CodebookRows<'a> {
    /// `[rows, cols.div_ceil(size), books]`, all below `entries`.
    pub codes: &'a [u8],
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
    /// Weights of an entry.
    pub size: usize,
    /// Number of codebooks.
    pub books: usize,
    /// Entries of a codebook.
    pub entries: usize,
    /// `[books, entries, size]`
    pub codebooks: &'a [f32],
    /// `[rows]`
    pub scales: &'a [f32],
}

impl CodebookRows<'_> {
    /// Codes of a row.
    fn width(&self) -> usize {
        self.cols.div_ceil(self.size) * self.books
    }

    /// # Panics
    ///
    /// If the fields do not fit together.
    fn check(&self) {
        let codes = self.width().checked_mul(self.rows);
        assert_eq!(Some(self.codes.len()), codes, "codebook rows: number of codes");
        let values = self.books * self.entries * self.size;
        assert_eq!(self.codebooks.len(), values, "codebook rows: size of the codebooks");
        assert_eq!(self.scales.len(), self.rows, "codebook rows: number of scales");
        let named = self.codes.iter().fold(0, |most, code| usize::from(*code).max(most));
        assert!(named < self.entries, "codebook rows: an entry that there is not");
    }
}

/// A matrix of codes into codebooks of up to 256 entries, repacked in panels of 64 rows.
///
/// Panels take a byte for each code, whatever its bits, four for each scale, and 512 or, for more than 128 entries, 1024 for
/// each weight of an entry of each book; rows are padded to a multiple of 64.
#[derive(Clone, Debug)]
pub struct CodebookPanels {
    shape: Shape,
    /// The codes.
    lines: Vec<Line>,
    /// `[books, size, entries]`, entries padded to [`Shape::entries`]. Those that no code names are 0.
    books: Vec<Line>,
    scales: Vec<f32>,
}

/// Tokens whose tables are held at once: half a kilobyte for each code of a row.
const TOKENS: usize = 4;

impl CodebookPanels {
    /// Whether a matrix can be packed: entries of 1 to 64 weights, 1 to 64 books, 1 to 256 entries of each.
    #[must_use]
    pub fn supports(size: usize, books: usize, entries: usize) -> bool {
        let within = |n, most| (1..=most).contains(&n);
        within(size, 64) && within(books, 64) && within(entries, 256)
    }

    /// Repacks a matrix; `None` where [`CodebookPanels::supports`] says no. The work is shared among the threads that `par`
    /// allows.
    ///
    /// # Panics
    ///
    /// If the fields of `w` do not fit together.
    #[must_use]
    pub fn new(w: &CodebookRows<'_>, par: Par) -> Option<Self> {
        if !Self::supports(w.size, w.books, w.entries) {
            return None;
        }
        w.check();
        let shape = Shape::of(w);
        let (lines, books) = pack(w, &shape, par);
        Some(Self { shape, lines, books, scales: w.scales.to_vec() })
    }

    /// Output size.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Input size.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Bytes of the panels, all of which a product reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..]) + size_of_val(&self.books[..]) + size_of_val(&self.scales[..])
    }

    /// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]` and `y [t, rows.len()]`.
    ///
    /// Products of a token with entries are rounded to 16 bits, those which 32 successive codes of a row look up on one scale:
    /// by at most 1/65,534 of the largest of them, about 4e-5 of the sum in the mean. The other errors are those of a few f32
    /// sums. Where all are below 4e-34 they count as 0. Bit-identical on every instruction set, for any
    /// cut of the tokens and of the rows, and for any number of threads, among which the rows are shared.
    ///
    /// A NaN or an infinity in `x`, or in an entry that a code names, makes all products of a token NaN.
    ///
    /// # Panics
    ///
    /// If a size does not fit.
    pub fn matmul(
        &self,
        rows: Range<usize>,
        x: &[f32],
        t: usize,
        y: &mut [f32],
        accumulate: bool,
        work: &mut Work,
    ) {
        check_sizes([self.rows(), self.cols()], &rows, x, t, y);
        if !accumulate {
            y.fill(0.0);
        }
        if y.is_empty() || self.cols() == 0 {
            return;
        }
        let mut tables = work.take_tables();
        let xs = x.chunks(TOKENS * self.cols());
        for (x, y) in xs.zip(y.chunks_mut(TOKENS * rows.len())) {
            self.add(rows.clone(), x, &mut tables, y, work);
        }
        work.put_tables(tables);
    }
}
