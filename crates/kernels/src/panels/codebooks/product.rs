//! Tables looked up by codes.

use std::ops::Range;

use super::CodebookPanels;
use super::pack::{BLOCK, ROWS, row_of};
use super::tables::{Tables, ZERO};
use crate::simd::wide::Line;
use crate::simd::{Ahead, dispatch, stream, stream_again};
use crate::work::Work;

/// How many lines ahead of the reading the next ones are asked for: 12 KiB. Only memory gains by it, so only panels of more
/// than this many bytes do it.
const AHEAD: usize = 192;
const LARGER_THAN_CACHE: usize = 4 << 20;

/// Panels that go through a block together: their codes stay in the second cache until all tokens met them.
const PANELS: usize = 128;

/// Blocks whose tables are made together, for one token: they stay in the second cache until all panels met them.
const TABLES: usize = 16;

/// The codes of some panels in one block, and one token's tables for them.
pub(super) struct Block<'a> {
    /// `[panels, codes]`
    pub(super) codes: &'a [Line],
    /// Codes of a row.
    pub(super) count: usize,
    /// `[codes, table]`
    pub(super) tables: &'a [Line],
    /// Lines of a table.
    pub(super) width: usize,
    pub(super) scale: f32,
    /// How many lines ahead to ask for memory, if at all, and for which cache.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) ahead: Option<(usize, Ahead)>,
}

impl CodebookPanels {
    /// Adds the products of some rows with a few tokens to `y [tokens, rows.len()]`, neither being empty.
    pub(super) fn add(
        &self,
        rows: Range<usize>,
        x: &[f32],
        tables: &mut Tables,
        y: &mut [f32],
        work: &mut Work,
    ) {
        let (t, blocks) = (x.len() / self.cols(), self.shape.codes().div_ceil(BLOCK));
        let panels = rows.start / ROWS..rows.end.div_ceil(ROWS);
        // By panel first, so that threads write to places of their own.
        let mut buffer = work.take_lines(panels.len() * t * ROWS);
        buffer.fill(0.0);
        // One thread takes all at once, so that it goes through memory from first to last, and makes tables when it needs
        // them. Several would wait for each other; four pieces for each even out what they are given beside.
        let (piece, portion) = match work.par().threads() {
            1 if t == 1 => (panels.len(), TABLES),
            1 => (PANELS, TABLES / t),
            threads => (panels.len().div_ceil(4 * threads), blocks),
        };
        for first in (0..blocks).step_by(portion) {
            let some = first..blocks.min(first + portion);
            tables.prepare(&self.shape, &self.books, x, some.clone(), work);
            let sums = buffer.as_chunks_mut::<ROWS>().0.chunks_mut(piece * t).enumerate();
            work.par().for_each(sums, |(i, sums)| {
                self.add_panels(panels.start + i * piece, some.clone(), tables, sums, work);
            });
        }
        for (p, sums) in panels.zip(buffer.as_chunks::<ROWS>().0.chunks(t)) {
            let held = rows.start.max(p * ROWS)..rows.end.min((p + 1) * ROWS);
            let scales = &self.scales[held.clone()];
            for (token, sums) in sums.iter().enumerate() {
                let y = &mut y[token * rows.len() + held.start - rows.start..][..held.len()];
                let sums = &sums[held.start - p * ROWS..];
                for ((y, sum), scale) in y.iter_mut().zip(sums).zip(scales) {
                    *y += scale * sum;
                }
            }
        }
        work.put_lines(buffer);
    }

    /// Adds the products of the panels from `first` on in some blocks, without the scales of rows, to
    /// `sums [some panels, tokens]`.
    fn add_panels(
        &self,
        first: usize,
        blocks: Range<usize>,
        tables: &Tables,
        sums: &mut [[f32; ROWS]],
        work: &Work,
    ) {
        let (shape, isa, t) = (&self.shape, work.isa(), tables.tokens);
        let (width, panels) = (shape.table_lines(), sums.len() / t);
        // A single token reads the lines once; more come back to them.
        let to = if t > 1 { stream_again() } else { stream() };
        let large = size_of_val(&self.lines[..]) > LARGER_THAN_CACHE;
        let tables_of_a_token = tables.lines.len() / t;
        for (b, at) in blocks.clone().map(|b| b * BLOCK).enumerate() {
            let count = BLOCK.min(shape.codes() - at);
            let start = at * shape.panels() + first * count;
            for token in 0..t {
                let from = token * tables_of_a_token + b * BLOCK * width;
                let block = Block {
                    codes: &self.lines[start..start + panels * count],
                    count,
                    tables: &tables.lines[from..from + count * width],
                    width,
                    scale: tables.scales[token * blocks.len() + b],
                    // Later tokens find the panels in the cache.
                    ahead: (large && token == 0).then_some((AHEAD, to)),
                };
                let sums = &mut sums[token..];
                dispatch! { isa;
                    avx512 => super::avx512::add(&block, sums, t);
                    _ => add(&block, sums, t)
                }
            }
        }
    }
}

/// Adds a block to every `stride`th of the sums, panel by panel. Integers are exact: any order gives the same.
fn add(block: &Block<'_>, sums: &mut [[f32; ROWS]], stride: usize) {
    match block.width {
        4 => add_tables::<4>(block, sums, stride),
        _ => add_tables::<8>(block, sums, stride),
    }
}

/// For tables of `WIDTH` lines.
fn add_tables<const WIDTH: usize>(block: &Block<'_>, sums: &mut [[f32; ROWS]], stride: usize) {
    let (tables, bias) = (block.tables.as_chunks::<WIDTH>().0, block.count as u32 * ZERO);
    let panels = block.codes.chunks_exact(block.count);
    for (codes, sums) in panels.zip(sums.iter_mut().step_by(stride)) {
        let mut totals = [0u32; ROWS];
        for (codes, table) in codes.iter().zip(tables) {
            for (total, code) in totals.iter_mut().zip(codes.0) {
                let (line, at) = (usize::from(code) / 32 % WIDTH, usize::from(code) % 32);
                *total += u32::from(u16::from_le_bytes(table[line].0.as_chunks().0[at]));
            }
        }
        for (at, total) in totals.into_iter().enumerate() {
            let sum = total.wrapping_sub(bias) as i32;
            sums[row_of(at)] += block.scale * sum as f32;
        }
    }
}
