//! Codes into a table of levels, with a scale for each block.

mod known;
mod panels;

use serde::{Deserialize, Serialize};

use std::ops::Range;

use super::{Encoding, Format, Fused, Leaf, Slot};
use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Json, Symbols};
use crate::storage::PartKind;

pub use known::KnownLevels;

/// Codes into a table of levels, with a scale for each block: `w = level[code] * scale[block] + offset`. There is one
/// table, or there are several ([`Tables`]).
pub type LevelTable = Leaf<LevelFormat>;

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Blocks {
    /// So many consecutive weights of the flattened matrix, across the ends of rows; the last block may be shorter.
    Flat(usize),
    /// So many consecutive weights of a row; the last block of a row may be shorter.
    Rows(usize),
}

impl Blocks {
    /// `[rows, columns]` of the scales of a matrix.
    #[must_use]
    pub fn grid(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Flat(block) => [1, (rows * cols).div_ceil(block)],
            Self::Rows(block) => [rows, cols.div_ceil(block)],
        }
    }

    fn size(self) -> usize {
        match self {
            Self::Flat(block) | Self::Rows(block) => block,
        }
    }

    /// The block of a row's first weight, and how many of that block's weights came before.
    fn start(self, row: usize, cols: usize) -> (usize, usize) {
        match self {
            Self::Flat(block) => (row * cols / block, row * cols % block),
            Self::Rows(block) => (row * cols.div_ceil(block), 0),
        }
    }
}

/// Which weights share a table of levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tables {
    /// All of them.
    #[default]
    One,
    /// So many consecutive rows; the last table may be for fewer.
    Rows(usize),
    /// There are so many tables, and each block names one of them; a number past the last stands for the last.
    Chosen(usize),
    /// Each block has a table of its own.
    Blocks,
}

impl Tables {
    /// Tables of a matrix of so many rows, in so many blocks.
    #[must_use]
    pub fn count(self, rows: usize, blocks: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Rows(each) => rows.div_ceil(each),
            Self::Chosen(tables) => tables,
            Self::Blocks => blocks,
        }
    }
}

/// The format of a [`LevelTable`]: its children are the levels `[tables, count]`, the scales ([`Blocks::grid`]) if there are
/// any, the offset `[1, 1]` if there is one, each any node, and a plane of the tables that blocks chose, if they do.
///
/// Products and sums are rounded one after the other, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelFormat {
    count: usize,
    blocks: Blocks,
    tables: Tables,
    scaled: bool,
    offset: bool,
}

impl LevelFormat {
    /// Wire id of leaves of several tables, or without scales.
    pub(in crate::node) const TABLES: &'static str = "levels.v2";
    /// Wire id of leaves with a table for each block.
    pub(in crate::node) const OF_BLOCKS: &'static str = "levels.v3";

    /// A table of `count` levels, without an offset.
    ///
    /// # Errors
    /// `InvalidArgument` unless `count` is 1 to 65536 and blocks are not empty.
    pub fn new(count: usize, blocks: Blocks) -> Result<Self> {
        if !(1..=1 << 16).contains(&count) {
            return Err(Error::invalid(format!("{count} levels: allowed are 1 to 65536")));
        }
        if blocks.size() == 0 {
            return Err(Error::invalid("blocks of 0 weights: allowed are 1 and more"));
        }
        Ok(Self { count, blocks, tables: Tables::One, scaled: true, offset: false })
    }

    /// Says that there is an offset.
    #[must_use]
    pub fn with_offset(mut self) -> Self {
        self.offset = true;
        self
    }

    /// Says which weights share a table.
    ///
    /// # Errors
    /// `InvalidArgument` for tables of 0 rows, and unless 1 to 65536 tables can be chosen.
    pub fn with_tables(self, tables: Tables) -> Result<Self> {
        match tables {
            Tables::Rows(0) => Err(Error::invalid("tables of 0 rows: allowed are 1 and more")),
            Tables::Chosen(n) if !(1..=1 << 16).contains(&n) => {
                Err(Error::invalid(format!("{n} tables: allowed are 1 to 65536")))
            }
            _ => Ok(Self { tables, ..self }),
        }
    }

    /// Says that levels are weights as they are, without scales.
    #[must_use]
    pub fn without_scales(mut self) -> Self {
        self.scaled = false;
        self
    }

    /// Whether there is an offset.
    #[must_use]
    pub fn has_offset(&self) -> bool {
        self.offset
    }

    /// Whether there are scales.
    #[must_use]
    pub fn has_scales(&self) -> bool {
        self.scaled
    }

    /// Which weights share a scale.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// Which weights share a table.
    #[must_use]
    pub fn tables(&self) -> Tables {
        self.tables
    }

    /// One table, and scales: what first versions knew.
    fn is_plain(&self) -> bool {
        self.tables == Tables::One && self.scaled
    }
}

/// Values beside the codes, as slots name them.
struct Values<'a> {
    levels: &'a [f32],
    scales: Option<&'a [f32]>,
    offset: Option<f32>,
    chosen: Option<&'a [f32]>,
}

impl LevelFormat {
    fn values<'a>(&self, beside: &[&'a [f32]]) -> Values<'a> {
        let mut slots = beside.iter().copied();
        let mut next = |there: bool| if there { slots.next() } else { None };
        Values {
            levels: next(true).expect("levels are the first slot"),
            scales: next(self.scaled),
            offset: next(self.offset).map(|offset| offset[0]),
            chosen: next(matches!(self.tables, Tables::Chosen(_))),
        }
    }
}

impl Format for LevelFormat {
    const ID: &'static str = "levels.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let format = Self::new(field(json, "count")?, field(json, "blocks")?);
        let format = format.map(|format| Self { offset: json.get("offset").is_some(), ..format });
        let read = |format: Self| match json.get("node").and_then(Json::as_str) {
            Some(Self::TABLES | Self::OF_BLOCKS) => {
                Self { scaled: json.get("scales").is_some(), ..format }
                    .with_tables(field(json, "tables")?)
            }
            _ => Ok(format),
        };
        format.and_then(read).map_err(|e| Error::corruption(e.message()))
    }

    fn describe(&self, json: &mut Json) {
        json["count"] = self.count.into();
        json["blocks"] = serde_json::to_value(self.blocks).expect("an enum of numbers");
        if !self.is_plain() {
            let blocks = self.tables == Tables::Blocks;
            json["node"] = if blocks { Self::OF_BLOCKS } else { Self::TABLES }.into();
            json["tables"] = serde_json::to_value(self.tables).expect("an enum of numbers");
        }
    }

    fn slots(&self, shape: [usize; 2]) -> Vec<Slot> {
        let slot = |name, kind, shape, encoding| Slot { name, kind, shape, encoding };
        let grid = self.blocks.grid(shape);
        let levels = [self.tables.count(shape[0], grid[0] * grid[1]), self.count];
        let mut slots = vec![slot("levels", PartKind::Tables, levels, Encoding::Node)];
        slots.extend(self.scaled.then(|| slot("scales", PartKind::Scales, grid, Encoding::Node)));
        slots.extend(self.offset.then(|| slot("offset", PartKind::Zeros, [1, 1], Encoding::Node)));
        if let Tables::Chosen(_) = self.tables {
            slots.push(slot("chosen", PartKind::Indices, grid, Encoding::Plane));
        }
        slots
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        if alphabet as usize > self.count {
            return Err(Error::invalid(format!("{alphabet} codes for {} levels", self.count)));
        }
        Ok(())
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let values = self.values(beside);
        match codes {
            Symbols::U8(codes) => self.row(row, codes, &values, out),
            Symbols::U16(codes) => self.row(row, codes, &values, out),
        }
        if let Some(offset) = values.offset {
            out.iter_mut().for_each(|out| *out += offset);
        }
    }

    fn prepacked(leaf: &Leaf<Self>) -> Result<Option<Box<dyn Fused>>> {
        panels::prepacked(leaf)
    }
}

impl LevelFormat {
    /// A row but for the offset.
    fn row<S: Copy + Into<usize>>(
        &self,
        row: usize,
        codes: &[S],
        values: &Values<'_>,
        out: &mut [f32],
    ) {
        let table = |at: usize| &values.levels[at * self.count..(at + 1) * self.count];
        match (self.tables, values.chosen) {
            (Tables::Chosen(tables), Some(chosen)) => {
                self.in_blocks(row, out.len(), |block, at| {
                    let levels = table((chosen[block] as usize).min(tables - 1));
                    let scale = values.scales.map_or(1.0, |scales| scales[block]);
                    decode(levels, scale, &codes[at.clone()], &mut out[at]);
                });
            }
            (Tables::Blocks, _) => self.in_blocks(row, out.len(), |block, at| {
                let scale = values.scales.map_or(1.0, |scales| scales[block]);
                decode(table(block), scale, &codes[at.clone()], &mut out[at]);
            }),
            (tables, _) => {
                let levels = table(if let Tables::Rows(each) = tables { row / each } else { 0 });
                // All bytes have a level: no code is held against the length.
                let mut padded = [0.0; 256];
                let levels = match padded.get_mut(..levels.len()) {
                    Some(all) if size_of::<S>() == 1 => {
                        all.copy_from_slice(levels);
                        &padded[..]
                    }
                    _ => levels,
                };
                match values.scales {
                    None => decode(levels, 1.0, codes, out),
                    Some(scales) => self.in_blocks(row, out.len(), |block, at| {
                        decode(levels, scales[block], &codes[at.clone()], &mut out[at]);
                    }),
                }
            }
        }
    }

    /// Calls `f` with every block of a row and its columns.
    #[inline(always)]
    fn in_blocks(&self, row: usize, cols: usize, mut f: impl FnMut(usize, Range<usize>)) {
        let (mut block, before) = self.blocks.start(row, cols);
        let (mut at, mut end) = (0, (self.blocks.size() - before).min(cols));
        while at < cols {
            f(block, at..end);
            block += 1;
            (at, end) = (end, end.saturating_add(self.blocks.size()).min(cols));
        }
    }
}

/// Levels of codes, scaled.
#[inline(always)]
fn decode<S: Copy + Into<usize>>(levels: &[f32], scale: f32, codes: &[S], out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = levels[(*code).into()] * scale;
    }
}
