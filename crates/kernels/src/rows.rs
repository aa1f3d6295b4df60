//! Multiplying by an integer grid straight from its packed rows.

use std::ops::Range;

use super::affine::{BUFFER, decode_body};
use super::bitpack::check_bits;
use super::float::dot_body;
use super::packed_len;
use super::simd::{Simd, stamp};
use super::work::{Places, Work};

/// A matrix `[rows, cols]` on an integer grid, in the form it is stored in: weight `(r, j)` is
/// `scales[r, g] * (code[r, j] - zeros[r, g])` with `g = j / group`.
#[derive(Clone, Copy, Debug)]
pub struct AffineRows<'a> {
    /// The rows of codes, each `packed_len(cols, bits)` bytes (see [`super::pack_bits`]).
    pub packed: &'a [u8],
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
    /// Weights along a row that share a scale; the last group of a row may be shorter.
    pub group: usize,
    /// `[rows, cols.div_ceil(group)]`
    pub scales: &'a [f32],
    /// `[rows, cols.div_ceil(group)]`
    pub zeros: &'a [f32],
}

impl AffineRows<'_> {
    /// Groups in a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// # Panics
    ///
    /// If the fields do not fit together.
    pub(super) fn check(&self) {
        assert!(self.group > 0, "affine rows: group is zero");
        check_bits(self.bits);
        let bytes = packed_len(self.cols, self.bits).checked_mul(self.rows);
        assert_eq!(Some(self.packed.len()), bytes, "affine rows: size of the packed codes");
        let grids = self.groups().checked_mul(self.rows);
        assert_eq!(Some(self.scales.len()), grids, "affine rows: number of scales");
        assert_eq!(Some(self.zeros.len()), grids, "affine rows: number of zeros");
    }

    pub(super) fn row(&self, r: usize) -> (&[u8], &[f32], &[f32]) {
        let (bytes, groups) = (packed_len(self.cols, self.bits), self.groups());
        (
            &self.packed[r * bytes..(r + 1) * bytes],
            &self.scales[r * groups..(r + 1) * groups],
            &self.zeros[r * groups..(r + 1) * groups],
        )
    }
}

/// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W, for row-major `x [t, cols]` and
/// `y [t, rows.len()]`, unpacking in registers: no dense row is ever written out. Meant for a few tokens.
///
/// Activations and sums are f32. The rows are shared among the threads that `work` allows; an entry of `y` depends
/// neither on them nor on which other rows are asked for.
///
/// # Panics
///
/// If a size does not fit.
pub fn affine_matmul(
    w: &AffineRows<'_>,
    rows: Range<usize>,
    x: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    check_sizes([w.rows, w.cols], &rows, x, t, y);
    if y.is_empty() || w.cols == 0 {
        if !accumulate {
            y.fill(0.0);
        }
        return;
    }
    // The zero points enter through the sum of the activations of each group.
    let mut sums = work.take(t * w.groups());
    let groups = x.chunks(w.cols).flat_map(|x| x.chunks(w.group));
    sums.iter_mut().zip(groups).for_each(|(sum, x)| *sum = x.iter().sum());
    let mut lines = work.take_lines(x.len());
    lines.copy_from_slice(x);
    let isa = work.isa();
    by_rows(rows, t, y, accumulate, work, |_, first, out| {
        rows_product_on(isa, w, &lines, &sums, t, first, out);
    });
    work.put(sums);
    work.put_lines(lines);
}

/// Panics unless a product of so many tokens with some rows of a matrix has these sizes.
pub(super) fn check_sizes(
    [of, cols]: [usize; 2],
    rows: &Range<usize>,
    x: &[f32],
    t: usize,
    y: &[f32],
) {
    assert!(rows.start <= rows.end && rows.end <= of, "rows {rows:?} of {of}");
    assert_eq!(Some(x.len()), t.checked_mul(cols), "x is not [t, cols]");
    assert_eq!(Some(y.len()), t.checked_mul(rows.len()), "y is not [t, rows]");
}

/// Rows that a thread takes at once.
const ROWS: usize = 16;

/// Runs `block(places of the thread, first row, [some rows, t])` on the rows and puts the results into `y [t, rows]`.
pub(super) fn by_rows(
    rows: Range<usize>,
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
    block: impl Fn(&mut Places, usize, &mut [f32]) + Sync,
) {
    by_rows_of(ROWS, rows, t, y, accumulate, work, block);
}

/// [`by_rows`], so many rows at once.
pub(super) fn by_rows_of(
    height: usize,
    rows: Range<usize>,
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
    block: impl Fn(&mut Places, usize, &mut [f32]) + Sync,
) {
    if y.is_empty() {
        return;
    }
    // By row first, so that threads write to places of their own.
    let mut by_row = work.take(y.len());
    by_row.fill(0.0);
    let blocks = by_row.chunks_mut(height * t).enumerate();
    work.for_each(blocks, |places, (i, out)| block(places, rows.start + i * height, out));
    if !accumulate {
        y.fill(0.0);
    }
    // Some rows of a token at once: those of many tokens lie far apart.
    for (i, products) in by_row.chunks(ROWS * t).enumerate() {
        for token in 0..t {
            let y = &mut y[token * rows.len() + i * ROWS..];
            y.iter_mut().zip(products[token..].iter().step_by(t)).for_each(|(y, p)| *y += p);
        }
    }
    work.put(by_row);
}

stamp! {
    /// The products of the rows from `first` on with all tokens: `out` is `[some rows, t]`.
    fn rows_product_on(
        w: &AffineRows<'_>, x: &[f32], sums: &[f32], t: usize, first: usize, out: &mut [f32],
    ) = rows_body
}

#[inline(always)]
fn rows_body<S: Simd>(
    s: S,
    w: &AffineRows<'_>,
    x: &[f32],
    sums: &[f32],
    t: usize,
    first: usize,
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if S::ISA == crate::Isa::Avx512 && (w.group.is_multiple_of(8) || w.group >= w.cols) {
        // SAFETY: the token `s` proves the features.
        unsafe { x86::rows(w, x, sums, t, first, out) };
        return;
    }
    let _ = sums;
    let mut weights = [0.0f32; BUFFER];
    for (r, out) in out.chunks_mut(t).enumerate() {
        let (packed, scales, zeros) = w.row(first + r);
        for start in (0..w.cols).step_by(BUFFER) {
            let end = (start + BUFFER).min(w.cols);
            let weights = &mut weights[..end - start];
            decode_body(s, packed, w.bits, start, scales, zeros, w.group, weights, false);
            for (token, out) in out.iter_mut().enumerate() {
                *out += dot_body(s, weights, &x[token * w.cols + start..token * w.cols + end]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::AffineRows;
    use crate::bitpack::x86::Unpacker;
    use crate::simd::{Ahead, avx512, prefetch};

    avx512! {
        pub(super) fn rows(
            w: &AffineRows<'_>,
            x: &[f32],
            sums: &[f32],
            t: usize,
            first: usize,
            out: &mut [f32],
        ) {
            let unpacker = Unpacker::new(w.bits);
            let step = (TILE / t.min(8) / w.group).max(1);
            for from in (0..w.groups()).step_by(step) {
                let groups = from..(from + step).min(w.groups());
                for (r, out) in out.chunks_mut(t).enumerate() {
                    let mut token = 0;
                    while token < t {
                        let x = &x[token * w.cols..];
                        let sums = &sums[token * w.groups()..];
                        let out = &mut out[token..];
                        let groups = groups.clone();
                        let row = first + r;
                        // Never a few alone behind eight: unpacking costs as much for one as for all.
                        let together = match t - token {
                            left @ ..=8 => left,
                            left @ ..16 => left.div_ceil(2),
                            _ => 8,
                        };
                        token += match together {
                            1 => tile::<1, 4>(w, unpacker, row, groups, x, sums, out),
                            2 => tile::<2, 2>(w, unpacker, row, groups, x, sums, out),
                            3 => tile::<3, 2>(w, unpacker, row, groups, x, sums, out),
                            4 => tile::<4, 1>(w, unpacker, row, groups, x, sums, out),
                            5 => tile::<5, 1>(w, unpacker, row, groups, x, sums, out),
                            6 => tile::<6, 1>(w, unpacker, row, groups, x, sums, out),
                            7 => tile::<7, 1>(w, unpacker, row, groups, x, sums, out),
                            _ => tile::<8, 1>(w, unpacker, row, groups, x, sums, out),
                        };
                    }
                }
            }
        }
    }

    /// Activations that stay in the second cache while rows pass by.
    const TILE: usize = 65_536;
    /// How many bytes ahead of the reading the next ones are asked for.
    const AHEAD: usize = 4096;

    avx512! {
        /// Adds the products of some groups of one row with `T` tokens; gives `T` back. `U` sums run
        /// side by side: enough to hide the latency of an addition.
        #[inline]
        fn tile<const T: usize, const U: usize>(
            w: &AffineRows<'_>,
            unpacker: Unpacker,
            r: usize,
            groups: Range<usize>,
            x: &[f32],
            sums: &[f32],
            out: &mut [f32],
        ) -> usize {
            let (packed, scales, zeros) = w.row(r);
            let (cols, bits, stride) = (w.cols, w.bits as usize, scales.len());
            assert!(x.len() >= T * cols && sums.len() >= T * stride);
            let mut totals = [_mm512_setzero_ps(); T];
            let mut offsets = [0.0f32; T];
            for g in groups {
                let end = ((g + 1).saturating_mul(w.group)).min(cols);
                let mut inner = [[_mm512_setzero_ps(); T]; U];
                let mut at = g * w.group;
                while at < end {
                    let n = (end - at).min(64);
                    let bytes = (n * bits).div_ceil(8);
                    let from = packed.as_ptr().wrapping_add(at / 8 * bits);
                    prefetch(from.wrapping_add(AHEAD), Ahead::Near);
                    // SAFETY: the mask keeps the read within the row: `at` is a multiple of eight, so
                    // the `n` codes begin at a byte and end within it.
                    let raw = unsafe { _mm512_maskz_loadu_epi8(!0 >> (64 - bytes), from.cast()) };
                    let codes = unpacker.unpack(raw);
                    let quarters = [
                        _mm512_castsi512_si128(codes),
                        _mm512_extracti32x4_epi32::<1>(codes),
                        _mm512_extracti32x4_epi32::<2>(codes),
                        _mm512_extracti32x4_epi32::<3>(codes),
                    ];
                    for (q, quarter) in quarters.into_iter().enumerate() {
                        let keep = (!0u64 >> (64 - n) >> (16 * q)) as u16;
                        let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(quarter));
                        for i in 0..T {
                            // SAFETY: the mask keeps the read within token `i`, which ends at
                            // `(i + 1) * cols` at the latest; a masked address may lie beyond.
                            let x = unsafe {
                                let from = x.as_ptr().wrapping_add(i * cols + at + 16 * q);
                                _mm512_maskz_loadu_ps(keep, from)
                            };
                            inner[q % U][i] = _mm512_fmadd_ps(codes, x, inner[q % U][i]);
                        }
                    }
                    at += n;
                }
                let scale = _mm512_set1_ps(scales[g]);
                for i in 0..T {
                    let mut sum = inner[0][i];
                    for others in &inner[1..] {
                        sum = _mm512_add_ps(sum, others[i]);
                    }
                    totals[i] = _mm512_fmadd_ps(sum, scale, totals[i]);
                    offsets[i] = (scales[g] * zeros[g]).mul_add(sums[i * stride + g], offsets[i]);
                }
            }
            for i in 0..T {
                out[i] += _mm512_reduce_add_ps(totals[i]) - offsets[i];
            }
            T
        }
    }
}
