//! The memory layout of panels of codes into codebooks.
//!
//! A panel holds 64 rows, a byte each: one code of each row is a line, that of row `16 k + i` in byte `4 i + k`, so that sums
//! of bytes become sums of rows in order without moving between lanes. The codes of a row are cut into blocks of 32, whose
//! tables stay in the nearest cache: in memory, block after block, in a block panel after panel, in a panel code after code.
//! A product reads the lines from first to last.

use super::CodebookRows;
use crate::Par;
use crate::panels::pack::zeroed;
use crate::simd::wide::{LANES, Line};

/// Rows of a panel.
pub(super) const ROWS: usize = 64;

/// Codes of a block, and the tables they look up.
pub(super) const BLOCK: usize = 32;

/// Where everything lies.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) size: usize,
    pub(super) books: usize,
    /// Entries of a table: 128 or 256.
    pub(super) entries: usize,
}

impl Shape {
    pub(super) fn of(w: &CodebookRows<'_>) -> Self {
        let &CodebookRows { rows, cols, size, books, .. } = w;
        let entries = if w.entries <= 128 { 128 } else { 256 };
        Self { rows, cols, size, books, entries }
    }

    /// Codes of a row.
    pub(super) fn codes(&self) -> usize {
        self.cols.div_ceil(self.size) * self.books
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Lines of a table: two bytes an entry.
    pub(super) fn table_lines(&self) -> usize {
        self.entries / 32
    }

    /// Lines of a codebook.
    pub(super) fn book(&self) -> usize {
        self.size * self.entries / LANES
    }
}

/// The row of a panel whose code is in byte `at` of a line.
pub(super) const fn row_of(at: usize) -> usize {
    16 * (at % 4) + at / 4
}

/// The lines, and the codebooks, entries side by side.
pub(super) fn pack(w: &CodebookRows<'_>, shape: &Shape, par: Par) -> (Vec<Line>, Vec<Line>) {
    let (codes, panels) = (shape.codes(), shape.panels());
    let mut lines = zeroed(codes * panels);
    let mut rest = &mut lines[..];
    for first in (0..codes).step_by(BLOCK) {
        let count = BLOCK.min(codes - first);
        let here;
        (here, rest) = rest.split_at_mut(count * panels);
        par.for_each(here.chunks_mut(count).enumerate(), |(panel, lines)| {
            for at in 0..ROWS {
                let row = panel * ROWS + row_of(at);
                if row < w.rows {
                    let codes = &w.codes[row * codes + first..][..count];
                    lines.iter_mut().zip(codes).for_each(|(line, code)| line.0[at] = *code);
                }
            }
        });
    }
    (lines, books(w, shape))
}

fn books(w: &CodebookRows<'_>, shape: &Shape) -> Vec<Line> {
    let mut named = vec![false; w.books * w.entries];
    for codes in w.codes.chunks_exact(w.books) {
        for (book, code) in codes.iter().enumerate() {
            named[book * w.entries + usize::from(*code)] = true;
        }
    }
    let mut books = vec![Line::ZERO; w.books * shape.book()];
    for (i, values) in w.codebooks.chunks_exact(w.size).enumerate().filter(|(i, _)| named[*i]) {
        let (book, entry) = (i / w.entries, i % w.entries);
        let lines = books[book * shape.book()..].chunks_exact_mut(shape.entries / LANES);
        for (lines, value) in lines.zip(values) {
            let to = &mut lines[entry / LANES].0[entry % LANES * 4..][..4];
            to.copy_from_slice(&value.to_le_bytes());
        }
    }
    books
}
