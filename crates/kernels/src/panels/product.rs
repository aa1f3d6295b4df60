//! The product of panels with prepared activations, once for all instruction sets and kinds of panels.

use std::ops::Range;

use super::ROWS;
use super::input::{PanelInput, TokenTile};
use super::pack::{Shape, Tile};
use crate::Work;
use crate::simd::wide::{Line, Wide};
use crate::simd::{Ahead, prefetch, stamp, stream, stream_again};

/// How many lines ahead of the reading the next ones are asked for: 12 KiB. Only memory gains by
/// it, so only panels of more than this many bytes do it.
const AHEAD: usize = 192;
const LARGER_THAN_CACHE: usize = 4 << 20;

/// Tokens that go through all panels together, at most: the activations of a tile of inputs stay in the second cache.
const TOKENS: usize = 64;

/// What a kind of panels does with one of them.
pub(super) trait Kernel: Copy + Send + Sync {
    /// Adds the products of a panel with `T` tokens of `P` planes.
    fn panel<S: Wide, const P: usize, const T: usize>(
        self,
        s: S,
        panel: Panel<'_>,
        sums: &mut [[f32; ROWS]],
    );
}

/// One panel of one tile, and the activations it meets.
pub(super) struct Panel<'a> {
    pub(super) shape: &'a Shape,
    pub(super) tile: &'a Tile,
    pub(super) number: usize,
    pub(super) lines: &'a [Line],
    pub(super) input: &'a PanelInput,
    pub(super) tokens: &'a TokenTile,
    /// How many lines ahead to ask for memory, and for which cache.
    pub(super) ahead: usize,
    pub(super) to: Ahead,
}

/// All panels of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) shape: &'a Shape,
    pub(super) lines: &'a [Line],
}

impl Panels<'_> {
    /// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) over some rows of W.
    ///
    /// # Panics
    ///
    /// If a size does not fit.
    pub(super) fn matmul(
        self,
        kernel: impl Kernel,
        rows: Range<usize>,
        input: &PanelInput,
        y: &mut [f32],
        accumulate: bool,
        work: &mut Work,
    ) {
        let t = input.tokens();
        assert!(rows.start <= rows.end && rows.end <= self.shape.rows, "panels: rows {rows:?}");
        assert_eq!(Some(y.len()), t.checked_mul(rows.len()), "panels: y is not [t, rows]");
        if !accumulate {
            y.fill(0.0);
        }
        if y.is_empty() {
            return;
        }
        let panels = rows.start / ROWS..rows.end.div_ceil(ROWS);
        // All portions are about as large: a small one would read the matrix for itself. They end where tiles of tokens do,
        // which only the last nine tokens may have narrower than four.
        let portion = t.div_ceil(t.div_ceil(TOKENS)).next_multiple_of(4);
        let mut first = 0;
        while first < t {
            let tokens = if t - first < TOKENS + 9 { first..t } else { first..first + portion };
            first = tokens.end;
            // By panel first, so that threads write to places of their own.
            let mut buffer = work.take(panels.len() * tokens.len() * ROWS);
            buffer.fill(0.0);
            let sums = buffer.as_chunks_mut::<ROWS>().0;
            self.add(kernel, panels.start, input, &tokens, sums, work);
            for (p, sums) in panels.clone().zip(sums.chunks(tokens.len())) {
                let held = rows.start.max(p * ROWS)..rows.end.min((p + 1) * ROWS);
                for (token, sums) in tokens.clone().zip(sums) {
                    let y = &mut y[token * rows.len() + held.start - rows.start..][..held.len()];
                    y.iter_mut().zip(&sums[held.start - p * ROWS..]).for_each(|(y, sum)| *y += sum);
                }
            }
            work.put(buffer);
        }
    }

    /// Adds the products of the panels from `first` on with some tokens to `sums [some panels, tokens]`, which are not empty.
    pub(super) fn add(
        self,
        kernel: impl Kernel,
        first: usize,
        input: &PanelInput,
        tokens: &Range<usize>,
        sums: &mut [[f32; ROWS]],
        work: &Work,
    ) {
        let t = tokens.len();
        // One thread takes all at once, so that it goes through memory from first to last. Four pieces for each of several
        // even out what the threads are given beside.
        let panels = sums.len() / t;
        let piece = match work.par().threads() {
            1 => panels,
            threads => panels.div_ceil(4 * threads),
        };
        work.par().for_each(sums.chunks_mut(piece * t).enumerate(), |(i, sums)| {
            add_on(work.isa(), kernel, self, input, tokens, first + i * piece, sums);
        });
    }
}

stamp! {
    fn add_on<K: Kernel>(
        kernel: K, panels: Panels<'_>, input: &PanelInput, tokens: &Range<usize>, first: usize,
        sums: &mut [[f32; ROWS]],
    ) = add_body
}

#[inline(always)]
fn add_body<S: Wide, K: Kernel>(
    s: S,
    kernel: K,
    panels: Panels<'_>,
    input: &PanelInput,
    tokens: &Range<usize>,
    first: usize,
    sums: &mut [[f32; ROWS]],
) {
    match input.planes() {
        1 => run::<S, K, 1>(s, kernel, panels, input, tokens, first, sums),
        _ => run::<S, K, 2>(s, kernel, panels, input, tokens, first, sums),
    }
}

/// All panels, for activations of `P` planes.
#[inline(always)]
fn run<S: Wide, K: Kernel, const P: usize>(
    s: S,
    kernel: K,
    Panels { shape, lines }: Panels<'_>,
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
            let number = first + p;
            let start = tile.start + number * tile.lines;
            let lines = &lines[start..start + tile.lines];
            for tokens in TokenTile::within(some.clone(), input.tokens()) {
                let sums = &mut sums[tokens.first - some.start..][..tokens.tokens];
                // Later tokens find the panel in the cache.
                let ahead = if tokens.first == some.start { ahead } else { 0 };
                let (tile, tokens) = (&tile, &tokens);
                let panel = Panel { shape, tile, number, lines, input, tokens, ahead, to };
                match tokens.tokens {
                    1 => kernel.panel::<S, P, 1>(s, panel, sums),
                    2 => kernel.panel::<S, P, 2>(s, panel, sums),
                    3 => kernel.panel::<S, P, 3>(s, panel, sums),
                    _ => kernel.panel::<S, P, 4>(s, panel, sums),
                }
            }
        }
    }
}

/// Asks for the lines that will be read `ahead` lines later: one choice for all of them.
#[inline(always)]
pub(super) fn ask(lines: &[Line], ahead: usize, to: Ahead) {
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
