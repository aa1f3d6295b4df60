//! Levels looked up, times activations.

use super::super::ROWS;
use super::super::pack::codes_of_step;
use super::super::product::{Kernel, Panel, ask};
use super::pack::{QUARTERS, Tables, ZERO};
use crate::Isa;
use crate::simd::Ahead;
use crate::simd::wide::{Line, Wide};

/// The product with codes of `BITS` bits.
#[derive(Clone, Copy)]
pub(super) struct Lookups<'a, const BITS: usize> {
    pub(super) tables: &'a Tables,
}

impl<const BITS: usize> Kernel for Lookups<'_, BITS> {
    #[inline(always)]
    fn panel<S: Wide, const P: usize, const T: usize>(
        self,
        s: S,
        panel: Panel<'_>,
        sums: &mut [[f32; ROWS]],
    ) {
        // The sums of all rows of one token fit the registers of AVX-512 only, and those of more of none.
        if const { T == 1 && matches!(S::ISA, Isa::Avx512) } {
            add_panel::<S, BITS, P, T, QUARTERS>(s, self.tables, panel, sums);
        } else {
            add_panel::<S, BITS, P, T, 1>(s, self.tables, panel, sums);
        }
    }
}

/// Sums of four of the rows: by token, by plane of the levels, by plane of the activations.
type Dots<I, const P: usize, const T: usize> = [[[I; P]; 2]; T];

/// Adds the products of one panel with `T` tokens of `P` planes, of `Q` quarters of the rows at once.
#[inline(always)]
fn add_panel<S: Wide, const BITS: usize, const P: usize, const T: usize, const Q: usize>(
    s: S,
    tables: &Tables,
    panel: Panel<'_>,
    sums: &mut [[f32; ROWS]],
) {
    let Panel { shape, tile, number, lines, input, tokens, ahead, to } = panel;
    let mut words = input.words(tokens, tile.first * shape.group).as_chunks::<4>().0;
    // Loops, not closures: these are inlined only where the optimiser sees the whole program at once.
    let mut totals = [s.load(&sums[0]); T];
    let mut grids = [input.grids(tokens.first); T];
    for t in 1..T {
        totals[t] = s.load(&sums[t]);
        grids[t] = input.grids(tokens.first + t);
    }
    let mut rest = lines;
    for g in tile.first..tile.end {
        let (grid, after) = rest.split_at(shape.grid_lines);
        let (codes, after) = after.split_at(shape.blocks(g) * BITS);
        rest = after;
        let codes = codes.as_chunks::<BITS>().0;
        let (xs, later) = words.split_at(codes.len() * 2 * T * P);
        words = later;

        let mut dots: [Dots<S::I, P, T>; QUARTERS] = [[[[s.zero(); P]; 2]; T]; QUARTERS];
        let mut planes = [tables.of(s, number, grid, 0); QUARTERS];
        for q in 1..QUARTERS {
            planes[q] = tables.of(s, number, grid, q);
        }
        macro_rules! add {
            ($($first:literal)*) => {
                $(add_rows::<S, BITS, P, T, Q, $first>(s, &planes, codes, xs, (ahead, to), &mut dots);)*
            };
        }
        if const { Q == QUARTERS } {
            add!(0);
        } else {
            add!(0 1 2 3);
        }

        let scales = s.line_floats(&grid[0]);
        for t in 0..T {
            let dot = total::<S, P, T>(s, &dots, t);
            let grid = grids[t][g];
            // scale * (dot - zero * sum), the sum being that of the integers in `dot`.
            let centred = s.add(dot, s.splat(-ZERO * grid.sum));
            totals[t] = s.fma(s.mul(scales, s.splat(grid.scale)), centred, totals[t]);
        }
    }
    for t in 0..T {
        s.store(&mut sums[t], totals[t]);
    }
}

/// Adds the products of the rows `4 i + q` for `Q` numbers q from `FIRST` on.
#[inline(always)]
fn add_rows<
    S: Wide,
    const BITS: usize,
    const P: usize,
    const T: usize,
    const Q: usize,
    const FIRST: usize,
>(
    s: S,
    planes: &[[S::I; 2]; QUARTERS],
    codes: &[[Line; BITS]],
    xs: &[[[i8; 4]; 4]],
    (ahead, to): (usize, Ahead),
    dots: &mut [Dots<S::I, P, T>; QUARTERS],
) {
    let mut sums: [Dots<S::I, P, T>; Q] = [[[[s.zero(); P]; 2]; T]; Q];
    for (lines, xs) in codes.iter().zip(xs.chunks_exact(2 * T * P)) {
        if FIRST == 0 {
            ask(lines, ahead, to);
        }
        let mut held = [s.line(&lines[0]); BITS];
        for i in 1..BITS {
            held[i] = s.line(&lines[i]);
        }
        // Written out, as for grids.
        macro_rules! steps {
            ($($half:literal $q:literal),*) => {
                $(if $q < Q {
                    let (planes, step) = (planes[FIRST + $q], 2 * (FIRST + $q) + $half);
                    add_step::<S, BITS, P, T>(s, planes, &held, xs, step, &mut sums[$q % Q]);
                })*
            };
        }
        if S::ISA == Isa::Generic {
            for step in 0..2 * Q {
                let planes = planes[FIRST + step / 2];
                let (step, sums) = (2 * FIRST + step, &mut sums[step / 2]);
                add_step_portable::<S, BITS, P, T>(s, planes, &held, xs, step, sums);
            }
        } else {
            steps!(0 0, 0 1, 0 2, 0 3, 1 0, 1 1, 1 2, 1 3);
        }
    }
    dots[FIRST..FIRST + Q].copy_from_slice(&sums);
}

/// Adds the products of one step of a block.
#[inline(always)]
fn add_step<S: Wide, const BITS: usize, const P: usize, const T: usize>(
    s: S,
    planes: [S::I; 2],
    lines: &[S::I; BITS],
    xs: &[[[i8; 4]; 4]],
    step: usize,
    sums: &mut Dots<S::I, P, T>,
) {
    let codes = codes_of_step::<S, BITS>(s, lines, step);
    let levels = [s.lookup(planes[0], codes), s.lookup(planes[1], codes)];
    for t in 0..T {
        for p in 0..P {
            let x = s.quarter(&xs[(step % 2 * T + t) * P + p]);
            for w in 0..2 {
                sums[t][w][p] = s.dots::<8>(sums[t][w][p], levels[w], x);
            }
        }
    }
}

/// [`add_step`] as a function of its own.
#[inline(never)]
fn add_step_portable<S: Wide, const BITS: usize, const P: usize, const T: usize>(
    s: S,
    planes: [S::I; 2],
    lines: &[S::I; BITS],
    xs: &[[[i8; 4]; 4]],
    step: usize,
    sums: &mut Dots<S::I, P, T>,
) {
    add_step(s, planes, lines, xs, step, sums);
}

/// The sums of all planes as floats, a row in each lane.
#[inline(always)]
fn total<S: Wide, const P: usize, const T: usize>(
    s: S,
    dots: &[Dots<S::I, P, T>; QUARTERS],
    t: usize,
) -> S::F {
    let mut sums = [[[s.zero(); QUARTERS]; P]; 2];
    for q in 0..QUARTERS {
        for w in 0..2 {
            for p in 0..P {
                sums[w][p][q] = dots[q][t][w][p];
            }
        }
    }
    let [high, low] = sums;
    if P == 1 {
        let low = s.to_floats(s.sum_quarters(low[0]));
        return s.fma(s.to_floats(s.sum_quarters(high[0])), s.splat(256.0), low);
    }
    let mut middle = high[P - 1];
    for q in 0..QUARTERS {
        middle[q] = s.add_i(middle[q], low[0][q]);
    }
    let low = s.to_floats(s.sum_quarters(low[P - 1]));
    let low = s.fma(s.to_floats(s.sum_quarters(middle)), s.splat(256.0), low);
    s.fma(s.to_floats(s.sum_quarters(high[0])), s.splat(65_536.0), low)
}
