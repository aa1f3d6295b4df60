//! Products with rows that are picked out of a matrix: what is not picked is not read.
//!
//! Stored `[out, in]`, picked rows are the outputs that are wanted; stored `[in, out]`, they are the inputs that are not 0.

use super::product::{TOGETHER, product_on};
use super::stream::{Apart, AtRow, BF16, F16, F32, Stream};
use super::{FloatType, Padded, StoredRows, WORD};
use crate::rows::{by_rows, check_sizes};
use crate::simd::{Stored, stamp};
use crate::work::{Places, Work};

/// Which rows of a matrix are multiplied.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// Those from a first one on.
    From(usize),
    /// These.
    Picked(&'a [usize]),
}

impl Rows<'_> {
    /// The row at a place; behind the last one that was picked, that one.
    #[inline(always)]
    pub(super) fn at(self, place: usize) -> usize {
        match self {
            Self::From(first) => first + place,
            Self::Picked(rows) => rows[place.min(rows.len() - 1)],
        }
    }
}

/// `Y = X W[picked]ᵀ` (or `Y += ...` where `accumulate`) for row-major `x [t, cols]` and `y [t, picked.len()]`: the outputs of
/// the picked rows, in their order, any number of times each. Other rows are not read. Meant for a few tokens.
///
/// An entry of `y` has the bits that [`stored_matmul`](crate::stored_matmul) gives that row.
///
/// # Panics
///
/// If a size does not fit, or a row is not in W.
pub fn picked_matmul(
    w: &StoredRows<'_>,
    picked: &[usize],
    x: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    check_picked(w, picked);
    check_sizes([picked.len(), w.cols], &(0..picked.len()), x, t, y);
    let isa = work.isa();
    Padded::with(x, t, w.cols, work, |x, work| {
        by_rows(0..picked.len(), t, y, accumulate, work, |places, first, out| {
            product_on(isa, w, &x, places, Rows::Picked(&picked[first..]), out);
        });
    });
}

/// `Y = A W[picked]` (or `Y += ...` where `accumulate`) for row-major `a [t, picked.len()]` and `y [t, cols]`: the picked rows
/// times their factors, summed. Other rows are not read. Meant for a few tokens, and for W stored `[in, out]`, where the
/// factors are the inputs that are not 0.
///
/// Every entry of `y` is summed in f32 in the order of `picked`, whatever the number of tokens and threads.
///
/// # Panics
///
/// If a size does not fit, a row is not in W, or W has a support.
pub fn picked_sum(
    w: &StoredRows<'_>,
    picked: &[usize],
    a: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    check_picked(w, picked);
    assert!(w.support.is_none(), "picked_sum: a matrix with a support");
    assert_eq!(Some(a.len()), t.checked_mul(picked.len()), "a is not [t, picked]");
    assert_eq!(Some(y.len()), t.checked_mul(w.cols), "y is not [t, cols]");
    if y.is_empty() {
        return;
    }
    // Threads share the columns; each reads its own part of all rows.
    let width = w.cols.div_ceil(work.par().threads()).next_multiple_of(WORD);
    let mut sums = work.take_lines(w.cols.div_ceil(width) * t * width);
    sums.fill(0.0);
    let isa = work.isa();
    work.for_each(sums.chunks_mut(t * width).enumerate(), |places, (i, sums)| {
        sum_on(isa, w, picked, a, t, i * width, places, sums);
    });
    if !accumulate {
        y.fill(0.0);
    }
    for (token, y) in y.chunks_exact_mut(w.cols).enumerate() {
        for (y, sums) in y.chunks_mut(width).zip(sums.chunks_exact(t * width)) {
            y.iter_mut().zip(&sums[token * width..]).for_each(|(y, sum)| *y += sum);
        }
    }
    work.put_lines(sums);
}

fn check_picked(w: &StoredRows<'_>, picked: &[usize]) {
    w.check();
    let beyond = picked.iter().find(|row| **row >= w.rows);
    assert_eq!(beyond, None, "picked row of {}", w.rows);
}

stamp! {
    /// Adds the picked rows times their factors, from a column on, to `sums [t, some columns]`, whole words of them.
    fn sum_on(
        w: &StoredRows<'_>, picked: &[usize], a: &[f32], t: usize, column: usize, places: &mut Places, sums: &mut [f32],
    ) = sum_body
}

#[inline(always)]
fn sum_body<S: Stored>(
    s: S,
    w: &StoredRows<'_>,
    picked: &[usize],
    a: &[f32],
    t: usize,
    column: usize,
    places: &mut Places,
    sums: &mut [f32],
) {
    match w.format {
        FloatType::F32 => sum::<S, F32>(s, w, picked, a, t, column, places, sums),
        FloatType::F16 => sum::<S, F16>(s, w, picked, a, t, column, places, sums),
        FloatType::Bf16 => sum::<S, BF16>(s, w, picked, a, t, column, places, sums),
    }
}

#[inline(always)]
fn sum<S: Stored, const FORMAT: u8>(
    s: S,
    w: &StoredRows<'_>,
    picked: &[usize],
    a: &[f32],
    t: usize,
    column: usize,
    places: &mut Places,
    sums: &mut [f32],
) {
    let mut place = 0;
    while place < picked.len() {
        let rows = Rows::Picked(&picked[place..]);
        let a = a[place..].chunks(picked.len());
        if picked.len() - place >= TOGETHER {
            add::<S, FORMAT, TOGETHER>(s, w, rows, a, t, column, places, sums);
            place += TOGETHER;
        } else {
            add::<S, FORMAT, 1>(s, w, rows, a, t, column, places, sums);
            place += 1;
        }
    }
}

/// Adds the first `R` of the rows, whose factors come first in each token's.
#[inline(always)]
fn add<'a, S: Stored, const FORMAT: u8, const R: usize>(
    s: S,
    w: &StoredRows<'_>,
    picked: Rows<'_>,
    a: impl Iterator<Item = &'a [f32]>,
    t: usize,
    column: usize,
    places: &mut Places,
    sums: &mut [f32],
) {
    let Places { bytes: copies, gathered, .. } = places;
    gathered.clear();
    a.take(t).for_each(|a| gathered.extend_from_slice(&a[..R]));
    let factors = gathered.as_chunks::<R>().0;
    let width = sums.len() / t;
    let columns = (w.cols - column).min(width);
    assert!(factors.len() == t && width.is_multiple_of(WORD) && sums.len() == t * width);
    let mut rows: [Apart<FORMAT>; R] = std::array::from_fn(|r| {
        let row = Apart::at_row(w, picked.at(r), picked.at(r + R), &mut copies[r]);
        row.within(column, w.cols - columns)
    });
    for word in (0..columns).step_by(WORD) {
        for row in rows {
            Stream::<S>::prefetch(row, Some([columns - word, 0]));
        }
        let mut lane = 0;
        while lane < (columns - word).min(WORD) {
            let mut values = [s.splat(0.0); R];
            for r in 0..R {
                // SAFETY: the column lies in the row, behind which [`BEHIND`](super::stream::BEHIND) numbers can be read.
                values[r] = unsafe { rows[r].load(s, lane, word + lane) };
            }
            let mut at = word + lane;
            for factors in factors {
                // SAFETY: a token's sums are whole words, as asserted.
                let mut sum = unsafe { s.load(sums, at) };
                for r in 0..R {
                    sum = s.mul_add(values[r], s.splat(factors[r]), sum);
                }
                // SAFETY: as above.
                unsafe { s.put(sums, at, sum) };
                at += width;
            }
            lane += S::LANES;
        }
        for row in &mut rows {
            Stream::<S>::advance(row, WORD);
        }
    }
}
