//! Many tokens: 16 rows side by side, one to a lane, so that no sum across lanes is needed and one line of codes meets
//! several tokens.

use std::arch::x86_64::*;

use super::super::input::Planes;
use super::super::kinds::Kind;
use super::super::lanes::Unit;
use super::super::product::{LONGEST, unit_bytes};
use super::super::types::BlockRows;
use super::super::{GROUP, GROUPS, UNIT};
use super::unpack;
use crate::simd::avx512;
use crate::work::Places;

/// Rows of a panel, one a lane.
const ROWS: usize = 16;
/// Units of rows that are unpacked together: a panel of them stays in the nearest cache, and those of all rows in the next.
const TILE: usize = 4;
/// Sums that a line of codes meets: one for each token and plane.
const SUMS: usize = 8;

/// A unit of 16 rows.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Panel {
    /// Four codes of each row, then the next four.
    codes: [[[u8; 4]; ROWS]; UNIT / 4],
    scales: [[f32; ROWS]; GROUPS],
    minima: [[f32; ROWS]; GROUPS],
}

impl Panel {
    const ZERO: Self = Self {
        codes: [[[0; 4]; ROWS]; UNIT / 4],
        scales: [[0.0; ROWS]; GROUPS],
        minima: [[0.0; ROWS]; GROUPS],
    };
}

avx512! {
    /// Adds the products of the rows from `first` on with `t` tokens to `out [some rows, t]`.
    pub(super) fn many_tokens<K: Kind, const P: usize>(
        w: &BlockRows<'_>,
        x: &[Planes<P>],
        t: usize,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        let (units, rows) = (w.cols.div_ceil(UNIT), out.len() / t);
        let Places { panels, units: scratch, floats: sums, .. } = places;
        panels.resize(rows.div_ceil(ROWS) * TILE, Panel::ZERO);
        scratch.resize(ROWS, Unit::ZERO);
        sums.clear();
        // `[panels, tokens]` of 16 rows.
        sums.resize(rows.div_ceil(ROWS) * t * ROWS, 0.0);
        let sums = sums.as_chunks_mut::<ROWS>().0;
        for from in (0..units).step_by(TILE) {
            let tile = from..units.min(from + TILE);
            for (p, panels) in panels.chunks_exact_mut(TILE).enumerate() {
                let here = first + p * ROWS..first + rows.min((p + 1) * ROWS);
                for (unit, panel) in tile.clone().zip(panels) {
                    unpack_panel::<K>(w, here.clone(), unit, scratch, panel);
                }
            }
            for token in (0..t).step_by(SUMS / P) {
                let together = (SUMS / P).min(t - token);
                for (p, panels) in panels.chunks_exact(TILE).enumerate() {
                    let x = &x[token * units + from..];
                    let sums = &mut sums[p * t + token..][..together];
                    multiply::<P>(K::BY, &panels[..tile.len()], x, units, sums);
                }
            }
        }
        for (r, out) in out.chunks_exact_mut(t).enumerate() {
            for (out, sums) in out.iter_mut().zip(&sums[r / ROWS * t..]) {
                *out += sums[r % ROWS];
            }
        }
    }
}

avx512! {
    /// Unpacks a unit of up to 16 rows; what other rows would have counts for nothing.
    #[inline]
    fn unpack_panel<K: Kind>(
        w: &BlockRows<'_>,
        rows: std::ops::Range<usize>,
        unit: usize,
        scratch: &mut [Unit],
        panel: &mut Panel,
    ) {
        let mut buffer = [0; LONGEST];
        let held = rows.len();
        for (r, to) in rows.zip(scratch.iter_mut()) {
            // SAFETY: this function has the features; a unit's bytes are there.
            unsafe { unpack::<K>(unit_bytes(w.row(r), unit, K::BYTES, &mut buffer), to) };
        }
        scratch[held..].fill(Unit::ZERO);
        // SAFETY: this function has the features; reads and writes lie within 256 codes and 16 scales.
        unsafe {
            let mut lines = [_mm512_setzero_si512(); ROWS];
            for quarter in 0..4 {
                for (line, unit) in lines.iter_mut().zip(scratch.iter()) {
                    *line = _mm512_loadu_si512(unit.codes.as_ptr().add(64 * quarter).cast());
                }
                let to = &mut panel.codes[16 * quarter..16 * (quarter + 1)];
                for (to, line) in to.iter_mut().zip(transposed(&lines)) {
                    _mm512_storeu_si512(to.as_mut_ptr().cast(), line);
                }
            }
            for (line, unit) in lines.iter_mut().zip(scratch.iter()) {
                *line = _mm512_loadu_si512(unit.scales.as_ptr().cast());
            }
            for (to, line) in panel.scales.iter_mut().zip(transposed(&lines)) {
                _mm512_storeu_si512(to.as_mut_ptr().cast(), line);
            }
            for (line, unit) in lines.iter_mut().zip(scratch.iter()) {
                *line = _mm512_loadu_si512(unit.minima.as_ptr().cast());
            }
            for (to, line) in panel.minima.iter_mut().zip(transposed(&lines)) {
                _mm512_storeu_si512(to.as_mut_ptr().cast(), line);
            }
        }
    }
}

avx512! {
    /// 16 times 16 lanes, rows for columns.
    #[inline]
    fn transposed(rows: &[__m512i; ROWS]) -> [__m512i; ROWS] {
        let zero = _mm512_setzero_si512();
        let (mut pairs, mut fours, mut halves) = ([zero; ROWS], [zero; ROWS], [zero; ROWS]);
        // In 128 bits: lanes of two rows, then of four.
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        for i in 0..4 {
            for j in 0..2 {
                let (a, b) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
                fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(a, b);
                fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a, b);
            }
        }
        // `fours[4 * i + c]`: of the rows from 4 i on, the columns c, 4 + c, 8 + c, 12 + c.
        for c in 0..4 {
            for i in 0..2 {
                let (a, b) = (fours[8 * i + c], fours[8 * i + 4 + c]);
                halves[4 * c + 2 * i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
                halves[4 * c + 2 * i + 1] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
            }
        }
        let mut columns = [zero; ROWS];
        for c in 0..4 {
            // Columns c and 8 + c of eight rows, then 4 + c and 12 + c.
            let [a, b] = [halves[4 * c], halves[4 * c + 2]];
            columns[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
            columns[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
            let [a, b] = [halves[4 * c + 1], halves[4 * c + 3]];
            columns[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
            columns[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        }
        columns
    }
}

avx512! {
    /// Adds the products of a panel with up to eight tokens, whose units lie `stride` apart, to their sums.
    #[inline]
    fn multiply<const P: usize>(
        by: usize,
        panels: &[Panel],
        x: &[Planes<P>],
        stride: usize,
        sums: &mut [[f32; ROWS]],
    ) {
        macro_rules! by_tokens {
            ($($t:literal)*) => {
                match (sums.len(), by) {
                    $(
                        ($t, 16) => tokens::<P, $t, 16>(panels, x, stride, sums),
                        ($t, _) => tokens::<P, $t, 32>(panels, x, stride, sums),
                    )*
                    _ => unreachable!("tokens go by eight"),
                }
            };
        }
        by_tokens!(1 2 3 4 5 6 7 8);
    }
}

avx512! {
    /// [`multiply`] for `T` tokens and codes of which `BY` share a scale.
    fn tokens<const P: usize, const T: usize, const BY: usize>(
        panels: &[Panel],
        x: &[Planes<P>],
        stride: usize,
        sums: &mut [[f32; ROWS]],
    ) {
        assert!(sums.len() == T && x.len() >= (T - 1) * stride + panels.len());
        let mut totals = [_mm512_setzero_ps(); T];
        for (total, sums) in totals.iter_mut().zip(sums.iter()) {
            // SAFETY: 16 numbers are there.
            *total = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
        }
        for (u, panel) in panels.iter().enumerate() {
            // SAFETY: every token has that many units.
            let x = unsafe { x.as_ptr().add(u) };
            let groups = panel.codes.as_chunks::<{ GROUP / 4 }>().0;
            for g in 0..UNIT / BY {
                let mut dots = [[_mm512_setzero_si512(); T]; P];
                for (i, lines) in groups[g * (BY / GROUP)..][..BY / GROUP].iter().enumerate() {
                    for (j, line) in lines.iter().enumerate() {
                        let at = g * BY + i * GROUP + 4 * j;
                        // SAFETY: a line is 64 bytes; `at + 4` levels at least are there of each token.
                        unsafe {
                            let codes = _mm512_loadu_si512(line.as_ptr().cast());
                            for token in 0..T {
                                for (p, dots) in dots.iter_mut().enumerate() {
                                    let levels = &(&(*x.add(token * stride)).levels)[p];
                                    let word = levels.as_ptr().add(at).cast::<i32>();
                                    let levels = _mm512_set1_epi32(word.read_unaligned());
                                    dots[token] = _mm512_dpbusd_epi32(dots[token], codes, levels);
                                }
                            }
                        }
                    }
                }
                let group = g * (BY / GROUP);
                // SAFETY: 16 numbers are there, and that many units of each token.
                unsafe {
                    let scales = _mm512_loadu_ps(panel.scales[group].as_ptr());
                    let minima = _mm512_loadu_ps(panel.minima[group].as_ptr());
                    for token in 0..T {
                        let grids = &(*x.add(token * stride)).grids;
                        let mut dot = dots[0][token];
                        for dots in &dots[1..] {
                            dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(dot), dots[token]);
                        }
                        let sum = if BY == GROUP { grids.sums[group] } else { grids.pairs[g] };
                        let scales = _mm512_mul_ps(scales, _mm512_set1_ps(grids.scales[group]));
                        let total = &mut totals[token];
                        *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scales, *total);
                        *total = _mm512_fnmadd_ps(minima, _mm512_set1_ps(sum), *total);
                    }
                }
            }
        }
        for (total, sums) in totals.iter().zip(sums) {
            // SAFETY: 16 numbers are there.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *total) };
        }
    }
}
