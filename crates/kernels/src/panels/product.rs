//! The product of panels with prepared activations, once for all instruction sets.

use std::ops::Range;

use super::ROWS;
use super::input::{PanelInput, TokenTile};
use super::pack::{Shape, Tile};
use crate::Isa;
use crate::simd::wide::{Line, Wide};
use crate::simd::{Ahead, prefetch, stamp, stream, stream_again};

/// How many lines ahead of the reading the next ones are asked for: 12 KiB. Only memory gains by
/// it, so only panels of more than this many bytes do it.
const AHEAD: usize = 192;
const LARGER_THAN_CACHE: usize = 4 << 20;

stamp! {
    /// Adds the products of the panels from `first` on with some tokens to `sums [some panels, tokens]`.
    pub(super) fn product_on(
        shape: &Shape, lines: &[Line], input: &PanelInput, tokens: &Range<usize>, first: usize,
        sums: &mut [[f32; ROWS]],
    ) = product_body
}

#[inline(always)]
fn product_body<S: Wide>(
    s: S,
    shape: &Shape,
    lines: &[Line],
    input: &PanelInput,
    tokens: &Range<usize>,
    first: usize,
    sums: &mut [[f32; ROWS]],
) {
    match (shape.bits, input.planes()) {
        (2, 1) => run::<S, 2, 1>(s, shape, lines, input, tokens, first, sums),
        (2, _) => run::<S, 2, 2>(s, shape, lines, input, tokens, first, sums),
        (3, 1) => run::<S, 3, 1>(s, shape, lines, input, tokens, first, sums),
        (3, _) => run::<S, 3, 2>(s, shape, lines, input, tokens, first, sums),
        (4, 1) => run::<S, 4, 1>(s, shape, lines, input, tokens, first, sums),
        (4, _) => run::<S, 4, 2>(s, shape, lines, input, tokens, first, sums),
        (_, 1) => run::<S, 8, 1>(s, shape, lines, input, tokens, first, sums),
        (_, _) => run::<S, 8, 2>(s, shape, lines, input, tokens, first, sums),
    }
}

/// One panel of one tile, and the activations it meets.
struct Work<'a> {
    shape: &'a Shape,
    tile: &'a Tile,
    lines: &'a [Line],
    input: &'a PanelInput,
    tokens: &'a TokenTile,
    /// How many lines ahead to ask for memory, and for which cache.
    ahead: usize,
    to: Ahead,
}

/// All panels, for codes of `BITS` bits and activations of `P` planes.
#[inline(always)]
fn run<S: Wide, const BITS: usize, const P: usize>(
    s: S,
    shape: &Shape,
    lines: &[Line],
    input: &PanelInput,
    some: &Range<usize>,
    first: usize,
    sums: &mut [[f32; ROWS]],
) {
    let ahead = if size_of_val(lines) > LARGER_THAN_CACHE { AHEAD } else { 0 };
    // A single token reads the lines once; more come back to them.
    let to = if some.len() > 1 { stream_again() } else { stream() };
    for tile in shape.tiles() {
        for (p, sums) in sums.chunks_mut(some.len()).enumerate() {
            let start = tile.start + (first + p) * tile.lines;
            let lines = &lines[start..start + tile.lines];
            for tokens in TokenTile::within(some.clone(), input.tokens()) {
                let sums = &mut sums[tokens.first - some.start..][..tokens.tokens];
                // Later tokens find the panel in the cache.
                let ahead = if tokens.first == some.start { ahead } else { 0 };
                let work = Work { shape, tile: &tile, lines, input, tokens: &tokens, ahead, to };
                // The last number is how many sums run side by side: enough to hide the latency
                // of an instruction.
                match tokens.tokens {
                    1 => panel::<S, BITS, P, 1, 4>(s, work, sums),
                    2 => panel::<S, BITS, P, 2, 2>(s, work, sums),
                    3 if const { matches!(S::ISA, Isa::Avx512) } => {
                        panel::<S, BITS, P, 3, 2>(s, work, sums)
                    }
                    3 => panel::<S, BITS, P, 3, 1>(s, work, sums),
                    _ if const { matches!(S::ISA, Isa::Avx512) } => {
                        panel::<S, BITS, P, 4, 2>(s, work, sums)
                    }
                    _ => panel::<S, BITS, P, 4, 1>(s, work, sums),
                }
            }
        }
    }
}

/// Adds the products of one panel with `T` tokens of `P` planes; `U` sums run side by side.
#[inline(always)]
fn panel<S: Wide, const BITS: usize, const P: usize, const T: usize, const U: usize>(
    s: S,
    work: Work<'_>,
    sums: &mut [[f32; ROWS]],
) {
    let Work { shape, tile, lines, input, tokens, ahead, to } = work;
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

/// Asks for the lines that will be read `ahead` lines later: one choice for all of them.
#[inline(always)]
fn ask(lines: &[Line], ahead: usize, to: Ahead) {
    let all = |to| {
        for line in lines {
            prefetch(std::ptr::from_ref(line).wrapping_add(ahead), to);
        }
    };
    match to {
        Ahead::Near => all(Ahead::Near),
        Ahead::Outer => all(Ahead::Outer),
        Ahead::Once => all(Ahead::Once),
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

/// The codes of four inputs, a byte each, out of the lines of a block (see the layout in `pack`).
#[inline(always)]
fn codes_of_step<S: Wide, const BITS: usize>(s: S, lines: &[S::I; BITS], step: usize) -> S::I {
    match BITS {
        8 => lines[step],
        4 => s.bits(lines[step / 2], step % 2 * 4, 0x0f),
        2 => s.bits(lines[step / 4], step % 4 * 2, 0x03),
        _ => {
            let low = s.bits(lines[step / 4], step % 4 * 2, 0x03);
            // The top bit, moved to where it counts four; its line is the last.
            let top = match step {
                0 => s.shift_left(lines[BITS - 1], 2),
                1 => s.shift_left(lines[BITS - 1], 1),
                _ => s.shift_right(lines[BITS - 1], step - 2),
            };
            s.or(low, s.mask(top, 0x04))
        }
    }
}
