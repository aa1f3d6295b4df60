//! Inner loops of attention over stored forms: scalar products with keys, weighted sums of values.
//!
//! Every function takes the instruction set as its first argument and runs the portable code where the CPU lacks it.
//! Sizes that do not fit are programmer errors and panic.

mod bitmap;
mod elem;
mod float;
mod int;
mod softmax;
#[cfg(test)]
mod tests;

pub use bitmap::{Bitmaps, SLACK, arrange, bitmap_dots, bitmap_mix, restore};
pub use float::{float_dots, float_mix};
pub use int::{MAX_DIM, Page, Work, by_channel_dots, by_token_dots, by_token_mix};
pub use softmax::{exponentials, softcap, softmax};

use crate::simd::wide::{LANES, Line};
use crate::simd::{Ahead, Wide, prefetch, stamp};

/// Scores of several queries: row `i` is `data[i * stride + first..][..len]`.
#[derive(Debug)]
pub struct Scores<'a> {
    /// All rows.
    pub data: &'a mut [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// The first number of a row that is meant.
    pub first: usize,
    /// How many numbers of a row are meant.
    pub len: usize,
}

impl Scores<'_> {
    #[inline(always)]
    fn row(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.stride + self.first..][..self.len]
    }
}

/// Weights of several queries, laid out as [`Scores`].
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// All rows.
    pub data: &'a [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// The first number of a row that is meant.
    pub first: usize,
    /// How many numbers of a row are meant.
    pub len: usize,
}

impl<'a> Weights<'a> {
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride + self.first..][..self.len]
    }
}

/// Asks for what will be read in a while. It goes to the second cache: a page ahead is too much for the first, whose few
/// miss buffers would wait for memory.
#[inline(always)]
fn ask(at: *const u8) {
    prefetch(at, Ahead::Outer);
}

/// Asks for bytes `at..at + len` of what will be read next, whether they are there or not.
#[inline(always)]
fn ask_all(next: &[u8], at: usize, len: usize) {
    if !next.is_empty() && len > 0 {
        for line in (0..len).step_by(64) {
            ask(next.as_ptr().wrapping_add(at + line));
        }
    }
}
