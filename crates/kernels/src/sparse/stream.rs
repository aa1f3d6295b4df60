//! Where the numbers of a row come from.

use super::StoredRows;
use crate::FloatType;
use crate::simd::Stored;
use crate::simd::{Ahead, prefetch};

/// The numbers of one row from some place on.
pub(super) trait Stream<S: Stored>: Copy {
    /// `LANES` numbers from `at` on.
    ///
    /// # Safety
    ///
    /// Not more than `at` numbers of the row are left, and [`BEHIND`] more can be read. `col` is a column.
    unsafe fn load(self, s: S, at: usize, col: usize) -> S::F32;
    /// Half as many; the others are 0.
    ///
    /// # Safety
    ///
    /// As [`Stream::load`].
    unsafe fn load_half(self, s: S, at: usize, col: usize) -> S::F32;
    /// The place `by` numbers on.
    fn advance(&mut self, by: usize);
    /// Asks for the memory of a word of columns some way ahead. Where all entries are stored, `left` is how many numbers
    /// are left in the row: behind them comes the row that is read next.
    fn prefetch(self, left: Option<usize>);
}

/// So many numbers behind the last one of a row may be read (and are not used): the widest vector.
pub(super) const BEHIND: usize = 16;

/// How many bytes ahead of the reading the next ones are asked for: first into the second cache, across the end of a
/// page, where the hardware stops foreseeing; then into the first.
const AHEAD: [usize; 2] = [4096, 512];

pub(super) const F32: u8 = FloatType::F32 as u8;
pub(super) const F16: u8 = FloatType::F16 as u8;
pub(super) const BF16: u8 = FloatType::Bf16 as u8;

/// Stored numbers, at their address.
#[derive(Clone, Copy)]
pub(super) struct Plain<const FORMAT: u8> {
    at: *const u8,
    /// Bytes from the end of the row to the beginning of the one that is read next, before it or behind it.
    between: usize,
}

impl<const FORMAT: u8> Plain<FORMAT> {
    const SIZE: usize = if FORMAT == F32 { 4 } else { 2 };

    /// Some columns of a row, from a first one on, where so many of a row are left out.
    pub(super) fn within(self, first: usize, left_out: usize) -> Self {
        let at = self.at.wrapping_add(first * Self::SIZE);
        Self { at, between: self.between.wrapping_add(left_out * Self::SIZE) }
    }
}

impl<S: Stored, const FORMAT: u8> Stream<S> for Plain<FORMAT> {
    #[inline(always)]
    unsafe fn load(self, s: S, at: usize, _: usize) -> S::F32 {
        // SAFETY: the row and [`BEHIND`] numbers behind it can be read.
        unsafe {
            let from = self.at.add(at * Self::SIZE);
            match FORMAT {
                F32 => s.f32s(from),
                F16 => s.f16s(from),
                _ => s.bf16s(from),
            }
        }
    }
    #[inline(always)]
    unsafe fn load_half(self, s: S, at: usize, _: usize) -> S::F32 {
        // SAFETY: as above.
        unsafe {
            let from = self.at.add(at * Self::SIZE);
            match FORMAT {
                F32 => s.half_f32s(from),
                F16 => s.half_f16s(from),
                _ => s.half_bf16s(from),
            }
        }
    }
    #[inline(always)]
    fn advance(&mut self, by: usize) {
        self.at = self.at.wrapping_add(by * Self::SIZE);
    }
    #[inline(always)]
    fn prefetch(self, left: Option<usize>) {
        match left {
            Some(left) => {
                for (ahead, to) in [(AHEAD[0], Ahead::Outer), (AHEAD[1], Ahead::Near)] {
                    let ends = left * Self::SIZE <= ahead;
                    let ahead = if ends { self.between.wrapping_add(ahead) } else { ahead };
                    for line in 0..Self::SIZE {
                        let at = self.at.wrapping_add(ahead.wrapping_add(64 * line));
                        prefetch(at, to);
                    }
                }
            }
            // Of a sparse row about half is taken to be stored.
            None => {
                for line in 0..Self::SIZE / 2 {
                    prefetch(self.at.wrapping_add(AHEAD[0] + 64 * line), Ahead::Outer);
                    prefetch(self.at.wrapping_add(AHEAD[1] + 64 * line), Ahead::Near);
                }
            }
        }
    }
}

impl<'a> StoredRows<'a> {
    /// A row, read in place, or in a `copy` where [`BEHIND`] numbers more would not lie in the matrix. Where all entries
    /// are stored, it asks for the row `next` while it ends.
    pub(super) fn stream<const FORMAT: u8>(
        &self,
        row: usize,
        next: usize,
        copy: &mut Vec<u8>,
    ) -> Plain<FORMAT> {
        let size = self.format.size();
        let (start, end) = (self.start(row) * size, self.start(row + 1) * size);
        let between = next.wrapping_sub(row + 1).wrapping_mul(self.cols * size);
        if self.values.len() - end >= BEHIND * size {
            return Plain { at: self.values[start..].as_ptr(), between };
        }
        copy.clear();
        copy.extend_from_slice(&self.values[start..end]);
        copy.resize(end - start + BEHIND * size, 0);
        Plain { at: copy.as_ptr(), between }
    }

    /// The mask bits of a row.
    pub(super) fn bits(&self, row: usize) -> &'a [u8] {
        self.support.map_or(&[], |support| support.row(row))
    }
}
