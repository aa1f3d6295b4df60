use std::borrow::Cow;
use std::ops::Range;

use ndarray::ArrayView2;

use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::storage::{Part, PartKind};

/// The support of a sparse matrix: one bit an entry, rows padded to bytes, least significant bit first.
#[derive(Debug, Clone)]
pub struct Mask {
    rows: usize,
    cols: usize,
    bits: Bytes,
    /// Kept entries before each row, and in all.
    starts: Vec<usize>,
}

impl Mask {
    /// A mask from its stored bits.
    ///
    /// # Errors
    /// `Corruption` if the length is wrong or a padding bit is set.
    pub fn new(rows: usize, cols: usize, bits: Bytes) -> Result<Self> {
        let stride = cols.div_ceil(8);
        if rows.checked_mul(stride) != Some(bits.len()) {
            return Err(Error::corruption(format!(
                "a {rows} x {cols} mask takes {rows} x {stride} bytes, got {}",
                bits.len()
            )));
        }
        let mut starts = Vec::with_capacity(rows + 1);
        let mut kept = 0;
        for row in 0..rows {
            starts.push(kept);
            let bytes = &bits[row * stride..(row + 1) * stride];
            if !cols.is_multiple_of(8) && bytes[stride - 1] >> (cols % 8) != 0 {
                return Err(Error::corruption(format!("mask row {row} has bits past its end")));
            }
            kept += bytes.iter().map(|b| b.count_ones() as usize).sum::<usize>();
        }
        starts.push(kept);
        Ok(Self { rows, cols, bits, starts })
    }

    /// A mask that keeps the entries where `keep` is true.
    #[must_use]
    pub fn from_bools(keep: ArrayView2<'_, bool>) -> Self {
        let (rows, cols) = keep.dim();
        let stride = cols.div_ceil(8);
        let mut bits = vec![0u8; rows * stride];
        for ((r, c), _) in keep.indexed_iter().filter(|(_, k)| **k) {
            bits[r * stride + c / 8] |= 1 << (c % 8);
        }
        Self::new(rows, cols, bits.into()).expect("built with the right length and padding")
    }

    /// `[rows, columns]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Whether entry (row, column) is kept.
    ///
    /// # Panics
    /// If out of bounds.
    #[must_use]
    pub fn keeps(&self, row: usize, col: usize) -> bool {
        assert!(row < self.rows && col < self.cols, "entry out of bounds");
        self.bits[row * self.cols.div_ceil(8) + col / 8] >> (col % 8) & 1 == 1
    }

    /// Entries kept in `rows`.
    ///
    /// # Panics
    /// If out of bounds.
    #[must_use]
    pub fn kept(&self, rows: Range<usize>) -> usize {
        self.starts[rows.end] - self.starts[rows.start]
    }

    /// Entries kept before `row`: the position of its first value in the compact order.
    #[must_use]
    pub fn kept_before(&self, row: usize) -> usize {
        self.starts[row]
    }

    /// Calls `f(column)` for each kept column of `row`, ascending.
    pub fn for_each_kept(&self, row: usize, mut f: impl FnMut(usize)) {
        let stride = self.cols.div_ceil(8);
        for (i, byte) in self.bits[row * stride..(row + 1) * stride].iter().enumerate() {
            let mut rest = *byte;
            while rest != 0 {
                f(i * 8 + rest.trailing_zeros() as usize);
                rest &= rest - 1;
            }
        }
    }

    /// The stored part.
    pub fn part(&self, name: String) -> Part<'_> {
        Part {
            name,
            kind: PartKind::Masks,
            dtype: DType::U8,
            shape: vec![self.rows, self.cols.div_ceil(8)],
            bytes: Cow::Borrowed(&self.bits),
        }
    }
}
