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
    /// Asks for the memory of a word of columns some way ahead. Where all entries are stored, `dense` is how many
    /// numbers are left in the row, and how many lie between its end and the row that is read next.
    fn prefetch(self, dense: Option<[usize; 2]>);
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
pub(super) struct Plain<const FORMAT: u8>(*const u8);

impl<const FORMAT: u8> Plain<FORMAT> {
    const SIZE: usize = if FORMAT == F32 { 4 } else { 2 };
}

impl<S: Stored, const FORMAT: u8> Stream<S> for Plain<FORMAT> {
    #[inline(always)]
    unsafe fn load(self, s: S, at: usize, _: usize) -> S::F32 {
        // SAFETY: the row and [`BEHIND`] numbers behind it can be read.
        unsafe {
            let from = self.0.add(at * Self::SIZE);
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
            let from = self.0.add(at * Self::SIZE);
            match FORMAT {
                F32 => s.half_f32s(from),
                F16 => s.half_f16s(from),
                _ => s.half_bf16s(from),
            }
        }
    }
    #[inline(always)]
    fn advance(&mut self, by: usize) {
        self.0 = self.0.wrapping_add(by * Self::SIZE);
    }
    #[inline(always)]
    fn prefetch(self, dense: Option<[usize; 2]>) {
        match dense {
            Some([left, between]) => {
                for (ahead, to) in [(AHEAD[0], Ahead::Outer), (AHEAD[1], Ahead::Near)] {
                    let ends = left * Self::SIZE <= ahead;
                    let jump = if ends { between.wrapping_mul(Self::SIZE) } else { 0 };
                    for line in 0..Self::SIZE {
                        let at = self.0.wrapping_add(jump.wrapping_add(ahead + 64 * line));
                        prefetch(at, to);
                    }
                }
            }
            // Of a sparse row about half is taken to be stored.
            None => {
                for line in 0..Self::SIZE / 2 {
                    prefetch(self.0.wrapping_add(AHEAD[0] + 64 * line), Ahead::Outer);
                    prefetch(self.0.wrapping_add(AHEAD[1] + 64 * line), Ahead::Near);
                }
            }
        }
    }
}

/// Stored numbers of rows that do not follow one another: a row that ends asks for the one that is read next, wherever it
/// lies. (Where all rows do follow, what lies between is one number for all, and reading is some percent faster for it.)
#[derive(Clone, Copy)]
pub(super) struct Apart<const FORMAT: u8> {
    plain: Plain<FORMAT>,
    /// Numbers from the end of the row to the beginning of that one, before it or behind it.
    between: usize,
}

impl<const FORMAT: u8> Apart<FORMAT> {
    /// Some columns of the row, from a first one on, where so many of a row are left out.
    pub(super) fn within(self, first: usize, left_out: usize) -> Self {
        let at = self.plain.0.wrapping_add(first * Plain::<FORMAT>::SIZE);
        Self { plain: Plain(at), between: self.between.wrapping_add(left_out) }
    }
}

impl<S: Stored, const FORMAT: u8> Stream<S> for Apart<FORMAT> {
    #[inline(always)]
    unsafe fn load(self, s: S, at: usize, col: usize) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { self.plain.load(s, at, col) }
    }
    #[inline(always)]
    unsafe fn load_half(self, s: S, at: usize, col: usize) -> S::F32 {
        // SAFETY: the caller's.
        unsafe { self.plain.load_half(s, at, col) }
    }
    #[inline(always)]
    fn advance(&mut self, by: usize) {
        Stream::<S>::advance(&mut self.plain, by);
    }
    #[inline(always)]
    fn prefetch(self, dense: Option<[usize; 2]>) {
        Stream::<S>::prefetch(self.plain, dense.map(|[left, _]| [left, self.between]));
    }
}

/// A stream that begins at a row.
pub(super) trait AtRow {
    /// The row `row` of a matrix, before the row `next` of it; `copy` is as in [`StoredRows::stream`].
    fn at_row(w: &StoredRows<'_>, row: usize, next: usize, copy: &mut Vec<u8>) -> Self;
}

impl<const FORMAT: u8> AtRow for Plain<FORMAT> {
    #[inline(always)]
    fn at_row(w: &StoredRows<'_>, row: usize, _: usize, copy: &mut Vec<u8>) -> Self {
        w.stream(row, copy)
    }
}

impl<const FORMAT: u8> AtRow for Apart<FORMAT> {
    #[inline(always)]
    fn at_row(w: &StoredRows<'_>, row: usize, next: usize, copy: &mut Vec<u8>) -> Self {
        let between = next.wrapping_sub(row + 1).wrapping_mul(w.cols);
        Self { plain: w.stream(row, copy), between }
    }
}

impl<'a> StoredRows<'a> {
    /// A row, read in place, or in a `copy` where [`BEHIND`] numbers more would not lie in the matrix.
    pub(super) fn stream<const FORMAT: u8>(&self, row: usize, copy: &mut Vec<u8>) -> Plain<FORMAT> {
        let size = self.format.size();
        let (start, end) = (self.start(row) * size, self.start(row + 1) * size);
        if self.values.len() - end >= BEHIND * size {
            return Plain(self.values[start..].as_ptr());
        }
        copy.clear();
        copy.extend_from_slice(&self.values[start..end]);
        copy.resize(end - start + BEHIND * size, 0);
        Plain(copy.as_ptr())
    }

    /// The mask bits of a row.
    pub(super) fn bits(&self, row: usize) -> &'a [u8] {
        self.support.map_or(&[], |support| support.row(row))
    }
}
