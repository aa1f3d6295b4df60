//! Probability models over exact integers: what is written depends on them bit for bit, so none rounds differently
//! on another machine.

mod adaptive;
mod buckets;
mod gaussian;
mod table;

use std::fmt::Debug;

use crate::coder::range::Interval;

pub use adaptive::AdaptiveBytes;
pub use buckets::Buckets;
pub use gaussian::{Gaussian, Gaussians};
pub use table::{Counts, Table};
pub use tensorpress_tensor::kernels::rans::{PROB_BITS, PROB_TOTAL};

/// What a coder is told about its symbols; encoder and decoder must be told the same.
#[derive(Debug)]
#[non_exhaustive]
pub enum Model<'a> {
    /// One table for all symbols.
    Static(&'a Table),
    /// Learns from each symbol for the next ones; give the decoder a model in the state the encoder's began in.
    Adaptive(&'a mut dyn AdaptiveModel),
    /// A distribution for each symbol of its own.
    PerSymbol(&'a dyn SymbolModels),
}

/// A model of bytes that changes with every one. (Do not implement it with floats that another machine could round
/// otherwise.)
pub trait AdaptiveModel: Debug + Send {
    /// The sum of all sizes now; at most 2^16.
    fn total(&self) -> u32;
    /// The interval of a symbol, if it has one.
    fn interval(&self, symbol: u8) -> Option<Interval>;
    /// The symbol whose interval holds `position` (below [`AdaptiveModel::total`]).
    fn find(&self, position: u32) -> (u8, Interval);
    /// Learns that `symbol` came.
    fn update(&mut self, symbol: u8);
}

/// A distribution over bytes for each of a row of symbols.
pub trait SymbolModels: Debug + Send + Sync {
    /// Number of symbols.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The sum of all sizes, the same for every symbol; at most 2^16.
    fn total(&self) -> u32;
    /// The interval of a value of symbol `i`, if it has one.
    fn interval(&self, i: usize, value: u8) -> Option<Interval>;
    /// The value of symbol `i` whose interval holds `position`.
    fn find(&self, i: usize, position: u32) -> (u8, Interval);
}
