use std::fmt::Debug;
use std::ops::Range;

use super::Plane;
use crate::error::{Error, Result};
use crate::kernels;

/// The type of a plane's symbols: a byte each for alphabets of at most 256 symbols, else two bytes.
pub trait Symbol:
    Copy + Debug + Default + Ord + Into<u16> + Into<f32> + Into<usize> + Send + Sync + 'static
{
    /// Bits of a packed symbol that this type is for: 1 to 8, or 9 to 16.
    const BITS: std::ops::RangeInclusive<u8>;

    /// Packs symbols of `bits` bits, least significant bit first, as [`kernels::pack_bits`].
    fn pack(symbols: &[Self], bits: u32, out: &mut [u8]);

    /// Unpacks `out.len()` symbols from number `start` on.
    fn unpack(packed: &[u8], bits: u32, start: usize, out: &mut [Self]);

    /// These symbols, their width forgotten.
    fn lend(symbols: &[Self]) -> Symbols<'_>;

    /// The buffer, its width forgotten.
    fn lend_mut(symbols: &mut [Self]) -> SymbolsMut<'_>;
}

impl Symbol for u8 {
    const BITS: std::ops::RangeInclusive<u8> = 1..=8;

    fn pack(symbols: &[Self], bits: u32, out: &mut [u8]) {
        kernels::pack_bits(symbols, bits, out);
    }

    fn unpack(packed: &[u8], bits: u32, start: usize, out: &mut [Self]) {
        kernels::unpack_bits(packed, bits, start, out);
    }

    fn lend(symbols: &[Self]) -> Symbols<'_> {
        Symbols::U8(symbols)
    }

    fn lend_mut(symbols: &mut [Self]) -> SymbolsMut<'_> {
        SymbolsMut::U8(symbols)
    }
}

impl Symbol for u16 {
    const BITS: std::ops::RangeInclusive<u8> = 9..=16;

    fn pack(symbols: &[Self], bits: u32, out: &mut [u8]) {
        kernels::pack_wide(symbols, bits, out);
    }

    fn unpack(packed: &[u8], bits: u32, start: usize, out: &mut [Self]) {
        kernels::unpack_wide(packed, bits, start, out);
    }

    fn lend(symbols: &[Self]) -> Symbols<'_> {
        Symbols::U16(symbols)
    }

    fn lend_mut(symbols: &mut [Self]) -> SymbolsMut<'_> {
        SymbolsMut::U16(symbols)
    }
}

/// Symbols in the width of their plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symbols<'a> {
    /// Of an alphabet of at most 256.
    U8(&'a [u8]),
    /// Of a wider one.
    U16(&'a [u16]),
}

impl<'a> Symbols<'a> {
    /// How many there are.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            Self::U8(symbols) => symbols.len(),
            Self::U16(symbols) => symbols.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// If out of bounds.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::U8(symbols) => Self::U8(&symbols[range]),
            Self::U16(symbols) => Self::U16(&symbols[range]),
        }
    }

    /// The one at a place.
    ///
    /// # Panics
    /// If out of bounds.
    #[must_use]
    pub fn at(self, place: usize) -> u16 {
        match self {
            Self::U8(symbols) => u16::from(symbols[place]),
            Self::U16(symbols) => symbols[place],
        }
    }

    /// All of them, ascending in place.
    pub fn iter(self) -> impl Iterator<Item = u16> + 'a {
        (0..self.len()).map(move |place| self.at(place))
    }
}

/// A buffer for symbols in the width of their plane.
#[derive(Debug)]
pub enum SymbolsMut<'a> {
    /// For an alphabet of at most 256.
    U8(&'a mut [u8]),
    /// For a wider one.
    U16(&'a mut [u16]),
}

impl SymbolsMut<'_> {
    /// How many fit.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(symbols) => symbols.len(),
            Self::U16(symbols) => symbols.len(),
        }
    }

    /// Whether none fit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Panics unless the buffer has the width of an alphabet and takes `len` symbols: what every [`Plane::read`]
    /// asks of its caller.
    ///
    /// # Panics
    /// As said.
    pub fn check(&self, alphabet: u32, len: usize) {
        assert_eq!(self.len(), len, "output length");
        assert_eq!(matches!(self, Self::U16(_)), alphabet > 256, "output width");
    }
}

/// Symbols read from a plane, in its width; the buffer is used again.
#[derive(Debug, Clone)]
pub enum SymbolBuf {
    /// Of an alphabet of at most 256.
    U8(Vec<u8>),
    /// Of a wider one.
    U16(Vec<u16>),
}

impl SymbolBuf {
    /// An empty buffer for symbols of a plane.
    #[must_use]
    pub fn of(plane: &dyn Plane) -> Self {
        if plane.alphabet() > 256 { Self::U16(Vec::new()) } else { Self::U8(Vec::new()) }
    }

    /// Reads the symbols of some rows of a plane of this width.
    ///
    /// # Errors
    /// As [`Plane::read`].
    ///
    /// # Panics
    /// If `rows` is out of bounds, or the width another.
    pub fn read(&mut self, plane: &dyn Plane, rows: Range<usize>) -> Result<Symbols<'_>> {
        let len = plane.len(rows.clone());
        match self {
            Self::U8(symbols) => {
                symbols.resize(len, 0);
                plane.read(rows, SymbolsMut::U8(symbols))?;
            }
            Self::U16(symbols) => {
                symbols.resize(len, 0);
                plane.read(rows, SymbolsMut::U16(symbols))?;
            }
        }
        Ok(self.lend())
    }

    /// What was read last.
    #[must_use]
    pub fn lend(&self) -> Symbols<'_> {
        match self {
            Self::U8(symbols) => Symbols::U8(symbols),
            Self::U16(symbols) => Symbols::U16(symbols),
        }
    }
}

/// Bits that tell the symbols of an alphabet apart; at least 1.
pub(crate) fn bits_of(alphabet: u32) -> u8 {
    (alphabet.max(2) - 1).ilog2() as u8 + 1
}

/// Checks that all symbols fit `bits` bits, which are those of their type.
pub(super) fn check_symbols<S: Symbol>(symbols: &[S], bits: u8) -> Result<()> {
    let allowed = S::BITS;
    if !allowed.contains(&bits) {
        let (least, most) = (allowed.start(), allowed.end());
        return Err(Error::invalid(format!("bits = {bits}: allowed are {least} to {most}")));
    }
    let most: Option<u16> = symbols.iter().copied().max().map(Into::into);
    match most {
        Some(most) if u32::from(most) >> bits != 0 => {
            Err(Error::invalid(format!("code {most} does not fit {bits} bits")))
        }
        _ => Ok(()),
    }
}

/// Reads the kept entries of a band of rows after another from a plane of even rows, in compact order.
pub(super) fn read_kept<S: Symbol>(plane: &dyn Plane, mask: &super::Mask) -> Result<Vec<S>> {
    let [rows, cols] = mask.shape();
    let mut kept = Vec::with_capacity(mask.kept_before(rows));
    let mut band = Vec::new();
    for range in bands(rows, cols) {
        band.resize(range.len() * cols, S::default());
        plane.read(range.clone(), S::lend_mut(&mut band))?;
        for (row, symbols) in range.zip(band.chunks_exact(cols.max(1))) {
            mask.for_each_kept(row, |c| kept.push(symbols[c]));
        }
    }
    Ok(kept)
}

/// Bands of rows of about 2^17 symbols: coded planes decode many rows at once.
pub(crate) fn bands(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    let band = ((1 << 17) / cols.max(1)).max(1);
    (0..rows).step_by(band).map(move |first| first..(first + band).min(rows))
}
