//! The forms in which a support is stored.

use serde_json::json;

use super::plane::bands;
use super::registry::field;
use super::{Json, Mask, PackedPlane, Plane, SymbolsMut};
use crate::error::{Error, Result};
use crate::kernels::packed_len;

/// How a mask is written; each form holds some masks only, and those exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MaskForm {
    /// A bit an entry, rows padded to bytes: the symbols are those bytes.
    Bitmap,
    /// Every group of `m` columns keeps `n`: a symbol says which, by its rank in the combinatorial number system
    /// (the supports in the order of their bitmaps read as numbers).
    NOfM { n: usize, m: usize },
    /// A bit for each block of `rows` x `cols` entries, rows of blocks padded to bytes.
    Blocks { rows: usize, cols: usize },
}

/// Entries of a block, at most: what readers allocate stays within a known multiple of what they read.
const MOST_IN_BLOCK: usize = 4096;

impl MaskForm {
    /// The form that takes the fewest bytes; the first of equals.
    pub(super) fn smallest(mask: &Mask) -> Self {
        let shape @ [rows, cols] = mask.shape();
        let mut forms = vec![Self::Bitmap];
        if rows * cols > 0 {
            forms.extend(mask.every().map(|[n, m]| Self::NOfM { n, m }));
            let [rows, cols] = mask.blocks(MOST_IN_BLOCK);
            forms.push(Self::Blocks { rows, cols });
        }
        forms.retain(|form| form.check(shape).is_ok());
        forms.into_iter().min_by_key(|form| form.bytes(shape)).unwrap_or(Self::Bitmap)
    }

    /// Bytes that a mask takes.
    fn bytes(self, shape: [usize; 2]) -> usize {
        let [rows, symbols] = self.symbols(shape);
        rows * packed_len(symbols, u32::from(self.bits()))
    }

    /// Whether masks of a shape can have this form.
    pub(super) fn check(self, [_, cols]: [usize; 2]) -> Result<()> {
        let fits = match self {
            Self::Bitmap => true,
            Self::NOfM { n, m } => {
                matches!(m, 2 | 4 | 8 | 16)
                    && n <= m
                    && cols.is_multiple_of(m)
                    && choices(n, m) <= 256
            }
            Self::Blocks { rows, cols } => {
                let entries = rows.checked_mul(cols);
                entries.is_some_and(|entries| (1..=MOST_IN_BLOCK).contains(&entries))
            }
        };
        if fits { Ok(()) } else { Err(Error::corruption(format!("{self:?} of {cols} columns"))) }
    }

    /// Rows of symbols, and symbols of each.
    pub(super) fn symbols(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Bitmap => [rows, cols.div_ceil(8)],
            Self::NOfM { m, .. } => [rows, cols / m],
            Self::Blocks { rows: height, cols: width } => {
                [rows.div_ceil(height), cols.div_ceil(width).div_ceil(8)]
            }
        }
    }

    /// Bits of a symbol as packed.
    fn bits(self) -> u8 {
        match self {
            Self::NOfM { n, m } => (choices(n, m).max(2) - 1).ilog2() as u8 + 1,
            _ => 8,
        }
    }

    /// The symbols of a mask that has this form.
    pub(super) fn plane(self, mask: &Mask) -> Result<Box<dyn Plane>> {
        let [rows, count] = self.symbols(mask.shape());
        let mut symbols = Vec::with_capacity(rows * count);
        match self {
            Self::Bitmap => symbols.extend_from_slice(mask.bits()),
            Self::NOfM { n, m } => {
                let table = supports(n, m);
                for row in 0..rows {
                    for group in 0..count {
                        let rank = table.binary_search(&mask.group(row, group, m));
                        symbols.push(rank.map_err(|_| Error::invalid("a mask of another form"))? as u8);
                    }
                }
            }
            Self::Blocks { rows: height, cols: width } => {
                let across = mask.shape()[1].div_ceil(width);
                for row in 0..rows {
                    for byte in 0..count {
                        let blocks = (8 * byte..across.min(8 * byte + 8)).enumerate();
                        let kept =
                            blocks.filter(|(_, block)| mask.keeps(row * height, block * width));
                        symbols.push(kept.fold(0, |bits, (i, _)| bits | 1 << i));
                    }
                }
            }
        }
        Ok(Box::new(PackedPlane::pack(&symbols, rows, count, self.bits())?))
    }

    /// The mask whose symbols a plane holds.
    ///
    /// # Errors
    /// `Corruption` if the plane does not fit the shape, or for symbols that are none.
    pub(super) fn mask(self, shape: [usize; 2], plane: &dyn Plane) -> Result<Mask> {
        self.check(shape)?;
        let [rows, cols] = shape;
        let [height, count] = self.symbols(shape);
        let even = plane.support().is_none() && plane.rows() == height;
        if !even || plane.len(0..height) != height * count || plane.alphabet() > 256 {
            return Err(Error::corruption(format!("the plane of a {rows} x {cols} mask")));
        }
        let stride = cols.div_ceil(8);
        let mut bits = vec![0u8; rows * stride];
        let table = match self {
            Self::NOfM { n, m } => supports(n, m),
            _ => Vec::new(),
        };
        let mut symbols = Vec::new();
        for range in bands(height, count) {
            symbols.resize(range.len() * count, 0u8);
            plane.read(range.clone(), SymbolsMut::U8(&mut symbols))?;
            for (row, symbols) in range.zip(symbols.chunks_exact(count.max(1))) {
                match self {
                    Self::Bitmap => {
                        let row = &mut bits[row * stride..(row + 1) * stride];
                        row.copy_from_slice(symbols);
                    }
                    Self::NOfM { m, .. } => {
                        let row = &mut bits[row * stride..(row + 1) * stride];
                        for (group, symbol) in symbols.iter().enumerate() {
                            let support = table.get(usize::from(*symbol)).ok_or_else(|| {
                                Error::corruption(format!("support {symbol} of {}", table.len()))
                            })?;
                            put(row, group * m, *support);
                        }
                    }
                    Self::Blocks { rows: tall, cols: wide } => {
                        let (first, end) = (row * tall, (row * tall + tall).min(rows));
                        let across = cols.div_ceil(wide);
                        for (block, kept) in
                            (0..8 * count).map(|b| (b, symbols[b / 8] >> (b % 8) & 1 == 1))
                        {
                            if kept && block >= across {
                                return Err(Error::corruption("block bits past the end of a row"));
                            }
                            let columns = block * wide..((block + 1) * wide).min(cols);
                            for c in columns.filter(|_| kept) {
                                bits[first * stride + c / 8] |= 1 << (c % 8);
                            }
                        }
                        for row in first + 1..end {
                            let from = first * stride..(first + 1) * stride;
                            bits.copy_within(from, row * stride);
                        }
                    }
                }
            }
        }
        Mask::new(rows, cols, bits.into())
    }

    pub(super) fn describe(self) -> Json {
        match self {
            Self::Bitmap => json!({"form": "bitmap"}),
            Self::NOfM { n, m } => json!({"form": "n_of_m", "n": n, "m": m}),
            Self::Blocks { rows, cols } => json!({"form": "blocks", "block": [rows, cols]}),
        }
    }

    pub(super) fn read_from(json: &Json) -> Result<Self> {
        match field::<String>(json, "form")?.as_str() {
            "bitmap" => Ok(Self::Bitmap),
            "n_of_m" => Ok(Self::NOfM { n: field(json, "n")?, m: field(json, "m")? }),
            "blocks" => {
                let [rows, cols] = field(json, "block")?;
                Ok(Self::Blocks { rows, cols })
            }
            other => Err(Error::version(format!("unknown form `{other}` of a mask"))),
        }
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
