use std::fmt::Debug;

use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::{Error, Result};

use super::huffman;
use super::range::{Interval, RangeDecoder, RangeEncoder};
use super::rans::{Decoder, Encoder, to_symbols};
use super::slots::Slots;
use crate::model::{AdaptiveModel, Model, PROB_TOTAL, Table};
use crate::varint::{read_varint, write_varint};

/// A coder of bytes (wider alphabets: [`crate::model::Buckets`]) under a model that encoder and decoder share.
///
/// The coded length is the symbols' information content under the model plus a small constant: at most 0.1% and 600
/// bytes for [`Rans`], 16 bytes for [`Range`]; [`Huffman`] rounds each symbol's content to whole bits.
pub trait EntropyCoder: Debug + Send + Sync {
    /// Name in recipes and reports.
    fn id(&self) -> &'static str;

    /// Appends the coded symbols.
    ///
    /// # Errors
    /// `Unsupported` for models that this coder does not take; `InvalidArgument` for a symbol without probability.
    fn encode(&self, symbols: &[u8], model: Model<'_>, out: &mut Vec<u8>) -> Result<()>;

    /// Decodes `out.len()` symbols from all of `bytes`.
    ///
    /// # Errors
    /// `Unsupported` as for encoding; `Corruption` or `InsufficientData`.
    fn decode(&self, bytes: &[u8], model: Model<'_>, out: &mut [u8]) -> Result<()>;
}

fn static_only<'a>(coder: &dyn EntropyCoder, model: Model<'a>) -> Result<&'a Table> {
    match model {
        Model::Static(table) => Ok(table),
        other => {
            Err(Error::unsupported(format!("{} coding of {} models", coder.id(), other.name())))
        }
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

/// Interleaved rANS: static tables, fastest to decode; 512 bytes of states.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rans;

impl EntropyCoder for Rans {
    fn id(&self) -> &'static str {
        "rans"
    }

    fn encode(&self, symbols: &[u8], model: Model<'_>, out: &mut Vec<u8>) -> Result<()> {
        let table = static_only(self, model)?;
        check_known(table, symbols)?;
        let mut escapes = Vec::new();
        let mut encoder = None;
        match table.only() {
            Some(Some(_)) => {}
            Some(None) => escapes.extend_from_slice(symbols),
            None => {
                let slots = Slots::new(table);
                let mut coded = Vec::with_capacity(symbols.len());
                to_symbols(Isa::detect(), table, &slots, symbols, &mut coded, &mut escapes);
                let encoder = encoder.insert(Encoder::new(Isa::detect(), coded.len()));
                encoder.prepend(&slots, &coded);
            }
        }
        write_varint(escapes.len() as u64, out);
        out.extend_from_slice(&escapes);
        if let Some(encoder) = encoder {
            encoder.finish(out);
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8], model: Model<'_>, out: &mut [u8]) -> Result<()> {
        let table = static_only(self, model)?;
        let mut rest = bytes;
        let escapes = usize::try_from(read_varint(&mut rest)?).unwrap_or(usize::MAX);
        let (mut escapes, stream) = rest
            .split_at_checked(escapes)
            .ok_or_else(|| Error::insufficient("escapes end early"))?;
        let nothing_left = |left: &[u8]| match left {
            [] => Ok(()),
            _ => Err(Error::corruption("bytes behind the code")),
        };
        match table.only() {
            Some(Some(byte)) => {
                out.fill(byte);
                nothing_left(stream)?;
            }
            Some(None) if escapes.len() == out.len() => {
                out.copy_from_slice(escapes);
                return nothing_left(stream);
            }
            Some(None) => return Err(Error::corruption("as many escapes as symbols expected")),
            None => {
                let slots = Slots::new(table);
                let mut padded = Vec::new();
                let mut decoder = Decoder::new(Isa::detect(), stream, stream.len(), &mut padded)?;
                decoder.decode(&slots, &mut escapes, out)?;
                decoder.finish()?;
            }
        }
        nothing_left(escapes)
    }
}

/// Canonical Huffman codes of at most 12 bits, their lengths derived from the table: no escapes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Huffman;

impl Huffman {
    fn lengths(self, model: Model<'_>) -> Result<huffman::Lengths> {
        let table = static_only(&self, model)?;
        if table.escape() > 0 {
            return Err(Error::unsupported("Huffman coding of a table with an escape"));
        }
        Ok(huffman::Lengths::new(&std::array::from_fn(|s| u32::from(table.freq(s as u8)))))
    }
}

impl EntropyCoder for Huffman {
    fn id(&self) -> &'static str {
        "huffman"
    }

    fn encode(&self, symbols: &[u8], model: Model<'_>, out: &mut Vec<u8>) -> Result<()> {
        let lengths = self.lengths(model)?;
        if let Some(symbol) = symbols.iter().find(|s| !lengths.contains(**s)) {
            return Err(not_in_model(*symbol));
        }
        huffman::encode_with(&lengths, symbols, out)
    }

    fn decode(&self, bytes: &[u8], model: Model<'_>, out: &mut [u8]) -> Result<()> {
        huffman::decode_with(&self.lengths(model)?, bytes, out)
    }
}

/// Range coding: every kind of model, one symbol at a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Range;

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

impl EntropyCoder for Range {
    fn id(&self) -> &'static str {
        "range"
    }

    fn encode(&self, symbols: &[u8], model: Model<'_>, out: &mut Vec<u8>) -> Result<()> {
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

    fn decode(&self, bytes: &[u8], model: Model<'_>, out: &mut [u8]) -> Result<()> {
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
}

fn decode_adaptive(decoder: &mut RangeDecoder<'_>, model: &mut dyn AdaptiveModel, out: &mut [u8]) {
    for out in out {
        let (symbol, interval) = model.find(decoder.position(model.total()));
        decoder.consume(interval);
        model.update(symbol);
        *out = symbol;
    }
}

fn check_count(models: usize, symbols: usize) -> Result<()> {
    if models == symbols {
        return Ok(());
    }
    Err(Error::shape(format!("{models} models for {symbols} symbols")))
}
