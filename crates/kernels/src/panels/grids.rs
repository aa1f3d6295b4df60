//! Panels of an integer grid.

use super::ROWS;
use super::pack::codes_of_step;
use super::product::{Kernel, Panel, ask};
use crate::Isa;
use crate::simd::wide::Wide;

/// The product with codes of `BITS` bits.
#[derive(Clone, Copy)]
pub(super) struct Grids<const BITS: usize>;

impl<const BITS: usize> Kernel for Grids<BITS> {
    #[inline(always)]
    fn panel<S: Wide, const P: usize, const T: usize>(
        self,
        s: S,
        panel: Panel<'_>,
        sums: &mut [[f32; ROWS]],
    ) {
        // The last number is how many sums run side by side: enough to hide the latency of an
        // instruction.
        if const { T == 1 } {
            add_panel::<S, BITS, P, T, 4>(s, panel, sums);
        } else if const { T == 2 || matches!(S::ISA, Isa::Avx512) } {
            add_panel::<S, BITS, P, T, 2>(s, panel, sums);
        } else {
            add_panel::<S, BITS, P, T, 1>(s, panel, sums);
        }
    }
}

/// Adds the products of one panel with `T` tokens of `P` planes; `U` sums run side by side.
#[inline(always)]
fn add_panel<S: Wide, const BITS: usize, const P: usize, const T: usize, const U: usize>(
    s: S,
    panel: Panel<'_>,
    sums: &mut [[f32; ROWS]],
) {
    let Panel { shape, tile, lines, input, tokens, ahead, to, .. } = panel;
    let mut words = input.words(tokens, tile.first * shape.group);
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
        let (xs, later) = words.split_at(codes.len() / BITS * 8 * T * P);
        words = later;

        let mut dots = [[[s.zero(); P]; T]; U];
        for (lines, xs) in codes.as_chunks::<BITS>().0.iter().zip(xs.chunks_exact(8 * T * P)) {
            ask(lines, ahead, to);
            let mut held = [s.line(&lines[0]); BITS];
            for i in 1..BITS {
                held[i] = s.line(&lines[i]);
            }
            // Written out: a loop here may stay a loop, with shifts that are not constant. But not
            // where a vector is an array: that would be half a megabyte of code.
            macro_rules! steps {
                ($($step:literal)*) => {
                    $(add_step::<S, BITS, P, T, U>(s, &mut dots, &held, xs, $step);)*
                };
            }
            if S::ISA == Isa::Generic {
                (0..8).for_each(|step| add_step_portable(s, &mut dots, &held, xs, step));
            } else {
                steps!(0 1 2 3 4 5 6 7);
            }
        }

        let (scales, zeros) = match grid {
            [line] => s.halves(line),
            lines => (s.line_floats(&lines[0]), s.line_floats(&lines[1])),
        };
        for t in 0..T {
            let mut dot = s.to_floats(side_sum(s, &dots, t, 0));
            if P == 2 {
                dot = s.fma(dot, s.splat(256.0), s.to_floats(side_sum(s, &dots, t, P - 1)));
            }
            let grid = grids[t][g];
            // scale * (dot - zero * sum), the sum being that of the integers in `dot`.
            let centred = s.fma(zeros, s.splat(-grid.sum), dot);
            totals[t] = s.fma(s.mul(scales, s.splat(grid.scale)), centred, totals[t]);
        }
    }
    for t in 0..T {
        s.store(&mut sums[t], totals[t]);
    }
}

/// Adds the products of one step of a block.
#[inline(always)]
fn add_step<S: Wide, const BITS: usize, const P: usize, const T: usize, const U: usize>(
    s: S,
    dots: &mut [[[S::I; P]; T]; U],
    lines: &[S::I; BITS],
    xs: &[[i8; 4]],
    step: usize,
) {
    let codes = codes_of_step::<S, BITS>(s, lines, step);
    for t in 0..T {
        for p in 0..P {
            let dot = &mut dots[step % U][t][p];
            *dot = s.dot::<BITS>(*dot, codes, xs[(step * T + t) * P + p]);
        }
    }
}

/// [`add_step`] as a function of its own.
#[inline(never)]
fn add_step_portable<S: Wide, const BITS: usize, const P: usize, const T: usize, const U: usize>(
    s: S,
    dots: &mut [[[S::I; P]; T]; U],
    lines: &[S::I; BITS],
    xs: &[[i8; 4]],
    step: usize,
) {
    add_step(s, dots, lines, xs, step);
}

/// The sum of those that ran side by side.
#[inline(always)]
fn side_sum<S: Wide, const P: usize, const T: usize, const U: usize>(
    s: S,
    dots: &[[[S::I; P]; T]; U],
    t: usize,
    p: usize,
) -> S::I {
    let mut sum = dots[0][t][p];
    for others in &dots[1..] {
        sum = s.add_i(sum, others[t][p]);
    }
    sum
}
