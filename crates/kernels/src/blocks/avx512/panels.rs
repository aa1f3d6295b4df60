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
/// Units of rows that are unpacked together: those of a few panels stay in the nearest cache while all tokens come by, and
/// the activations of all tokens in the next while the panels do.
const TILE: usize = 2;
/// Panels that a token meets at once: what is read of it then serves them all.
const TOGETHER: usize = 2;
/// Tokens, times planes, that a line of codes meets at once: as many products run side by side as hides their latency.
const TOKENS: usize = 6;

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
            for (p, panels) in panels.chunks(TOGETHER * TILE).enumerate() {
                for token in (0..t).step_by(TOKENS / P) {
                    let together = (TOKENS / P).min(t - token);
                    let (x, first) = (&x[token * units + from..], p * TOGETHER * t + token);
                    let x = Tokens { x, stride: units, units: tile.len() };
                    multiply::<P>(K::BY, panels, x, together, &mut sums[first..], t);
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

/// Activations of some units of some tokens, `stride` units apart.
#[derive(Clone, Copy)]
struct Tokens<'a, const P: usize> {
    x: &'a [Planes<P>],
    stride: usize,
    units: usize,
}

avx512! {
    /// Adds the products of one or two panels with up to six tokens to their sums, which lie `apart` from panel to panel.
    #[inline]
    fn multiply<const P: usize>(
        by: usize,
        panels: &[Panel],
        x: Tokens<'_, P>,
        tokens: usize,
        sums: &mut [[f32; ROWS]],
        apart: usize,
    ) {
        macro_rules! by_sizes {
            ($($t:literal)*) => {
                match (tokens, panels.len() / TILE, by) {
                    $(
                        ($t, 1, 16) => some::<P, $t, 1, 16>(panels, x, sums, apart),
                        ($t, 1, _) => some::<P, $t, 1, 32>(panels, x, sums, apart),
                        ($t, _, 16) => some::<P, $t, 2, 16>(panels, x, sums, apart),
                        ($t, _, _) => some::<P, $t, 2, 32>(panels, x, sums, apart),
                    )*
                    _ => unreachable!("no more tokens go together"),
                }
            };
        }
        by_sizes!(1 2 3 4 5 6);
    }
}

avx512! {
    /// [`multiply`] for `T` tokens, `N` panels and codes of which `BY` share a scale.
    fn some<const P: usize, const T: usize, const N: usize, const BY: usize>(
        panels: &[Panel],
        x: Tokens<'_, P>,
        sums: &mut [[f32; ROWS]],
        apart: usize,
    ) {
        let Tokens { x, stride, units } = x;
        assert!(units <= TILE && panels.len() == N * TILE);
        assert!(x.len() >= (T - 1) * stride + units && sums.len() >= (N - 1) * apart + T);
        let mut totals = [[_mm512_setzero_ps(); T]; N];
        for (n, totals) in totals.iter_mut().enumerate() {
            for (total, sums) in totals.iter_mut().zip(&sums[n * apart..]) {
                // SAFETY: 16 numbers are there.
                *total = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
            }
        }
        for u in 0..units {
            // SAFETY: every token and every panel has that many units.
            let (x, panels) = unsafe { (x.as_ptr().add(u), panels.as_ptr().add(u)) };
            for g in 0..UNIT / BY {
                let mut dots = [[[_mm512_setzero_si512(); T]; N]; P];
                for step in g * (BY / 4)..(g + 1) * (BY / 4) {
                    // SAFETY: a unit has 64 lines of codes, and four levels for each.
                    unsafe {
                        let mut codes = [_mm512_setzero_si512(); N];
                        for (n, codes) in codes.iter_mut().enumerate() {
                            let line = &raw const (*panels.add(n * TILE)).codes;
                            *codes = _mm512_loadu_si512(line.cast::<__m512i>().add(step));
                        }
                        for token in 0..T {
                            for (p, dots) in dots.iter_mut().enumerate() {
                                let levels = &raw const (*x.add(token * stride)).levels;
                                let word = levels.cast::<i32>().add(p * (UNIT / 4) + step);
                                let levels = _mm512_set1_epi32(word.read());
                                for (dots, codes) in dots.iter_mut().zip(codes) {
                                    dots[token] = _mm512_dpbusd_epi32(dots[token], codes, levels);
                                }
                            }
                        }
                    }
                }
                let group = g * (BY / GROUP);
                for n in 0..N {
                    // SAFETY: 16 numbers are there, and that many units of each token.
                    unsafe {
                        let panel = &*panels.add(n * TILE);
                        let scales = _mm512_loadu_ps(panel.scales[group].as_ptr());
                        let minima = _mm512_loadu_ps(panel.minima[group].as_ptr());
                        for token in 0..T {
                            let grids = &(*x.add(token * stride)).grids;
                            let mut dot = dots[0][n][token];
                            for dots in &dots[1..] {
                                dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(dot), dots[n][token]);
                            }
                            let sum = if BY == GROUP { grids.sums[group] } else { grids.pairs[g] };
                            let scale = _mm512_set1_ps(grids.scales[group]);
                            let total = &mut totals[n][token];
                            let scales = _mm512_mul_ps(scales, scale);
                            *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scales, *total);
                            *total = _mm512_fnmadd_ps(minima, _mm512_set1_ps(sum), *total);
                        }
                    }
                }
            }
        }
        for (n, totals) in totals.iter().enumerate() {
            for (total, sums) in totals.iter().zip(&mut sums[n * apart..]) {
                // SAFETY: 16 numbers are there.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *total) };
            }
        }
    }
}
