//! Codes into a table of levels, with a scale for each block.

mod known;

use serde::{Deserialize, Serialize};

use super::{Encoding, Format, Leaf, Slot};
use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Json, Symbols};
use crate::storage::PartKind;

pub use known::KnownLevels;

/// Codes into a table of levels, with a scale for each block: `w = level[code] * scale[block] + offset`.
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

/// The format of a [`LevelTable`]: its children are the levels `[1, count]`, the scales ([`Blocks::grid`]) and, if there is
/// one, the offset `[1, 1]`; each any node.
///
/// Products and sums are rounded one after the other, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelFormat {
    count: usize,
    blocks: Blocks,
    offset: bool,
}

impl LevelFormat {
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
        Ok(Self { count, blocks, offset: false })
    }

    /// Says that there is an offset.
    #[must_use]
    pub fn with_offset(mut self) -> Self {
        self.offset = true;
        self
    }

    /// Whether there is an offset.
    #[must_use]
    pub fn has_offset(&self) -> bool {
        self.offset
    }

    /// Which weights share a scale.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }
}

/// Places of the slots.
const LEVELS: usize = 0;
const SCALES: usize = 1;
const OFFSET: usize = 2;

impl Format for LevelFormat {
    const ID: &'static str = "levels.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let format = Self::new(field(json, "count")?, field(json, "blocks")?);
        let format = format.map_err(|e| Error::corruption(e.message()))?;
        Ok(Self { offset: json.get("offset").is_some(), ..format })
    }

    fn describe(&self, json: &mut Json) {
        json["count"] = self.count.into();
        json["blocks"] = serde_json::to_value(self.blocks).expect("an enum of numbers");
    }

    fn slots(&self, shape: [usize; 2]) -> Vec<Slot> {
        let node = |name, kind, shape| Slot { name, kind, shape, encoding: Encoding::Node };
        let mut slots = vec![
            node("levels", PartKind::Tables, [1, self.count]),
            node("scales", PartKind::Scales, self.blocks.grid(shape)),
        ];
        slots.extend(self.offset.then(|| node("offset", PartKind::Zeros, [1, 1])));
        slots
    }

    fn check(&self, _: [usize; 2], alphabet: u32) -> Result<()> {
        if alphabet as usize > self.count {
            return Err(Error::invalid(format!("{alphabet} codes for {} levels", self.count)));
        }
        Ok(())
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let (levels, scales) = (beside[LEVELS], beside[SCALES]);
        match codes {
            Symbols::U8(codes) => {
                // All bytes have a level: no code is held against the length.
                let mut table = [0.0; 256];
                table[..levels.len().min(256)].copy_from_slice(&levels[..levels.len().min(256)]);
                self.scaled(row, codes, scales, out, |code| table[usize::from(code)]);
            }
            Symbols::U16(codes) => {
                self.scaled(row, codes, scales, out, |code| levels[usize::from(code)]);
            }
        }
        if self.offset {
            let offset = beside[OFFSET][0];
            out.iter_mut().for_each(|out| *out += offset);
        }
    }
}

impl LevelFormat {
    /// Decodes block after block of a row.
    #[inline(always)]
    fn scaled<S: Copy>(
        &self,
        row: usize,
        codes: &[S],
        scales: &[f32],
        out: &mut [f32],
        level: impl Fn(S) -> f32,
    ) {
        let (block, before) = self.blocks.start(row, out.len());
        let (mut scales, mut at) = (scales[block..].iter(), 0);
        let mut end = (self.blocks.size() - before).min(out.len());
        while at < out.len() {
            let scale = *scales.next().expect("a scale a block");
            for (out, code) in out[at..end].iter_mut().zip(&codes[at..end]) {
                *out = level(*code) * scale;
            }
            (at, end) = (end, end.saturating_add(self.blocks.size()).min(out.len()));
        }
    }
}
