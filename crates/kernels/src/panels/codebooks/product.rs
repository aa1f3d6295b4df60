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
    pub(super) ahead: Option<(usize, Ahead)>,
}

impl CodebookPanels {
    /// Adds the products of some rows to `y [tokens, rows.len()]`, which is not empty.
    pub(super) fn add(&self, rows: Range<usize>, tables: &Tables, y: &mut [f32], work: &mut Work) {
        let t = tables.tokens;
        let panels = rows.start / ROWS..rows.end.div_ceil(ROWS);
        // By panel first, so that threads write to places of their own.
        let mut buffer = work.take_lines(panels.len() * t * ROWS);
        buffer.fill(0.0);
        let sums = buffer.as_chunks_mut::<ROWS>().0;
        // One thread takes all at once, so that it goes through memory from first to last. Four pieces for each of several
        // even out what the threads are given beside.
        let piece = match work.par().threads() {
            1 if t == 1 => panels.len(),
            1 => PANELS,
            threads => panels.len().div_ceil(4 * threads),
        };
        work.par().for_each(sums.chunks_mut(piece * t).enumerate(), |(i, sums)| {
            self.add_panels(panels.start + i * piece, tables, sums, work);
        });
        for (p, sums) in panels.zip(sums.chunks(t)) {
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

    /// Adds the products of the panels from `first` on, without the scales of rows, to `sums [some panels, tokens]`.
    fn add_panels(&self, first: usize, tables: &Tables, sums: &mut [[f32; ROWS]], work: &Work) {
        let (shape, isa, t) = (&self.shape, work.isa(), tables.tokens);
        let (codes, width, panels) = (shape.codes(), shape.table_lines(), sums.len() / t);
        // A single token reads the lines once; more come back to them.
        let to = if t > 1 { stream_again() } else { stream() };
        let large = size_of_val(&self.lines[..]) > LARGER_THAN_CACHE;
        for (b, at) in (0..codes).step_by(BLOCK).enumerate() {
            let count = BLOCK.min(codes - at);
            let start = at * shape.panels() + first * count;
            for token in 0..t {
                let block = Block {
                    codes: &self.lines[start..start + panels * count],
                    count,
                    tables: &tables.lines[(token * codes + at) * width..][..count * width],
                    width,
                    scale: tables.scales[token * codes.div_ceil(BLOCK) + b],
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

/// Adds a block to every `stride`th of the sums, panel by panel. Integers are exact, so that it is the same in whatever order.
fn add(block: &Block<'_>, sums: &mut [[f32; ROWS]], stride: usize) {
    let bias = block.count as u32 * ZERO;
    for (codes, sums) in block.codes.chunks_exact(block.count).zip(sums.iter_mut().step_by(stride))
    {
        let mut totals = [0u32; ROWS];
        for (codes, table) in codes.iter().zip(block.tables.chunks_exact(block.width)) {
            // A quarter at a time, whose sums stay in registers.
            for (total, code) in totals.iter_mut().zip(codes.0) {
                let (line, at) = (usize::from(code) / 32 % block.width, usize::from(code) % 32);
                let word = u16::from_le_bytes(table[line].0.as_chunks().0[at]);
                *total += u32::from(word);
            }
        }
        for (at, total) in totals.into_iter().enumerate() {
            let sum = total.wrapping_sub(bias) as i32;
            sums[row_of(at)] += block.scale * sum as f32;
        }
    }
}
