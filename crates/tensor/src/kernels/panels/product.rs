//! The product of panels with prepared activations, once for all instruction sets.

use super::ROWS;
use super::input::{PanelInput, TokenTile};
use super::lanes::PanelLanes;
use super::pack::{Line, Shape, Tile};
use crate::kernels::simd::stamp;

/// How far ahead of the reading the next lines are asked for. Only memory gains by it, and only
/// from more than this many lines.
const AHEAD: usize = 8192 / 64;
const LARGER_THAN_CACHE: usize = 4 << 20;

stamp! {
    /// Adds the products of the panels from `first` on to `sums [some panels, tokens]`.
    pub(super) fn product_on(
        shape: &Shape, lines: &[Line], input: &PanelInput, first: usize, sums: &mut [[f32; ROWS]],
    ) = product_body
}

#[inline(always)]
fn product_body<S: PanelLanes>(
    s: S,
    shape: &Shape,
    lines: &[Line],
    input: &PanelInput,
    first: usize,
    sums: &mut [[f32; ROWS]],
) {
    macro_rules! by_planes_and_tokens {
        ($bits:literal) => {
            match input.planes() {
                1 => by_tokens!($bits, 1),
                _ => by_tokens!($bits, 2),
            }
        };
    }
    // The third number is how many sums run side by side: enough to hide an instruction's latency.
    macro_rules! by_tokens {
        ($bits:literal, $planes:literal) => {
            run(s, shape, lines, input, first, sums, |work, sums| match sums.len() {
                1 => panel::<S, $bits, $planes, 1, 4>(s, work, sums),
                2 => panel::<S, $bits, $planes, 2, 2>(s, work, sums),
                _ => panel::<S, $bits, $planes, 4, 1>(s, work, sums),
            })
        };
    }
    match shape.bits {
        2 => by_planes_and_tokens!(2),
        3 => by_planes_and_tokens!(3),
        4 => by_planes_and_tokens!(4),
        _ => by_planes_and_tokens!(8),
    }
}

/// One panel of one tile, and the activations it meets.
struct Work<'a> {
    shape: &'a Shape,
    tile: &'a Tile,
    lines: &'a [Line],
    input: &'a PanelInput,
    tokens: &'a TokenTile,
    /// How many lines ahead to ask for memory.
    ahead: usize,
}

#[inline(always)]
fn run<S: PanelLanes>(
    _: S,
    shape: &Shape,
    lines: &[Line],
    input: &PanelInput,
    first: usize,
    sums: &mut [[f32; ROWS]],
    panel: impl Fn(Work<'_>, &mut [[f32; ROWS]]),
) {
    let ahead = if size_of_val(lines) > LARGER_THAN_CACHE { AHEAD } else { 0 };
    for tile in shape.tiles() {
        for (p, sums) in sums.chunks_mut(input.tokens()).enumerate() {
            let start = tile.start + (first + p) * tile.lines;
            let lines = &lines[start..start + tile.lines];
            for tokens in TokenTile::all(input.tokens()) {
                let sums = &mut sums[tokens.first..tokens.first + tokens.tokens];
                // Later tokens find the panel in the cache.
                let ahead = if tokens.first == 0 { ahead } else { 0 };
                panel(Work { shape, tile: &tile, lines, input, tokens: &tokens, ahead }, sums);
            }
        }
    }
}

/// Adds the products of one panel with `T` tokens of `P` planes; `U` sums run side by side.
#[inline(always)]
fn panel<S: PanelLanes, const BITS: usize, const P: usize, const T: usize, const U: usize>(
    s: S,
    work: Work<'_>,
    sums: &mut [[f32; ROWS]],
) {
    let Work { shape, tile, lines, input, tokens, ahead } = work;
    let mut words = input.words(tokens, tile.first * shape.group);
    let mut totals: [S::F; T] = std::array::from_fn(|t| s.floats(&sums[t]));
    let mut rest = lines;
    for g in tile.first..tile.end {
        let (grid, after) = rest.split_at(shape.grid_lines);
        let (codes, after) = after.split_at(shape.blocks(g) * BITS);
        rest = after;
        let (xs, later) = words.split_at(codes.len() / BITS * 8 * T * P);
        words = later;

        let mut dots = [[[s.zero(); P]; T]; U];
        for (lines, xs) in codes.as_chunks::<BITS>().0.iter().zip(xs.chunks_exact(8 * T * P)) {
            for line in lines {
                s.prefetch(std::ptr::from_ref(line).wrapping_add(ahead));
            }
            let lines: [S::I; BITS] = std::array::from_fn(|i| s.line(&lines[i]));
            // Written out: a loop here may stay a loop, with shifts that are not constant.
            macro_rules! steps {
                ($($step:literal)*) => {$(
                    let codes = codes_of_step::<S, BITS>(s, &lines, $step);
                    for t in 0..T {
                        for p in 0..P {
                            let dot = &mut dots[$step % U][t][p];
                            *dot = s.dot::<BITS>(*dot, codes, xs[($step * T + t) * P + p]);
                        }
                    }
                )*};
            }
            steps!(0 1 2 3 4 5 6 7);
        }

        let (scales, zeros) = match grid {
            [line] => s.halves(line),
            lines => (s.line_floats(&lines[0]), s.line_floats(&lines[1])),
        };
        for t in 0..T {
            let plane = |p: usize| {
                let sum = (1..U).fold(dots[0][t][p], |sum, u| s.add_i(sum, dots[u][t][p]));
                s.to_floats(sum)
            };
            let dot = match P {
                1 => plane(0),
                _ => s.fma(plane(0), s.splat_f(256.0), plane(1)),
            };
            let grid = input.grid(tokens.first + t, g);
            // scale * (dot - zero * sum), the sum being that of the integers in `dot`.
            let centred = s.fma(zeros, s.splat_f(-grid.sum), dot);
            totals[t] = s.fma(s.mul(scales, s.splat_f(grid.scale)), centred, totals[t]);
        }
    }
    for t in 0..T {
        s.store(&mut sums[t], totals[t]);
    }
}

/// The codes of four inputs, a byte each, out of the lines of a block (see the layout in `pack`).
#[inline(always)]
fn codes_of_step<S: PanelLanes, const BITS: usize>(
    s: S,
    lines: &[S::I; BITS],
    step: usize,
) -> S::I {
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
