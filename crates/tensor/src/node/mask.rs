use std::borrow::Cow;
use std::ops::{Deref, Range};

use ndarray::ArrayView2;

use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::{Bitmap, BitmapFault};
use crate::storage::{Part, PartKind};

/// The support of a sparse matrix: a counted [`Bitmap`] that can be stored. One bit an entry, rows padded to bytes, least
/// significant bit first.
#[derive(Debug, Clone)]
pub struct Mask(Bitmap<Bytes>);

/// What a bitmap knows of itself: shape, counts and regularities.
impl Deref for Mask {
    type Target = Bitmap<Bytes>;
    fn deref(&self) -> &Bitmap<Bytes> {
        &self.0
    }
}

impl Mask {
    /// A mask from its stored bits.
    ///
    /// # Errors
    /// `Corruption` if the length is wrong or a padding bit is set.
    pub fn new(rows: usize, cols: usize, bits: Bytes) -> Result<Self> {
        let (stride, length) = (cols.div_ceil(8), bits.len());
        Bitmap::new(rows, cols, bits).map(Self).map_err(|fault| {
            Error::corruption(match fault {
                BitmapFault::Length => {
                    format!("a {rows} x {cols} mask takes {rows} x {stride} bytes, got {length}")
                }
                BitmapFault::Padding(row) => format!("mask row {row} has bits past its end"),
            })
        })
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

    /// The same mask with more entries kept: every group of `m` consecutive columns that keeps fewer than `n` keeps its
    /// first others too, so that the mask can be stored as n of m. Their weights should be 0.
    ///
    /// # Errors
    /// `InvalidArgument` if `m` is not 2, 4, 8 or 16, does not divide the number of columns, or a group keeps more.
    pub fn to_n_of_m(&self, n: usize, m: usize) -> Result<Self> {
        let [rows, cols] = self.shape();
        if !matches!(m, 2 | 4 | 8 | 16) || n > m || !cols.is_multiple_of(m) {
            return Err(Error::invalid(format!(
                "{n} of {m} in {cols} columns: allowed are n <= m, m = 2, 4, 8 or 16 that divides them"
            )));
        }
        let mut bits = self.bits().to_vec();
        let stride = cols.div_ceil(8);
        for row in 0..rows {
            for group in 0..cols / m {
                let kept = self.group(row, group, m);
                let more = n.checked_sub(kept.count_ones() as usize).ok_or_else(|| {
                    Error::invalid(format!("row {row} keeps more than {n} of {m} in group {group}"))
                })?;
                for lane in (0..m).filter(|lane| kept >> lane & 1 == 0).take(more) {
                    let c = group * m + lane;
                    bits[row * stride + c / 8] |= 1 << (c % 8);
                }
            }
        }
        Self::new(rows, cols, bits.into())
    }

    /// The mask of some rows.
    ///
    /// # Panics
    /// If they are out of bounds.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let cols = self.shape()[1];
        let stride = cols.div_ceil(8);
        let bits = self.bits().slice(rows.start * stride..rows.end * stride);
        Self::new(rows.len(), cols, bits).expect("rows of a mask")
    }

    /// The stored part.
    pub fn part(&self, name: String) -> Part<'_> {
        let [rows, cols] = self.shape();
        Part {
            name,
            kind: PartKind::Masks,
            dtype: DType::U8,
            shape: vec![rows, cols.div_ceil(8)],
            bytes: Cow::Borrowed(self.bits()),
        }
    }
}
