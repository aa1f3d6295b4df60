//! Integer grids repacked for products with few tokens at the speed of memory.
//!
//! A panel holds 16 rows side by side, one row to each 32-bit lane, so that a product needs no sum
//! across lanes; activations are integers, so that one instruction multiplies 64 codes. The memory
//! layout is in [`pack`](self::pack), the arithmetic in [`input`](self::input).

mod input;
mod pack;
mod product;

pub use input::{Activations, PanelInput};
pub(super) use input::{Grid, round_body};

use std::ops::Range;

use super::rows::AffineRows;
use super::work::Work;
use super::{Isa, Par};
use crate::simd::wide::{LANES, Line};
use pack::Shape;

/// Rows in a panel, one a lane.
const ROWS: usize = LANES;

/// Tokens that go through all panels together, at most: the activations of a tile of inputs stay in the second cache.
const TOKENS: usize = 64;

/// A matrix on an integer grid of 2, 3, 4 or 8 bits, repacked in panels of 16 rows.
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

    /// Whether a matrix of `cols` inputs can be packed: 2, 3, 4 or 8 bits, and groups of a
    /// multiple of 32 or one group for the whole row, of at most 65 536 weights either way.
    pub fn supports(bits: u32, cols: usize, group: usize) -> bool {
        let whole_row = group >= cols;
        matches!(bits, 2 | 3 | 4 | 8)
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
        input.prepare_on(work.isa(), x, t, self.cols(), self.group(), activations);
        self.matmul_input(rows, &input, y, accumulate, work);
        work.put_input(input);
    }

    /// [`AffinePanels::matmul`] for activations that are prepared already: those that feed several
    /// matrices need to be only once.
    ///
    /// # Panics
    ///
    /// If `input` was made for another input size or group, or `y` is not `[t, rows.len()]`.
    pub fn matmul_input(
        &self,
        rows: Range<usize>,
        input: &PanelInput,
        y: &mut [f32],
        accumulate: bool,
        work: &mut Work,
    ) {
        let t = input.tokens();
        self.check(input);
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "panels: rows {rows:?}");
        assert_eq!(Some(y.len()), t.checked_mul(rows.len()), "panels: y is not [t, rows]");
        if !accumulate {
            y.fill(0.0);
        }
        if y.is_empty() {
            return;
        }
        let panels = rows.start / ROWS..rows.end.div_ceil(ROWS);
        // All portions are about as large: a small one would read the matrix for itself. They end where tiles of tokens do,
        // which only the last nine tokens may have narrower than four.
        let portion = t.div_ceil(t.div_ceil(TOKENS)).next_multiple_of(4);
        let mut first = 0;
        while first < t {
            let tokens = if t - first < TOKENS + 9 { first..t } else { first..first + portion };
            first = tokens.end;
            // By panel first, so that threads write to places of their own.
            let mut buffer = work.take(panels.len() * tokens.len() * ROWS);
            buffer.fill(0.0);
            let sums = buffer.as_chunks_mut::<ROWS>().0;
            self.add_on(work.isa(), panels.start, input, &tokens, sums, work.par());
            for (p, sums) in panels.clone().zip(sums.chunks(tokens.len())) {
                let held = rows.start.max(p * ROWS)..rows.end.min((p + 1) * ROWS);
                for (token, sums) in tokens.clone().zip(sums) {
                    let y = &mut y[token * rows.len() + held.start - rows.start..][..held.len()];
                    y.iter_mut().zip(&sums[held.start - p * ROWS..]).for_each(|(y, sum)| *y += sum);
                }
            }
            work.put(buffer);
        }
    }

    /// The same products in the order in which they are made, `[panels, tokens]` of 16 rows each, for those who look at each
    /// product once: on one thread, without a second copy. Rows that fill up the last panel give 0.
    ///
    /// # Panics
    ///
    /// If `input` was made for another input size or group, or `products` is not `[panels, tokens]`.
    pub fn products_by_panel(&self, input: &PanelInput, products: &mut [[f32; ROWS]]) {
        self.check(input);
        let panels = self.rows().div_ceil(ROWS);
        assert_eq!(
            Some(products.len()),
            panels.checked_mul(input.tokens()),
            "panels: the products are not [panels, tokens]"
        );
        products.fill([0.0; ROWS]);
        if !products.is_empty() {
            let tokens = 0..input.tokens();
            self.add_on(Isa::detect(), 0, input, &tokens, products, Par::Seq);
        }
    }

    /// Adds the products of the panels from `first` on with some tokens to sums that are neither empty nor of another
    /// size.
    fn add_on(
        &self,
        isa: Isa,
        first: usize,
        input: &PanelInput,
        tokens: &Range<usize>,
        sums: &mut [[f32; ROWS]],
        par: Par,
    ) {
        let t = tokens.len();
        // One thread takes all at once, so that it goes through memory from first to last. Four pieces for each of several
        // even out what the threads are given beside.
        let panels = sums.len() / t;
        let piece = match par.threads() {
            1 => panels,
            threads => panels.div_ceil(4 * threads),
        };
        par.for_each(sums.chunks_mut(piece * t).enumerate(), |(i, sums)| {
            let first = first + i * piece;
            product::product_on(isa, &self.shape, &self.lines, input, tokens, first, sums);
        });
    }

    fn check(&self, input: &PanelInput) {
        assert!(
            input.cols() == self.cols() && input.group() == self.group(),
            "panels: the input was prepared for another matrix"
        );
    }
}
