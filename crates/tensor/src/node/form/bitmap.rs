use std::sync::Arc;

use serde_json::json;

use super::MaskForm;
use crate::error::Result;
use crate::node::{Json, Mask};

/// A bit an entry, rows padded to bytes: the symbols are those bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bitmap;

impl Bitmap {
    pub(in crate::node) fn read_from(_: &Json) -> Result<Arc<dyn MaskForm>> {
        Ok(Arc::new(Self))
    }
}

impl MaskForm for Bitmap {
    fn check(&self, _: [usize; 2]) -> Result<()> {
        Ok(())
    }

    fn symbols(&self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        [rows, cols.div_ceil(8)]
    }

    fn bits(&self) -> u8 {
        8
    }

    fn write(&self, mask: &Mask) -> Result<Vec<u8>> {
        Ok(mask.bits().to_vec())
    }

    fn read(
        &self,
        row: usize,
        symbols: &[u8],
        [_, cols]: [usize; 2],
        bits: &mut [u8],
    ) -> Result<()> {
        let stride = cols.div_ceil(8);
        let row = &mut bits[row * stride..(row + 1) * stride];
        row.copy_from_slice(symbols);
        Ok(())
    }

    fn describe(&self) -> Json {
        json!({"form": "bitmap"})
    }

    fn is_bitmap(&self) -> bool {
        true
    }
}
