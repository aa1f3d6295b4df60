//! Codes into tables of levels, in panels.
//!
//! A level becomes a number of 16 bits and a step: two planes of bytes, which codes look up among
//! the 16 of their row. What follows is as for grids, with 16 bits on both sides.

mod pack;
mod product;

use std::ops::Range;

use super::input::{Activations, InputForm, PanelInput};
use super::pack::{Shape, pack_by};
use super::product::Panels;
use crate::simd::wide::Line;
use crate::work::Work;
use crate::{Par, packed_len};
use pack::{Rounded, Tables};
use product::Lookups;

/// A matrix `[rows, cols]` of codes into tables of levels: weight `(r, j)` is `levels[table, code[r, j]] * scales[r, g]` with
/// `g = j / group`.
#[derive(Clone, Copy, Debug)]
pub struct LevelRows<'a> {
    /// The rows of codes, each `packed_len(cols, bits)` bytes (see [`crate::pack_bits`]).
    pub packed: &'a [u8],
    /// Bits of a code: 2, 3 or 4.
    pub bits: u32,
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
    /// Weights along a row that share a scale; the last group of a row may be shorter.
    pub group: usize,
    /// `[rows, cols.div_ceil(group)]`
    pub scales: &'a [f32],
    /// `[tables, 1 << bits]`
    pub levels: &'a [f32],
    /// The number of a table: one for all, one for each row, or one for each group of each row.
    pub tables: &'a [u32],
}

impl LevelRows<'_> {
    fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    fn count(&self) -> usize {
        1 << self.bits
    }

    /// The number of the table of group `g` of a row.
    fn table(&self, row: usize, g: usize) -> u32 {
        match self.tables.len() {
            1 => self.tables[0],
            rows if rows == self.rows => self.tables[row],
            _ => self.tables[row * self.groups() + g],
        }
    }

    /// Whether groups have tables of their own.
    fn by_group(&self) -> bool {
        self.tables.len() != 1 && self.tables.len() != self.rows
    }

    /// # Panics
    ///
    /// If the fields do not fit together.
    fn check(&self) {
        assert!(self.group > 0, "level rows: group is zero");
        assert!(matches!(self.bits, 2..=4), "level rows: {} bits", self.bits);
        let bytes = packed_len(self.cols, self.bits).checked_mul(self.rows);
        assert_eq!(Some(self.packed.len()), bytes, "level rows: size of the packed codes");
        let grids = self.groups().checked_mul(self.rows);
        assert_eq!(Some(self.scales.len()), grids, "level rows: number of scales");
        let tables = self.tables.len();
        let fits = tables == 1 || tables == self.rows || Some(tables) == grids;
        assert!(fits, "level rows: number of tables");
        let held = self.levels.len() / self.count();
        assert_eq!(self.levels.len(), held * self.count(), "level rows: number of levels");
        let named = self.tables.iter().all(|table| (*table as usize) < held);
        assert!(named, "level rows: a table that there is not");
    }
}

/// A matrix of codes of 2, 3 or 4 bits into tables of levels, repacked in panels of 16 rows.
///
/// A level is rounded to 16 bits: by at most 1/65,534 of the largest that the codes of its row name, or of its table where
/// groups have tables of their own. Levels that are all below 4e-34 count as 0, and one that is not finite makes all products
/// of the rows that name it NaN. Panels take the bits of the codes, 32 for each scale, 256 for each table or row, and 32 for
/// each group where groups have tables of their own; rows are padded to a multiple of 16, the input to one of 32.
#[derive(Clone, Debug)]
pub struct LevelPanels {
    shape: Shape,
    lines: Vec<Line>,
    tables: Tables,
}

/// Weights that share a scale, at most: sums of integers fit then.
const MOST: usize = 1 << 15;

/// Into groups of so many are rows cut that have one scale: an outlier among the activations costs accuracy in its own alone.
const CUT: usize = 1024;

impl LevelPanels {
    /// Whether a matrix of `cols` inputs can be packed: 2, 3 or 4 bits, and groups of a multiple of 32 weights, 32,768 at most,
    /// or one group for the whole row.
    #[must_use]
    pub fn supports(bits: u32, cols: usize, group: usize) -> bool {
        let whole_row = group >= cols;
        matches!(bits, 2..=4)
            && group > 0
            && (whole_row || group.is_multiple_of(32) && group <= MOST)
    }

    /// Repacks a matrix; `None` where [`LevelPanels::supports`] says no. The work is shared among the threads that `par`
    /// allows.
    ///
    /// # Panics
    ///
    /// If the fields of `w` do not fit together.
    #[must_use]
    pub fn new(w: &LevelRows<'_>, par: Par) -> Option<Self> {
        if !Self::supports(w.bits, w.cols, w.group) {
            return None;
        }
        w.check();
        let group = if w.group >= w.cols { CUT } else { w.group };
        let shape = Shape::new([w.rows, w.cols], w.bits, group, 1 + usize::from(w.by_group()));
        let rounded = Rounded::of(w);
        let lines = pack_by(&shape, par, |tile, panel, lines| {
            rounded.fill(w, &shape, tile, panel, lines);
        });
        Some(Self { shape, lines, tables: rounded.into_tables(w) })
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
        self.lines.len() * size_of::<Line>() + self.tables.bytes()
    }

    /// The form in which [`LevelPanels::matmul_input`] takes activations.
    #[must_use]
    pub fn input_form(&self) -> InputForm {
        InputForm { group: self.shape.group, step: 16 }
    }

    /// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]` and `y [t, rows.len()]`.
    ///
    /// The errors are those of rounding levels and activations (see [`Activations`]) and of a few f32 sums per group.
    /// Bit-identical on every instruction set, for any cut of the tokens and of the rows, and for any number of threads,
    /// among which the rows are shared.
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
        activations: Activations,
        work: &mut Work,
    ) {
        let mut input = work.take_input();
        input.prepare_on(work.isa(), x, t, self.cols(), self.input_form(), activations);
        self.matmul_input(rows, &input, y, accumulate, work);
        work.put_input(input);
    }

    /// [`LevelPanels::matmul`] for activations that are prepared already: those that feed several matrices need to be only
    /// once.
    ///
    /// # Panics
    ///
    /// If `input` was made for another input size or form, or `y` is not `[t, rows.len()]`.
    pub fn matmul_input(
        &self,
        rows: Range<usize>,
        input: &PanelInput,
        y: &mut [f32],
        accumulate: bool,
        work: &mut Work,
    ) {
        assert!(
            input.cols() == self.cols() && input.form() == self.input_form(),
            "panels: the input was prepared for another matrix"
        );
        let panels = Panels { shape: &self.shape, lines: &self.lines };
        let tables = &self.tables;
        match self.shape.bits {
            2 => panels.matmul(Lookups::<2> { tables }, rows, input, y, accumulate, work),
            3 => panels.matmul(Lookups::<3> { tables }, rows, input, y, accumulate, work),
            _ => panels.matmul(Lookups::<4> { tables }, rows, input, y, accumulate, work),
        }
    }
}
