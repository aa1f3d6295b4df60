use std::fmt;
use std::sync::Arc;

use serde_json::json;

use super::{MaskForm, unfit};
use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Json, Mask};

/// Every group of `m` columns keeps `n`: a symbol says which, by its rank in the combinatorial number system (the supports
/// in the order of their bitmaps read as numbers).
#[derive(Clone, PartialEq, Eq)]
pub struct NOfM {
    n: usize,
    m: usize,
    /// All supports, ascending; none if there are too many.
    supports: Vec<u16>,
}

impl fmt::Debug for NOfM {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NOfM").field("n", &self.n).field("m", &self.m).finish()
    }
}

impl NOfM {
    /// Groups of `m` columns that keep `n` each; fits no mask unless m is 2, 4, 8 or 16 and there are at most 256 supports.
    #[must_use]
    pub fn new(n: usize, m: usize) -> Self {
        let possible = matches!(m, 2 | 4 | 8 | 16) && n <= m && choices(n, m) <= 256;
        Self { n, m, supports: if possible { supports(n, m) } else { Vec::new() } }
    }

    pub(in crate::node) fn read_from(json: &Json) -> Result<Arc<dyn MaskForm>> {
        Ok(Arc::new(Self::new(field(json, "n")?, field(json, "m")?)))
    }
}

impl MaskForm for NOfM {
    fn check(&self, [_, cols]: [usize; 2]) -> Result<()> {
        let fits = !self.supports.is_empty() && cols.is_multiple_of(self.m);
        if fits { Ok(()) } else { Err(unfit(self, cols)) }
    }

    fn symbols(&self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        [rows, cols / self.m]
    }

    fn bits(&self) -> u8 {
        (self.supports.len().max(2) - 1).ilog2() as u8 + 1
    }

    fn write(&self, mask: &Mask) -> Result<Vec<u8>> {
        let [rows, groups] = self.symbols(mask.shape());
        let mut symbols = Vec::with_capacity(rows * groups);
        for row in 0..rows {
            for group in 0..groups {
                let rank = self.supports.binary_search(&mask.group(row, group, self.m));
                symbols.push(rank.map_err(|_| Error::invalid("a mask of another form"))? as u8);
            }
        }
        Ok(symbols)
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
        for (group, symbol) in symbols.iter().enumerate() {
            let support = self.supports.get(usize::from(*symbol)).ok_or_else(|| {
                Error::corruption(format!("support {symbol} of {}", self.supports.len()))
            })?;
            put(row, group * self.m, *support);
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        json!({"form": "n_of_m", "n": self.n, "m": self.m})
    }
}

/// Supports of `n` of `m` entries: C(m, n).
fn choices(n: usize, m: usize) -> usize {
    (0..n.min(m - n)).fold(1, |count, i| count * (m - i) / (i + 1))
}

/// All supports of `n` of `m` entries, ascending.
fn supports(n: usize, m: usize) -> Vec<u16> {
    (0..=u16::MAX >> (16 - m)).filter(|support| support.count_ones() as usize == n).collect()
}

/// Sets up to 16 bits from bit `at` on, a multiple of their number.
fn put(bits: &mut [u8], at: usize, support: u16) {
    let [low, high] = (support << (at % 8)).to_le_bytes();
    bits[at / 8] |= low;
    if high != 0 {
        bits[at / 8 + 1] |= high;
    }
}
