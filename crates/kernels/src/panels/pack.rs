//! The memory layout of panels.
//!
//! The unit is a cache line of 64 bytes, four for each of the 16 rows. The codes of 32 successive
//! inputs take as many lines as a code has bits; they come in eight steps of four inputs, input
//! `4 * step + i` in byte `i` of each row's four:
//! - 8 bits: line `step`.
//! - 4 bits: line `step / 2`, the low half of each byte first.
//! - 2 bits: line `step / 4`, the lowest two bits of each byte first.
//! - 3 bits: the low two bits as above, and the top bit as bit `step` of the third line.
//! - 1 bit: bit `step` of each byte.
//!
//! A group begins with its 16 scales and 16 zero points, as f16 in one line or as f32 in two, and
//! goes on with its codes. A panel's groups are cut into tiles of about 2048 inputs, so that the
//! activations of a tile stay in the nearest cache: in memory, tile after tile, in a tile panel
//! after panel, in a panel group after group. A product reads the lines from first to last.

use std::mem::MaybeUninit;

use half::f16;

use super::{Par, ROWS};
use crate::rows::AffineRows;
use crate::simd::Wide;
use crate::simd::wide::Line;
use crate::unpack_bits;

/// Inputs that make whole lines at every width.
pub(super) const BLOCK: usize = 32;

/// Inputs of a tile, unless a group is longer.
const TILE: usize = 2048;

/// Where everything lies.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: usize,
    /// At most `cols` rounded up to whole blocks.
    pub(super) group: usize,
    /// Lines of what a group has beside its codes: scales and zero points take 1 as f16, 2 as f32.
    pub(super) grid_lines: usize,
}

impl Shape {
    pub(super) fn of(w: &AffineRows<'_>) -> Self {
        let in_half = |v: &f32| f16::from_f32(*v).to_f32().to_bits() == v.to_bits();
        let grid_lines = if w.scales.iter().chain(w.zeros).all(in_half) { 1 } else { 2 };
        Self::new([w.rows, w.cols], w.bits, w.group, grid_lines)
    }

    pub(super) fn new(
        [rows, cols]: [usize; 2],
        bits: u32,
        group: usize,
        grid_lines: usize,
    ) -> Self {
        let group = group.min(cols.next_multiple_of(BLOCK)).max(BLOCK);
        Self { rows, cols, bits: bits as usize, group, grid_lines }
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    pub(super) fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Blocks of group `g`; only the last group may have fewer than the others.
    pub(super) fn blocks(&self, g: usize) -> usize {
        let start = g * self.group;
        (self.cols - start).min(self.group).div_ceil(BLOCK)
    }

    pub(super) fn groups_of_a_tile(&self) -> usize {
        (TILE / self.group).max(1)
    }

    /// The lines that a panel has in the groups `from..to`.
    pub(super) fn lines(&self, from: usize, to: usize) -> usize {
        (from..to).map(|g| self.grid_lines + self.blocks(g) * self.bits).sum()
    }

    /// Each tile: its groups, and where its lines begin.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        let mut start = 0;
        (0..self.groups()).step_by(self.groups_of_a_tile()).map(move |first| {
            let end = (first + self.groups_of_a_tile()).min(self.groups());
            let lines = self.lines(first, end);
            let tile = Tile { first, end, start, lines };
            start += lines * self.panels();
            tile
        })
    }
}

/// The groups `first..end`, of which each panel has `lines` lines; the first begins at `start`.
pub(super) struct Tile {
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) start: usize,
    pub(super) lines: usize,
}

/// Repacks a matrix on a grid.
pub(super) fn pack(w: &AffineRows<'_>, shape: &Shape, par: Par) -> Vec<Line> {
    pack_by(shape, par, |tile, panel, lines| fill(w, shape, tile, panel, lines))
}

/// The lines of a matrix, all of them filled by `fill` for each panel of each tile.
pub(super) fn pack_by(
    shape: &Shape,
    par: Par,
    fill: impl Fn(&Tile, usize, &mut [Line]) + Sync,
) -> Vec<Line> {
    let mut lines = zeroed(shape.lines(0, shape.groups()) * shape.panels());
    let mut rest = &mut lines[..];
    for tile in shape.tiles() {
        let here;
        (here, rest) = rest.split_at_mut(tile.lines * shape.panels());
        let panels = here.chunks_mut(tile.lines).enumerate();
        par.for_each(panels, |(panel, lines)| fill(&tile, panel, lines));
    }
    lines
}

/// So many empty lines, in large pages where the system grants them: a product reads them from
/// first to last at the speed of memory, where looking up small pages costs a tenth.
pub(super) fn zeroed(n: usize) -> Vec<Line> {
    let mut lines = Vec::with_capacity(n);
    advise_large_pages(lines.spare_capacity_mut());
    lines.resize(n, Line::ZERO);
    lines
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
fn advise_large_pages(space: &mut [MaybeUninit<Line>]) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    const LARGE_PAGES: c_int = 14;
    const LARGE: usize = 2 << 20;
    // Whole small pages of ours only; their size is a power of two up to this one.
    const SMALL: usize = 64 << 10;
    let start = space.as_mut_ptr().cast::<u8>();
    let lead = start.align_offset(SMALL);
    let length = size_of_val(space).saturating_sub(lead) / SMALL * SMALL;
    if length >= LARGE {
        // SAFETY: the range lies within `space`, and the advice changes no byte of it. A refusal
        // costs speed only.
        let _ = unsafe { madvise(start.wrapping_add(lead).cast(), length, LARGE_PAGES) };
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
fn advise_large_pages(_: &mut [MaybeUninit<Line>]) {}

/// Fills one panel of one tile.
fn fill(w: &AffineRows<'_>, shape: &Shape, tile: &Tile, panel: usize, lines: &mut [Line]) {
    let row = panel * ROWS;
    let start = tile.first * shape.group;
    let end = (tile.end * shape.group).min(shape.cols);
    let mut codes = vec![0u8; (end - start).next_multiple_of(BLOCK)];
    for r in 0..ROWS.min(shape.rows - row) {
        let (packed, scales, zeros) = w.row(row + r);
        unpack_bits(packed, w.bits, start, &mut codes[..end - start]);
        let mut blocks = codes.as_chunks::<BLOCK>().0.iter();
        let mut at = 0;
        for g in tile.first..tile.end {
            put_grid(&mut lines[at..at + shape.grid_lines], r, scales[g], zeros[g]);
            at += shape.grid_lines;
            for codes in blocks.by_ref().take(shape.blocks(g)) {
                put_codes(&mut lines[at..at + shape.bits], r, codes);
                at += shape.bits;
            }
        }
    }
}

fn put_grid(lines: &mut [Line], r: usize, scale: f32, zero: f32) {
    match lines {
        [line] => {
            line.0[2 * r..][..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            line.0[32 + 2 * r..][..2].copy_from_slice(&f16::from_f32(zero).to_le_bytes());
        }
        lines => {
            lines[0].0[4 * r..][..4].copy_from_slice(&scale.to_le_bytes());
            lines[1].0[4 * r..][..4].copy_from_slice(&zero.to_le_bytes());
        }
    }
}

/// Puts 32 codes of row `r` in their places; the number of lines is the number of bits.
fn put_codes(lines: &mut [Line], r: usize, codes: &[u8; BLOCK]) {
    for (step, four) in codes.as_chunks::<4>().0.iter().enumerate() {
        for (i, code) in four.iter().enumerate() {
            put_code(lines, step, 4 * r + i, *code);
        }
    }
}

/// Puts a code where [`codes_of_step`] finds it in a byte of a step; the number of lines is the number of bits.
#[inline(always)]
pub(super) fn put_code(lines: &mut [Line], step: usize, byte: usize, code: u8) {
    match lines.len() {
        8 => lines[step].0[byte] = code,
        4 => lines[step / 2].0[byte] |= code << (step % 2 * 4),
        1 => lines[0].0[byte] |= code << step,
        bits => {
            lines[step / 4].0[byte] |= (code & 3) << (step % 4 * 2);
            if bits == 3 {
                lines[2].0[byte] |= code >> 2 << step;
            }
        }
    }
}

/// The codes of a step, a byte each, out of the lines of a block.
#[inline(always)]
pub(super) fn codes_of_step<S: Wide, const BITS: usize>(
    s: S,
    lines: &[S::I; BITS],
    step: usize,
) -> S::I {
    match BITS {
        8 => lines[step],
        4 => s.bits(lines[step / 2], step % 2 * 4, 0x0f),
        2 => s.bits(lines[step / 4], step % 4 * 2, 0x03),
        1 => s.bits(lines[0], step, 0x01),
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
