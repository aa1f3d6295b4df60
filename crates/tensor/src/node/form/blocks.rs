use std::sync::Arc;

use serde_json::json;

use super::{MaskForm, unfit};
use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Json, Mask};

/// A bit for each block of `rows` x `cols` entries, rows of blocks padded to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Rows of a block.
    pub rows: usize,
    /// Columns of a block.
    pub cols: usize,
}

/// Entries of a block, at most: what readers allocate stays within a known multiple of what they read.
pub(super) const MOST_IN_BLOCK: usize = 4096;

impl Blocks {
    pub(in crate::node) fn read_from(json: &Json) -> Result<Arc<dyn MaskForm>> {
        let [rows, cols] = field(json, "block")?;
        Ok(Arc::new(Self { rows, cols }))
    }
}

impl MaskForm for Blocks {
    fn check(&self, [_, cols]: [usize; 2]) -> Result<()> {
        let entries = self.rows.checked_mul(self.cols);
        let fits = entries.is_some_and(|entries| (1..=MOST_IN_BLOCK).contains(&entries));
        if fits { Ok(()) } else { Err(unfit(self, cols)) }
    }

    fn symbols(&self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        [rows.div_ceil(self.rows), cols.div_ceil(self.cols).div_ceil(8)]
    }

    fn bits(&self) -> u8 {
        8
    }

    fn write(&self, mask: &Mask) -> Result<Vec<u8>> {
        let [rows, count] = self.symbols(mask.shape());
        let across = mask.shape()[1].div_ceil(self.cols);
        let mut symbols = Vec::with_capacity(rows * count);
        for row in 0..rows {
            for byte in 0..count {
                let blocks = (8 * byte..across.min(8 * byte + 8)).enumerate();
                let kept =
                    blocks.filter(|(_, block)| mask.keeps(row * self.rows, block * self.cols));
                symbols.push(kept.fold(0, |bits, (i, _)| bits | 1 << i));
            }
        }
        Ok(symbols)
    }

    fn read(
        &self,
        row: usize,
        symbols: &[u8],
        [rows, cols]: [usize; 2],
        bits: &mut [u8],
    ) -> Result<()> {
        let stride = cols.div_ceil(8);
        let (first, end) = (row * self.rows, ((row + 1) * self.rows).min(rows));
        let across = cols.div_ceil(self.cols);
        let kept = |block: &usize| symbols[block / 8] >> (block % 8) & 1 == 1;
        for block in (0..8 * symbols.len()).filter(kept) {
            if block >= across {
                return Err(Error::corruption("block bits past the end of a row"));
            }
            for c in block * self.cols..((block + 1) * self.cols).min(cols) {
                bits[first * stride + c / 8] |= 1 << (c % 8);
            }
        }
        for row in first + 1..end {
            bits.copy_within(first * stride..(first + 1) * stride, row * stride);
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        json!({"form": "blocks", "block": [self.rows, self.cols]})
    }
}
