//! Integer grids repacked for products with few tokens at the speed of memory.
//!
//! A panel holds 16 rows side by side, one row to each 32-bit lane, so that a product needs no sum
//! across lanes; activations are integers, so that one instruction multiplies 64 codes. The memory
//! layout is in [`pack`](self::pack), the arithmetic in [`input`](self::input). Tables of levels are
//! in [`levels`](self::levels), sums of entries of codebooks in [`codebooks`](self::codebooks).

mod codebooks;
mod grids;
mod input;
mod levels;
mod pack;
mod product;

pub(crate) use codebooks::Tables as CodebookTables;
pub use codebooks::{CodebookPanels, CodebookRows};
pub use input::{Activations, InputForm, PanelInput};
pub(super) use input::{Grid, round_body};
pub use levels::{LevelPanels, LevelRows};

use std::ops::Range;

use super::Par;
use super::rows::AffineRows;
use super::work::Work;
use crate::simd::wide::{LANES, Line};
use grids::Grids;
use pack::Shape;
use product::Panels;

/// Rows in a panel, one a lane.
const ROWS: usize = LANES;

/// Does something with the kernel for codes of so many bits.
macro_rules! with_grids {
    ($bits:expr, $kernel:ident => $do:block) => {
        match $bits {
            1 => with_grids!(@ 1, $kernel, $do),
            2 => with_grids!(@ 2, $kernel, $do),
            3 => with_grids!(@ 3, $kernel, $do),
            4 => with_grids!(@ 4, $kernel, $do),
            _ => with_grids!(@ 8, $kernel, $do),
        }
    };
    (@ $bits:literal, $kernel:ident, $do:block) => {{
        let $kernel = Grids::<$bits>;
        $do
    }};
}

/// A matrix on an integer grid of 1, 2, 3, 4 or 8 bits, repacked in panels of 16 rows.
///
/// The values are those of the [`AffineRows`] it was made from, exactly. It takes the same number
/// of bits for the codes and 16 for each scale and each zero point, if half precision holds them
/// all exactly, else 32; rows are padded to a multiple of 16, the input to a multiple of 32.
#[derive(Clone, Debug)]
pub struct AffinePanels {
    shape: Shape,
    lines: Vec<Line>,
}

impl AffinePanels {
    /// Rows of a panel.
    pub const ROWS: usize = ROWS;

    /// Whether a matrix of `cols` inputs can be packed: 1, 2, 3, 4 or 8 bits, and groups of a
    /// multiple of 32 or one group for the whole row, of at most 65 536 weights either way.
    pub fn supports(bits: u32, cols: usize, group: usize) -> bool {
        let whole_row = group >= cols;
        matches!(bits, 1 | 2 | 3 | 4 | 8)
            && group > 0
            && (whole_row || group.is_multiple_of(32))
            && group.min(cols) <= 65_536
    }

    /// Repacks a matrix; `None` where [`AffinePanels::supports`] says no. The work is shared
    /// among the threads that `par` allows.
    ///
    /// # Panics
    ///
    /// If the fields of `w` do not fit together.
    pub fn new(w: &AffineRows<'_>, par: Par) -> Option<Self> {
        w.check();
        if !Self::supports(w.bits, w.cols, w.group) {
            return None;
        }
        let shape = Shape::of(w);
        let lines = pack::pack(w, &shape, par);
        Some(Self { shape, lines })
    }

    /// Output size.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Input size.
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.shape.bits as u32
    }

    /// Weights along a row that share a scale: `cols`, rounded up to a multiple of 32, where the
    /// whole row does.
    pub fn group(&self) -> usize {
        self.shape.group
    }

    /// The form in which [`AffinePanels::matmul_input`] takes activations.
    pub fn input_form(&self) -> InputForm {
        InputForm { group: self.shape.group, step: 4 }
    }

    /// Bytes of the panels, all of which a product reads.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]`
    /// and `y [t, rows.len()]`.
    ///
    /// The only error is that of rounding the activations (see [`Activations`]) and of a few f32
    /// sums per group. Bit-identical on every instruction set, for any cut of the tokens and of the
    /// rows, and for any number of threads, among which the rows are shared.
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

    /// [`AffinePanels::matmul`] for activations that are prepared already: those that feed several
    /// matrices need to be only once.
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
        self.check(input);
        let panels = self.panels();
        with_grids!(self.shape.bits, kernel => {
            panels.matmul(kernel, rows, input, y, accumulate, work);
        });
    }

    /// The same products in the order in which they are made, `[panels, tokens]` of 16 rows each, for those who look at each
    /// product once: on one thread, without a second copy. Rows that fill up the last panel give 0.
    ///
    /// # Panics
    ///
    /// If `input` was made for another input size or form, or `products` is not `[panels, tokens]`.
    pub fn products_by_panel(&self, input: &PanelInput, products: &mut [[f32; ROWS]]) {
        self.check(input);
        let panels = self.rows().div_ceil(ROWS);
        assert_eq!(
            Some(products.len()),
            panels.checked_mul(input.tokens()),
            "panels: the products are not [panels, tokens]"
        );
        products.fill([0.0; ROWS]);
        if products.is_empty() {
            return;
        }
        let (panels, work, tokens) = (self.panels(), &Work::new(Par::Seq), &(0..input.tokens()));
        with_grids!(self.shape.bits, kernel => {
            panels.add(kernel, 0, input, tokens, products, work);
        });
    }

    fn panels(&self) -> Panels<'_> {
        Panels { shape: &self.shape, lines: &self.lines }
    }

    fn check(&self, input: &PanelInput) {
        assert!(
            input.cols() == self.cols() && input.form() == self.input_form(),
            "panels: the input was prepared for another matrix"
        );
    }
}
