use std::borrow::Cow;
use std::ops::Range;

use ndarray::ArrayView2;

use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels;
use crate::storage::{Part, PartKind};

/// The support of a sparse matrix: one bit an entry, rows padded to bytes, least significant bit first.
#[derive(Debug, Clone)]
pub struct Mask {
    rows: usize,
    cols: usize,
    bits: Bytes,
    /// Kept entries before each row, and in all.
    starts: Vec<usize>,
    /// `[n, m]` if every group of m columns keeps n; the smallest m.
    every: Option<[usize; 2]>,
    /// So many rows from each multiple of it on are alike; all, if 0.
    alike: usize,
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
        let mut mask = Self { rows, cols, bits, starts, every: None, alike: 0 };
        mask.every = [2, 4, 8, 16].into_iter().find_map(|m| mask.counts(m).map(|n| [n, m]));
        for row in 1..rows {
            if mask.alike == 1 {
                break;
            }
            if mask.row(row) != mask.row(row - 1) {
                mask.alike = gcd(mask.alike, row);
            }
        }
        Ok(mask)
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

    /// The same mask with more entries kept: every group of `m` consecutive columns that keeps fewer than `n` keeps its
    /// first others too, so that the mask can be stored as n of m. Their weights should be 0.
    ///
    /// # Errors
    /// `InvalidArgument` if `m` is not 2, 4, 8 or 16, does not divide the number of columns, or a group keeps more.
    pub fn to_n_of_m(&self, n: usize, m: usize) -> Result<Self> {
        if !matches!(m, 2 | 4 | 8 | 16) || n > m || !self.cols.is_multiple_of(m) {
            return Err(Error::invalid(format!(
                "{n} of {m} in {} columns: allowed are n <= m, m = 2, 4, 8 or 16 that divides them",
                self.cols
            )));
        }
        let mut bits = self.bits.to_vec();
        let stride = self.cols.div_ceil(8);
        for row in 0..self.rows {
            for group in 0..self.cols / m {
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
        Self::new(self.rows, self.cols, bits.into())
    }

    /// `[n, m]` if every group of m consecutive columns keeps exactly n; the smallest m of 2, 4, 8 and 16.
    #[must_use]
    pub fn every(&self) -> Option<[usize; 2]> {
        self.every
    }

    /// The largest block `[rows, columns]` of at most `most` entries whose repetition from the first entry on has each
    /// block all kept or all dropped; blocks at the edges may be smaller.
    #[must_use]
    pub fn blocks(&self, most: usize) -> [usize; 2] {
        let rows = divisor(self.alike, self.rows, most);
        let mut wide = 0;
        for row in (0..self.rows).step_by(rows) {
            let mut before = None;
            for c in 0..self.cols {
                let kept = self.row(row)[c / 8] >> (c % 8) & 1;
                if before.replace(kept).is_some_and(|before| before != kept) {
                    wide = gcd(wide, c);
                }
                if wide == 1 {
                    return [rows, 1];
                }
            }
        }
        [rows, divisor(wide, self.cols, most / rows)]
    }

    /// So many consecutive rows are alike, from each multiple of the number on.
    #[must_use]
    pub fn alike(&self) -> usize {
        if self.alike == 0 { self.rows.max(1) } else { self.alike }
    }

    /// How many entries each group of `m` columns keeps, if all keep as many.
    fn counts(&self, m: usize) -> Option<usize> {
        if self.rows == 0 || self.cols == 0 || !self.cols.is_multiple_of(m) {
            return None;
        }
        let n = self.group(0, 0, m).count_ones();
        let groups = self.cols / m;
        let same = (0..self.rows)
            .all(|row| (0..groups).all(|group| self.group(row, group, m).count_ones() == n));
        same.then_some(n as usize)
    }

    /// The bits of group `group` of `m` columns; `m` is 2, 4, 8 or 16 and divides the columns.
    pub(super) fn group(&self, row: usize, group: usize, m: usize) -> u16 {
        let (bits, at) = (self.row(row), group * m);
        match m {
            16 => u16::from_le_bytes([bits[at / 8], bits[at / 8 + 1]]),
            _ => u16::from(bits[at / 8]) >> (at % 8) & ((1 << m) - 1),
        }
    }

    fn row(&self, row: usize) -> &[u8] {
        let stride = self.cols.div_ceil(8);
        &self.bits[row * stride..(row + 1) * stride]
    }

    /// All bits: rows padded to bytes, least significant bit first.
    pub(super) fn bits(&self) -> &[u8] {
        &self.bits
    }

    /// The support as kernels take it.
    #[must_use]
    pub fn support(&self) -> kernels::Support<'_> {
        kernels::Support {
            cols: self.cols,
            bits: &self.bits,
            starts: &self.starts,
            every: self.every.unwrap_or_default(),
            alike: self.alike(),
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

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The largest divisor of `number`, or of anything if that is 0, which is at most `most` and, at least 1, `all`.
fn divisor(number: usize, all: usize, most: usize) -> usize {
    let most = most.min(if number == 0 { all } else { number }).max(1);
    (1..=most).rev().find(|d| number.is_multiple_of(*d)).unwrap_or(1)
}
