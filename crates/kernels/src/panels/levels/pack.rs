//! The memory layout of panels of codes into tables.
//!
//! Lines, blocks and tiles are those of [grids](super::super::pack). But a step is 16 inputs of four rows: step `2 q + h` of
//! a block has the inputs from `16 h` on of the rows `q`, `4 + q`, `8 + q` and `12 + q` of the panel, 16 bytes each, so that
//! each quarter of a line meets the table of one row, and [`crate::simd::Wide::sum_quarters`] gives rows in their order. A
//! group begins with a line of 16 f32, its scales times the steps of its tables, and one of 16 numbers of tables where groups
//! have tables of their own.

use super::super::ROWS;
use super::super::pack::{BLOCK, Shape, Tile, put_code};
use super::LevelRows;
use crate::simd::wide::{Line, Wide};
use crate::{packed_len, unpack_bits};

/// Quarters of a line, and steps of rows: four by four are the rows of a panel.
pub(super) const QUARTERS: usize = 4;

/// What the integer of level 0 is.
pub(super) const ZERO: f32 = 32_768.0;

/// The high bytes of the integers of a table, and the low ones.
type Planes = [[u8; 16]; 2];

/// Tables as a product meets them.
#[derive(Clone, Debug)]
pub(super) enum Tables {
    /// One for all rows: a line of high bytes and one of low ones.
    One([Line; 2]),
    /// For each panel, for each `q` of the rows `4 i + q`: the same two lines.
    Rows(Vec<[Line; 2]>),
    /// Those that groups name.
    Named(Vec<Planes>),
}

impl Tables {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::One(lines) => size_of_val(lines),
            Self::Rows(lines) => size_of_val(&lines[..]),
            Self::Named(planes) => size_of_val(&planes[..]),
        }
    }

    /// The planes of rows `4 i + q` of a panel, high and low, for a group that begins with `grid`.
    #[inline(always)]
    pub(super) fn of<S: Wide>(&self, s: S, panel: usize, grid: &[Line], q: usize) -> [S::I; 2] {
        match self {
            Self::One(lines) => [s.line(&lines[0]), s.line(&lines[1])],
            Self::Rows(lines) => {
                let lines = &lines[panel * QUARTERS + q];
                [s.line(&lines[0]), s.line(&lines[1])]
            }
            Self::Named(planes) => {
                let mut tables = [&planes[0]; QUARTERS];
                for (i, table) in tables.iter_mut().enumerate() {
                    let name = grid[1].0.as_chunks().0[QUARTERS * i + q];
                    *table = &planes[u32::from_le_bytes(name) as usize];
                }
                let [a, b, c, d] = tables;
                [s.quarters([&a[0], &b[0], &c[0], &d[0]]), s.quarters([&a[1], &b[1], &c[1], &d[1]])]
            }
        }
    }
}

/// Tables as they are rounded: that of each row, by the levels which its codes name, so that the error of a row is a share
/// of its own largest level; or all of them, where groups have tables of their own.
pub(super) struct Rounded {
    steps: Vec<f32>,
    planes: Vec<Planes>,
    /// The table of all rows, where they have one and it is rounded alike for all.
    one: Option<Planes>,
}

/// The place of the table of group `g` of a row in [`Rounded`].
fn place(w: &LevelRows<'_>, row: usize, g: usize) -> usize {
    if w.by_group() { w.table(row, g) as usize } else { row }
}

/// Levels as integers about [`ZERO`], and what one of them is; those that no code names count as 0.
fn round(levels: &[f32], named: u16) -> (f32, Planes) {
    let mut held = [0.0; 16];
    for (code, level) in levels.iter().enumerate().filter(|(code, _)| named >> code & 1 == 1) {
        held[code] = *level;
    }
    let levels = held;
    let most = levels.iter().fold(0.0f32, |most, level| most.max(level.abs()));
    let step = match most / 32_767.0 {
        _ if !levels.iter().all(|level| level.is_finite()) => f32::NAN,
        step if step < f32::MIN_POSITIVE => 0.0,
        step => step,
    };
    let mut planes = [[0; 16]; 2];
    for (code, level) in levels.iter().enumerate() {
        let integer = if step > 0.0 { (level / step).round() } else { 0.0 };
        let [low, high] = ((integer + ZERO) as u16).to_le_bytes();
        (planes[0][code], planes[1][code]) = (high, low);
    }
    (step, planes)
}

impl Rounded {
    pub(super) fn of(w: &LevelRows<'_>) -> Self {
        let (stride, mut codes) = (packed_len(w.cols, w.bits), vec![0u8; w.cols]);
        let held = if w.by_group() { w.levels.len() / w.count() } else { w.rows };
        let mut named = vec![0u16; held];
        for row in 0..w.rows {
            unpack_bits(&w.packed[row * stride..(row + 1) * stride], w.bits, 0, &mut codes);
            for (g, codes) in codes.chunks(w.group).enumerate() {
                named[place(w, row, g)] |= codes.iter().fold(0, |all, code| all | 1 << code);
            }
        }
        let table = |at: usize| if w.by_group() { at } else { w.table(at, 0) as usize };
        let levels = |at: usize| &w.levels[table(at) * w.count()..(table(at) + 1) * w.count()];
        let rounded = named.iter().enumerate().map(|(at, named)| round(levels(at), *named));
        let (steps, planes): (Vec<f32>, _) = rounded.unzip();
        let alike = steps.windows(2).all(|two| two[0].to_bits() == two[1].to_bits());
        let all = named.iter().fold(0, |all, named| all | named);
        let one = match w.tables {
            [_] if alike && w.rows > 0 && !w.by_group() => Some(round(levels(0), all).1),
            _ => None,
        };
        Self { steps, planes, one }
    }

    pub(super) fn into_tables(self, w: &LevelRows<'_>) -> Tables {
        if w.by_group() {
            return Tables::Named(self.planes);
        }
        let lines = |tables: [&Planes; QUARTERS]| {
            let mut lines = [Line::ZERO; 2];
            for (i, planes) in tables.into_iter().enumerate() {
                for (line, plane) in lines.iter_mut().zip(planes) {
                    line.0[16 * i..][..16].copy_from_slice(plane);
                }
            }
            lines
        };
        if let Some(one) = &self.one {
            return Tables::One(lines([one; QUARTERS]));
        }
        // Rows that fill up the last panel have scales of 0.
        let row = |row: usize| &self.planes[row.min(w.rows - 1)];
        let firsts = (0..w.rows).step_by(ROWS).flat_map(|row| row..row + QUARTERS);
        Tables::Rows(firsts.map(|at| lines([0, 1, 2, 3].map(|i| row(at + QUARTERS * i)))).collect())
    }

    /// Fills one panel of one tile.
    pub(super) fn fill(
        &self,
        w: &LevelRows<'_>,
        shape: &Shape,
        tile: &Tile,
        panel: usize,
        lines: &mut [Line],
    ) {
        let (start, stride) = (tile.first * shape.group, packed_len(w.cols, w.bits));
        let end = (tile.end * shape.group).min(w.cols);
        let mut codes = vec![0u8; (end - start).next_multiple_of(BLOCK)];
        for r in 0..ROWS.min(w.rows - panel * ROWS) {
            let row = panel * ROWS + r;
            let packed = &w.packed[row * stride..(row + 1) * stride];
            unpack_bits(packed, w.bits, start, &mut codes[..end - start]);
            let mut blocks = codes.as_chunks::<BLOCK>().0.iter();
            let mut rest = &mut *lines;
            for g in tile.first..tile.end {
                let (grid, after) = rest.split_at_mut(shape.grid_lines);
                let (held, after) = after.split_at_mut(shape.blocks(g) * shape.bits);
                rest = after;
                // Rows of one scale are cut into several groups.
                let from = g * shape.group / w.group;
                let table = w.table(row, from);
                let scale = w.scales[row * w.groups() + from] * self.steps[place(w, row, from)];
                grid[0].0[4 * r..][..4].copy_from_slice(&scale.to_le_bytes());
                if let Some(line) = grid.get_mut(1) {
                    line.0[4 * r..][..4].copy_from_slice(&table.to_le_bytes());
                }
                for (lines, codes) in held.chunks_mut(shape.bits).zip(&mut blocks) {
                    for (i, code) in codes.iter().enumerate() {
                        let step = 2 * (r % QUARTERS) + i / 16;
                        put_code(lines, step, r / QUARTERS * 16 + i % 16, *code);
                    }
                }
            }
        }
    }
}
