//! Products straight over the blocks of ggml, as they lie in a file.
//!
//! Whatever the type, 256 weights in a row (a block of a K type, eight of the short ones, two to sixteen of others) are a
//! *unit*: small codes, a scale and a minimum for each 16 of them, the weight being `scale * code - minimum`. What a type
//! is made of is in [`kinds`]; a unit meets activations that are integers too, in groups of 32 with a scale each (see
//! [`input`](self::input)), so that all but a few sums of a unit are exact.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod input;
mod kinds;
mod lanes;
mod product;
mod types;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Panel;
pub use input::BlockActivations;
pub(crate) use lanes::Unit;
pub use types::{BlockRows, BlockType};

use std::ops::Range;

use super::panels::Activations;
use super::rows::check_sizes;
use super::work::Work;

/// Weights of a unit.
const UNIT: usize = 256;
/// Weights that share a scale and a minimum, at least.
const GROUP: usize = 16;
const GROUPS: usize = UNIT / GROUP;

/// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]` and
/// `y [t, rows.len()]`, unpacking blocks in registers: no dense row is ever written out.
///
/// The only error is that of rounding the activations (see [`Activations`]) and of a few f32 sums per unit. The rows are
/// shared among the threads that `work` allows; an entry of `y` depends neither on them nor on which other rows are asked
/// for. More tokens, and other instruction sets, may round sums in another order.
///
/// A scale that is infinite or NaN makes the products of its row NaN or infinite, a NaN or an infinity in `x` those of its
/// token NaN.
///
/// # Panics
///
/// If a size does not fit.
pub fn block_rows_matmul(
    w: &BlockRows<'_>,
    rows: Range<usize>,
    x: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    activations: Activations,
    work: &mut Work,
) {
    w.check();
    check_sizes([w.rows, w.cols], &rows, x, t, y);
    let mut input = work.take_block_activations();
    input.prepare_on(work.isa(), x, t, w.cols, activations);
    block_rows_matmul_input(w, rows, &input, y, accumulate, work);
    work.put_block_activations(input);
}

/// [`block_rows_matmul`] for activations that are prepared already: those that feed several matrices need to be only once,
/// whatever the types of their blocks. It runs on the instruction set that they were prepared for.
///
/// # Panics
///
/// If `input` was made for another input size, or `y` is not `[t, rows.len()]`.
pub fn block_rows_matmul_input(
    w: &BlockRows<'_>,
    rows: Range<usize>,
    input: &BlockActivations,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    assert!(rows.start <= rows.end && rows.end <= w.rows, "rows {rows:?} of {}", w.rows);
    assert_eq!(input.cols(), w.cols, "blocks: the activations were prepared for another matrix");
    let t = input.tokens();
    assert_eq!(Some(y.len()), t.checked_mul(rows.len()), "blocks: y is not [t, rows]");
    if y.is_empty() || w.cols == 0 {
        if !accumulate {
            y.fill(0.0);
        }
        return;
    }
    product::product(w, rows, input, y, accumulate, work);
}
