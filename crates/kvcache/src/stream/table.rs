use ndarray::ArrayView2;
use tensorpress_tensor::{Error, Result, ndarray};

use super::symbols::Bins;

/// The most symbols that a table of the released code has; where more are needed there is room for more.
const SYMBOLS: usize = 32;

/// How often each symbol of one channel is met, as sums in 65536ths: entry s is where symbol s begins, the last one where
/// all end (65536, written as 65535). Every symbol keeps at least one part, met or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table(pub(super) Vec<u16>);

impl Table {
    /// Of how often each symbol was met: floor((65535 - n) c / total) + s, where c of the symbols met are less than s, and
    /// n is the number of symbols, at least 32.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 256 symbols.
    pub fn new(counts: &[u64]) -> Result<Self> {
        if counts.len() > 256 {
            return Err(Error::invalid(format!("{} symbols: at most 256", counts.len())));
        }
        let symbols = counts.len().max(SYMBOLS);
        let total: u64 = counts.iter().sum::<u64>().max(1);
        let room = 65535 - symbols as u64;
        let mut below = 0;
        let mut entries = Vec::with_capacity(symbols + 1);
        for s in 0..=symbols {
            // The sum is at most 65535.
            let start = u128::from(room) * u128::from(below) / u128::from(total) + s as u128;
            entries.push(start as u16);
            below += counts.get(s).copied().unwrap_or(0);
        }
        Ok(Self(entries))
    }

    /// Where each symbol begins, and where all end.
    #[must_use]
    pub fn entries(&self) -> &[u16] {
        &self.0
    }

    /// How many symbols it has.
    #[must_use]
    pub fn symbols(&self) -> usize {
        self.0.len() - 1
    }

    /// First and last part of a symbol.
    pub(super) fn range(&self, symbol: usize) -> (u32, u32) {
        let end =
            if symbol + 1 == self.symbols() { 1 << 16 } else { u32::from(self.0[symbol + 1]) };
        (u32::from(self.0[symbol]), end)
    }

    /// The symbol that a part belongs to.
    pub(super) fn symbol(&self, part: u32) -> usize {
        let begun = self.0[..self.symbols()].partition_point(|start| u32::from(*start) <= part);
        begun.saturating_sub(1)
    }
}

/// A [`Table`] for each channel of one layer's keys or values. Measured on other texts they are part of the model and cost
/// nothing; measured on a chunk they are written with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    counts: Vec<Vec<u64>>,
    tables: Vec<Table>,
}

impl Tables {
    /// Of the symbols `[tokens, channels]` of one layer.
    ///
    /// # Errors
    /// `InvalidArgument` for a symbol that there is not.
    pub fn measure(symbols: ArrayView2<'_, u8>, bins: Bins) -> Result<Self> {
        let nothing = vec![vec![0; bins.symbols()]; symbols.ncols()];
        Self { counts: nothing, tables: Vec::new() }.and(symbols)
    }

    /// Takes the symbols of one more text.
    ///
    /// # Errors
    /// `InvalidArgument` for a symbol that there is not, `ShapeMismatch` for other channels.
    pub fn and(mut self, symbols: ArrayView2<'_, u8>) -> Result<Self> {
        if symbols.ncols() != self.counts.len() {
            let (found, channels) = (symbols.ncols(), self.counts.len());
            return Err(Error::shape(format!("{found} channels of symbols: {channels} expected")));
        }
        for row in symbols.rows() {
            for (symbol, counts) in row.iter().zip(&mut self.counts) {
                let all = counts.len();
                let count = counts
                    .get_mut(usize::from(*symbol))
                    .ok_or_else(|| Error::invalid(format!("symbol {symbol}: there are {all}")))?;
                *count += 1;
            }
        }
        self.tables = self.counts.iter().map(|c| Table::new(c)).collect::<Result<_>>()?;
        Ok(self)
    }

    /// By channel.
    #[must_use]
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }
}
