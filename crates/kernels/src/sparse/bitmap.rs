use std::ops::{Deref, Range};

use super::Support;

/// The support of a sparse matrix `[rows, cols]`, counted: one bit an entry, least significant bit first, each row padded
/// to bytes.
///
/// `B` holds the bytes; it must lend the same ones whenever it is asked, because kernels rely on the counts.
#[derive(Debug, Clone)]
pub struct Bitmap<B> {
    rows: usize,
    cols: usize,
    bits: B,
    /// Kept entries before each row, and in all.
    starts: Vec<usize>,
    /// `[n, m]` if every group of m columns keeps n; the smallest m.
    every: Option<[usize; 2]>,
    /// So many rows from each multiple of it on are alike; all, if 0.
    alike: usize,
}

/// Why bytes are not a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapFault {
    /// There are more or fewer than `rows * cols.div_ceil(8)`.
    Length,
    /// A padding bit of this row is set.
    Padding(usize),
}

impl<B: Deref<Target = [u8]>> Bitmap<B> {
    /// Counts the bits.
    ///
    /// # Errors
    ///
    /// If the length is wrong or a padding bit is set.
    pub fn new(rows: usize, cols: usize, bits: B) -> Result<Self, BitmapFault> {
        let stride = cols.div_ceil(8);
        if rows.checked_mul(stride) != Some(bits.len()) {
            return Err(BitmapFault::Length);
        }
        let mut starts = Vec::with_capacity(rows + 1);
        let mut kept = 0;
        for row in 0..rows {
            starts.push(kept);
            let bytes = &bits[row * stride..(row + 1) * stride];
            if !cols.is_multiple_of(8) && bytes[stride - 1] >> (cols % 8) != 0 {
                return Err(BitmapFault::Padding(row));
            }
            kept += bytes.iter().map(|b| b.count_ones() as usize).sum::<usize>();
        }
        starts.push(kept);
        let mut map = Self { rows, cols, bits, starts, every: None, alike: 0 };
        map.every = [2, 4, 8, 16].into_iter().find_map(|m| map.counts(m).map(|n| [n, m]));
        for row in 1..rows {
            if map.alike == 1 {
                break;
            }
            if map.row(row) != map.row(row - 1) {
                map.alike = gcd(map.alike, row);
            }
        }
        Ok(map)
    }

    /// `[rows, columns]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// All bits.
    #[must_use]
    pub fn bits(&self) -> &B {
        &self.bits
    }

    /// The bytes of a row.
    ///
    /// # Panics
    ///
    /// If out of bounds.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        let stride = self.cols.div_ceil(8);
        &self.bits[row * stride..(row + 1) * stride]
    }

    /// Whether entry (row, column) is kept.
    ///
    /// # Panics
    ///
    /// If out of bounds.
    #[must_use]
    pub fn keeps(&self, row: usize, col: usize) -> bool {
        assert!(row < self.rows && col < self.cols, "entry out of bounds");
        self.row(row)[col / 8] >> (col % 8) & 1 == 1
    }

    /// Entries kept in `rows`.
    ///
    /// # Panics
    ///
    /// If out of bounds.
    #[must_use]
    pub fn kept(&self, rows: Range<usize>) -> usize {
        self.starts[rows.end] - self.starts[rows.start]
    }

    /// Entries kept before `row`: the position of its first value in the compact order.
    ///
    /// # Panics
    ///
    /// If out of bounds.
    #[must_use]
    pub fn kept_before(&self, row: usize) -> usize {
        self.starts[row]
    }

    /// Calls `f(column)` for each kept column of `row`, ascending.
    ///
    /// # Panics
    ///
    /// If out of bounds.
    pub fn for_each_kept(&self, row: usize, mut f: impl FnMut(usize)) {
        for (i, byte) in self.row(row).iter().enumerate() {
            let mut rest = *byte;
            while rest != 0 {
                f(i * 8 + rest.trailing_zeros() as usize);
                rest &= rest - 1;
            }
        }
    }

    /// `[n, m]` if every group of m consecutive columns keeps exactly n; the smallest m of 2, 4, 8 and 16.
    #[must_use]
    pub fn every(&self) -> Option<[usize; 2]> {
        self.every
    }

    /// So many consecutive rows are alike, from each multiple of the number on.
    #[must_use]
    pub fn alike(&self) -> usize {
        if self.alike == 0 { self.rows.max(1) } else { self.alike }
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

    /// The bits of group `group` of `m` columns; `m` is 2, 4, 8 or 16 and divides the columns.
    ///
    /// # Panics
    ///
    /// If out of bounds.
    #[must_use]
    pub fn group(&self, row: usize, group: usize, m: usize) -> u16 {
        let (bits, at) = (self.row(row), group * m);
        match m {
            16 => u16::from_le_bytes([bits[at / 8], bits[at / 8 + 1]]),
            _ => u16::from(bits[at / 8]) >> (at % 8) & ((1 << m) - 1),
        }
    }

    /// The support as products take it.
    #[must_use]
    pub fn support(&self) -> Support<'_> {
        Support {
            cols: self.cols,
            bits: &self.bits,
            starts: &self.starts,
            every: self.every.unwrap_or_default(),
            alike: self.alike(),
        }
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
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The largest divisor of `number`, or of anything if that is 0, which is at most `most` and, at least 1, `all`.
fn divisor(number: usize, all: usize, most: usize) -> usize {
    let most = most.min(if number == 0 { all } else { number }).max(1);
    (1..=most).rev().find(|d| number.is_multiple_of(*d)).unwrap_or(1)
}
