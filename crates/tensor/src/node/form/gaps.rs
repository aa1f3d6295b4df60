use std::sync::Arc;

use serde_json::json;

use super::{MaskForm, unfit};
use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Json, Mask};

/// The gaps between the kept entries of the flattened matrix: what a support takes of which little stays.
///
/// A symbol below `2^bits - 1` says how many entries are dropped before one that stays; `2^bits - 1` itself says that so
/// many are dropped, and none stays yet. Symbols go on to the end of the matrix; the last may reach past it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gaps {
    bits: u8,
    count: usize,
}

impl Gaps {
    /// The form of this mask whose symbols, of 2 to 8 bits, take the fewest bits; of equals the one with fewer a symbol.
    #[must_use]
    pub fn of(mask: &Mask) -> Self {
        let forms = (2..=8).map(|bits| {
            let (mut count, most) = (0, most(bits));
            each_gap(mask, |gap, kept| {
                count += if kept { gap / most + 1 } else { gap.div_ceil(most) }
            });
            Self { bits, count }
        });
        forms.min_by_key(|form| form.count * usize::from(form.bits)).expect("seven forms")
    }

    pub(in crate::node) fn read_from(json: &Json) -> Result<Arc<dyn MaskForm>> {
        let form = Self { bits: field(json, "bits")?, count: field(json, "count")? };
        match form.bits {
            2..=8 => Ok(Arc::new(form)),
            bits => Err(Error::corruption(format!("gaps of {bits} bits: allowed are 2 to 8"))),
        }
    }
}

/// Entries that the last symbol of an alphabet stands for.
fn most(bits: u8) -> usize {
    (1 << bits) - 1
}

/// Calls `f` with the dropped entries before each kept one, and `true`; then with those after the last, and `false`.
fn each_gap(mask: &Mask, mut f: impl FnMut(usize, bool)) {
    let [rows, cols] = mask.shape();
    let mut next = 0;
    for row in 0..rows {
        mask.for_each_kept(row, |c| {
            f(row * cols + c - next, true);
            next = row * cols + c + 1;
        });
    }
    f(rows * cols - next, false);
}

impl MaskForm for Gaps {
    fn check(&self, [rows, cols]: [usize; 2]) -> Result<()> {
        // Every symbol stands for one entry at least.
        let fits = rows.checked_mul(cols).is_some_and(|entries| self.count <= entries);
        if fits { Ok(()) } else { Err(unfit(self, cols)) }
    }

    fn symbols(&self, _: [usize; 2]) -> [usize; 2] {
        [1, self.count]
    }

    fn bits(&self) -> u8 {
        self.bits
    }

    fn write(&self, mask: &Mask) -> Result<Vec<u8>> {
        let most = most(self.bits);
        let mut symbols = Vec::with_capacity(self.count);
        each_gap(mask, |gap, kept| {
            let escapes = if kept { gap / most } else { gap.div_ceil(most) };
            symbols.resize(symbols.len() + escapes, most as u8);
            symbols.extend(kept.then_some((gap % most) as u8));
        });
        match symbols.len() == self.count {
            true => Ok(symbols),
            false => Err(Error::invalid("a mask of another form")),
        }
    }

    fn read(
        &self,
        _: usize,
        symbols: &[u8],
        [rows, cols]: [usize; 2],
        bits: &mut [u8],
    ) -> Result<()> {
        let (entries, most, stride) = (rows * cols, most(self.bits), cols.div_ceil(8));
        let mut next = 0usize;
        for symbol in symbols {
            let gap = usize::from(*symbol);
            // Only an escape may reach past the end, and nothing may follow it.
            if next >= entries || (gap < most && next + gap >= entries) {
                return Err(Error::corruption("gaps past the end of a mask"));
            }
            next += gap;
            if gap < most {
                let (row, c) = (next / cols, next % cols);
                bits[row * stride + c / 8] |= 1 << (c % 8);
                next += 1;
            }
        }
        match next >= entries {
            true => Ok(()),
            false => Err(Error::corruption("gaps end before their mask")),
        }
    }

    fn describe(&self) -> Json {
        json!({"form": "gaps", "bits": self.bits, "count": self.count})
    }
}
