//! Interleaved range asymmetric numeral systems (Duda, "Asymmetric numeral systems", 2013; the streaming form and
//! the alias layout after Giesen, "Interleaved entropy coders", 2014): 128 states of 32 bits, 16-bit words.

use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::kernels::rans::{self, Cursor, LANES, LOWEST, Layout, SLACK};
use tensorpress_tensor::{Error, Result};

use super::slots::Slots;
use crate::bits::{BitReader, BitWriter};
use crate::model::Table;

/// Bytes of the states in a stream, on average: states are spread evenly over the octaves.
pub(crate) const STATE_BYTES: usize = 440;

/// Encodes runs of symbols, last run first.
#[derive(Debug)]
pub(crate) struct Encoder {
    isa: Isa,
    states: [u32; LANES],
    words: Vec<u8>,
    at: usize,
}

impl Encoder {
    /// Room for `count` symbols in all.
    pub(crate) fn new(isa: Isa, count: usize) -> Self {
        let room = 2 * count.next_multiple_of(LANES) + 2 * LANES;
        Self { isa, states: [LOWEST; LANES], words: vec![0; room], at: room }
    }

    /// Puts `symbols` before all that was encoded so far. Only the very last run (the first one encoded) may be
    /// shorter than a whole number of steps; it is filled up with the likeliest symbol that does not
    /// escape.
    pub(crate) fn prepend(&mut self, slots: &Slots, symbols: &[u8]) {
        let whole = symbols.len() / LANES * LANES;
        let rest = &symbols[whole..];
        if !rest.is_empty() {
            let mut step = [slots.likeliest(); LANES];
            step[..rest.len()].copy_from_slice(rest);
            self.at =
                rans::encode(self.isa, slots, &mut self.states, &step, &mut self.words, self.at);
        }
        let whole = &symbols[..whole];
        self.at = rans::encode(self.isa, slots, &mut self.states, whole, &mut self.words, self.at);
    }

    /// Appends states and words.
    pub(crate) fn finish(self, out: &mut Vec<u8>) {
        // Each state as the number of its bits below the leading one, from 16, and those bits: 4.5 bits shorter than
        // 32 on average.
        let mut bits = BitWriter::default();
        for state in self.states {
            let length = state.ilog2();
            bits.write(length - LOWEST.ilog2(), 4);
            bits.write(state ^ 1 << length, length);
        }
        out.extend_from_slice(&bits.finish());
        out.extend_from_slice(&self.words[self.at..]);
    }
}

/// Decodes runs of symbols, first run first.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    isa: Isa,
    cursor: Cursor<'a>,
}

impl<'a> Decoder<'a> {
    /// Starts on `len` bytes of states and words at the start of `bytes`. What lies behind them is read ahead and
    /// ignored; where that is too short, `padded` holds a copy.
    ///
    /// # Errors
    /// `InsufficientData` if `bytes` ends before them.
    pub(crate) fn new(
        isa: Isa,
        bytes: &'a [u8],
        len: usize,
        padded: &'a mut Vec<u8>,
    ) -> Result<Self> {
        let early = || Error::insufficient("rANS stream ends early");
        let mut from = BitReader::new(bytes.get(..len).ok_or_else(early)?);
        let mut states = [LOWEST; LANES];
        for state in &mut states {
            let length = LOWEST.ilog2() + from.read(4)?;
            *state = 1 << length | from.read(length)?;
        }
        if !from.is_aligned() {
            return Err(Error::corruption("bits behind the rANS states"));
        }
        let words = &bytes[len - from.remaining()..];
        let len = from.remaining();
        let words = if words.len() >= len + SLACK {
            words
        } else {
            padded.clear();
            padded.extend_from_slice(&words[..len]);
            padded.resize(len + SLACK, 0);
            padded
        };
        Ok(Self { isa, cursor: Cursor { states, words, at: 0, len } })
    }

    /// Decodes the next `out.len()` bytes, those that escape from `escapes`; only the last run may be no whole number
    /// of steps.
    ///
    /// # Errors
    /// `InsufficientData` if words or escapes end early.
    pub(crate) fn decode(
        &mut self,
        slots: &Slots,
        escapes: &mut &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let whole = out.len() / LANES * LANES;
        let (whole, rest) = out.split_at_mut(whole);
        let mut done = rans::decode(self.isa, slots, &mut self.cursor, escapes, whole);
        if !rest.is_empty() {
            let mut step = [0; LANES];
            done = done && rans::decode(self.isa, slots, &mut self.cursor, escapes, &mut step);
            rest.copy_from_slice(&step[..rest.len()]);
        }
        if done { Ok(()) } else { Err(early()) }
    }

    /// Decodes bf16 values straight from exponents and `raw` signs and mantissas, where the CPU has a kernel for it.
    pub(crate) fn decode_bf16(
        &mut self,
        slots: &Slots,
        escapes: &mut &[u8],
        raw: &[u8],
        out: &mut [u8],
    ) -> Option<Result<()>> {
        let done = rans::decode_bf16(self.isa, slots, &mut self.cursor, escapes, raw, out)?;
        Some(if done { Ok(()) } else { Err(early()) })
    }

    /// Checks that all words were used and that the states are back where encoding began.
    ///
    /// # Errors
    /// `Corruption`.
    pub(crate) fn finish(self) -> Result<()> {
        if self.cursor.at == self.cursor.len && self.cursor.states.iter().all(|x| *x == LOWEST) {
            return Ok(());
        }
        Err(Error::corruption("rANS stream does not end where it began"))
    }
}

fn early() -> Error {
    Error::insufficient("rANS stream ends early")
}

/// Maps bytes to symbols of a narrow table, collecting those that escape; bytes of a wide one are symbols already.
pub(crate) fn to_symbols(
    isa: Isa,
    table: &Table,
    slots: &Slots,
    bytes: &[u8],
    out: &mut Vec<u8>,
    escapes: &mut Vec<u8>,
) {
    out.clear();
    let Some(alias) = slots.alias() else { return out.extend_from_slice(bytes) };
    let map: [u8; 256] = std::array::from_fn(|b| match (table.freq(b as u8), alias.escape) {
        (0, Some(escape)) => escape,
        _ => slots.symbol_of(b as u8),
    });
    rans::map_bytes(isa, &map, alias.escape, bytes, out, escapes);
}
