//! Range coding of bytes under every kind of model.

use super::range::{Interval, RangeDecoder, RangeEncoder};
use crate::model::{AdaptiveModel, Model, PROB_TOTAL, Table};
use tensorpress_tensor::{Error, Result};

/// A static table as intervals.
struct Intervals {
    starts: [u32; 258],
    symbol_at: Vec<u16>,
}

/// The entry of the escape.
const ESCAPE: usize = 256;

impl Intervals {
    fn new(table: &Table) -> Self {
        let mut starts = [0; 258];
        let mut symbol_at = vec![0; PROB_TOTAL as usize];
        for entry in 0..=ESCAPE {
            let size = if entry == ESCAPE { table.escape() } else { table.freq(entry as u8) };
            let start = starts[entry];
            starts[entry + 1] = start + u32::from(size);
            symbol_at[start as usize..][..usize::from(size)].fill(entry as u16);
        }
        Self { starts, symbol_at }
    }

    fn of(&self, entry: usize) -> Interval {
        let start = self.starts[entry];
        Interval { start, size: self.starts[entry + 1] - start, total: PROB_TOTAL }
    }
}

/// Appends the coded symbols (wider alphabets: [`crate::model::Buckets`]): at most 16 bytes more than their information
/// content under the model.
///
/// # Errors
/// `InvalidArgument` for a symbol without probability, `ShapeMismatch` for another number of models than symbols.
pub fn encode(symbols: &[u8], model: Model<'_>, out: &mut Vec<u8>) -> Result<()> {
    let mut encoder = RangeEncoder::default();
    match model {
        Model::Static(table) => {
            check_known(table, symbols)?;
            let intervals = Intervals::new(table);
            for symbol in symbols {
                if table.freq(*symbol) > 0 {
                    encoder.encode(intervals.of(usize::from(*symbol)));
                } else {
                    encoder.encode(intervals.of(ESCAPE));
                    encoder.encode_raw(u32::from(*symbol), 8);
                }
            }
        }
        Model::Adaptive(model) => {
            for symbol in symbols {
                let interval = model.interval(*symbol).ok_or_else(|| not_in_model(*symbol))?;
                encoder.encode(interval);
                model.update(*symbol);
            }
        }
        Model::PerSymbol(models) => {
            check_count(models.len(), symbols.len())?;
            for (i, symbol) in symbols.iter().enumerate() {
                let interval = models.interval(i, *symbol);
                encoder.encode(interval.ok_or_else(|| not_in_model(*symbol))?);
            }
        }
    }
    out.extend_from_slice(&encoder.finish());
    Ok(())
}

/// Decodes `out.len()` symbols from all of `bytes`, under the model that encoded them.
///
/// # Errors
/// `Corruption`; `ShapeMismatch` as for encoding.
pub fn decode(bytes: &[u8], model: Model<'_>, out: &mut [u8]) -> Result<()> {
    let mut decoder = RangeDecoder::new(bytes);
    match model {
        Model::Static(table) => {
            let intervals = Intervals::new(table);
            for out in out.iter_mut() {
                let at = decoder.position(PROB_TOTAL) as usize;
                let entry = usize::from(intervals.symbol_at[at]);
                decoder.consume(intervals.of(entry));
                *out = if entry == ESCAPE { decoder.decode_raw(8) as u8 } else { entry as u8 };
            }
        }
        Model::Adaptive(model) => decode_adaptive(&mut decoder, model, out),
        Model::PerSymbol(models) => {
            check_count(models.len(), out.len())?;
            for (i, out) in out.iter_mut().enumerate() {
                let (symbol, interval) = models.find(i, decoder.position(models.total()));
                decoder.consume(interval);
                *out = symbol;
            }
        }
    }
    decoder.finish()
}

fn decode_adaptive(decoder: &mut RangeDecoder<'_>, model: &mut dyn AdaptiveModel, out: &mut [u8]) {
    for out in out {
        let (symbol, interval) = model.find(decoder.position(model.total()));
        decoder.consume(interval);
        model.update(symbol);
        *out = symbol;
    }
}

fn not_in_model(symbol: u8) -> Error {
    Error::invalid(format!("symbol {symbol} has no probability in the model"))
}

fn check_known(table: &Table, symbols: &[u8]) -> Result<()> {
    match symbols.iter().find(|s| table.freq(**s) == 0) {
        Some(symbol) if table.escape() == 0 => Err(not_in_model(*symbol)),
        _ => Ok(()),
    }
}

fn check_count(models: usize, symbols: usize) -> Result<()> {
    if models == symbols {
        return Ok(());
    }
    Err(Error::shape(format!("{models} models for {symbols} symbols")))
}
