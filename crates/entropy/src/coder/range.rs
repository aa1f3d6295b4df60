//! Range coding (Martin, "Range encoding", 1979; carries after Subbotin and LZMA): one symbol after another, each under
//! any model, also one that learns from the symbols before.

use tensorpress_tensor::{Error, Result};

pub use super::modelled::{decode, encode};

/// A symbol's share of the unit interval: `start..start + size` of `total`, which is at most 2^16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Where it begins.
    pub start: u32,
    /// How long it is; not 0.
    pub size: u32,
    /// The length of all intervals.
    pub total: u32,
}

/// The range is brought back above this after every symbol.
const LEAST: u32 = 1 << 24;

/// Bits of the probability of a binary decision.
pub const BIT_PROB_BITS: u32 = 16;

/// Writes symbols.
#[derive(Debug)]
pub struct RangeEncoder {
    low: u64,
    range: u32,
    /// The byte before the pending ones, once there is one.
    cache: Option<u8>,
    /// Bytes 0xff after it that a carry would turn to 0.
    pending: u64,
    bytes: Vec<u8>,
}

impl Default for RangeEncoder {
    fn default() -> Self {
        Self { low: 0, range: u32::MAX, cache: None, pending: 0, bytes: Vec::new() }
    }
}

impl RangeEncoder {
    /// Encodes a symbol with this interval.
    #[inline]
    pub fn encode(&mut self, interval: Interval) {
        let unit = self.range / interval.total;
        self.low += u64::from(unit) * u64::from(interval.start);
        self.range = unit * interval.size;
        self.normalise();
    }

    /// Encodes a decision; `one` is the probability of true in units of 2^-16, neither 0 nor 2^16.
    #[inline]
    pub fn encode_bit(&mut self, bit: bool, one: u32) {
        let bound = (self.range >> BIT_PROB_BITS) * one;
        if bit {
            self.range = bound;
        } else {
            self.low += u64::from(bound);
            self.range -= bound;
        }
        self.normalise();
    }

    /// Encodes the low `bits` (at most 16) of `value` as they are.
    #[inline]
    pub fn encode_raw(&mut self, value: u32, bits: u32) {
        self.encode(Interval { start: value, size: 1, total: 1 << bits });
    }

    #[inline]
    fn normalise(&mut self) {
        while self.range < LEAST {
            self.shift();
            self.range <<= 8;
        }
    }

    fn shift(&mut self) {
        let carry = (self.low >> 32) as u8;
        if carry == 1 || self.low < 0xff00_0000 {
            if let Some(cache) = self.cache {
                self.bytes.push(cache.wrapping_add(carry));
            }
            for _ in 0..self.pending {
                self.bytes.push(0xffu8.wrapping_add(carry));
            }
            self.pending = 0;
            self.cache = Some((self.low >> 24) as u8);
        } else {
            self.pending += 1;
        }
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    /// Ends the code: zeros that a decoder can imagine are left away.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        // The value in the last interval with the most zeros at its end.
        let top = self.low + u64::from(self.range) - 1;
        for bits in (0..=32).rev() {
            let value = top >> bits << bits;
            if value >= self.low {
                self.low = value;
                break;
            }
        }
        for _ in 0..5 {
            self.shift();
        }
        while self.bytes.last() == Some(&0) {
            self.bytes.pop();
        }
        self.bytes
    }
}

/// Reads symbols back.
#[derive(Debug)]
pub struct RangeDecoder<'a> {
    bytes: &'a [u8],
    at: usize,
    code: u32,
    range: u32,
}

impl<'a> RangeDecoder<'a> {
    /// Starts on what [`RangeEncoder::finish`] gave.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, at: 0, code: 0, range: u32::MAX };
        for _ in 0..4 {
            decoder.code = decoder.code << 8 | decoder.next();
        }
        decoder
    }

    #[inline]
    fn next(&mut self) -> u32 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        u32::from(byte)
    }

    /// Where the next symbol lies in a model of this total; [`RangeDecoder::consume`] must follow.
    #[inline]
    #[must_use]
    pub fn position(&self, total: u32) -> u32 {
        (self.code / (self.range / total)).min(total - 1)
    }

    /// Takes the symbol whose interval holds that position.
    #[inline]
    pub fn consume(&mut self, interval: Interval) {
        let unit = self.range / interval.total;
        // Damaged codes may lie beyond the last interval; they decode to something.
        self.code = self.code.wrapping_sub(unit * interval.start);
        self.range = unit * interval.size;
        self.normalise();
    }

    /// Decodes a decision.
    #[inline]
    pub fn decode_bit(&mut self, one: u32) -> bool {
        let bound = (self.range >> BIT_PROB_BITS) * one;
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code -= bound;
            self.range -= bound;
        }
        self.normalise();
        bit
    }

    /// Decodes `bits` (at most 16) as they are.
    #[inline]
    pub fn decode_raw(&mut self, bits: u32) -> u32 {
        let start = self.position(1 << bits);
        self.consume(Interval { start, size: 1, total: 1 << bits });
        start
    }

    #[inline]
    fn normalise(&mut self) {
        while self.range < LEAST {
            self.code = self.code << 8 | self.next();
            self.range <<= 8;
        }
    }

    /// Checks that the code ends where its symbols do.
    ///
    /// # Errors
    /// `Corruption` if bytes are left. (Bytes that are missing are taken for zeros: a checksum must find that.)
    pub fn finish(self) -> Result<()> {
        if self.at < self.bytes.len() {
            return Err(Error::corruption("bytes behind the range code"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_run_through_pending_bytes() {
        // Intervals at the very top make low creep towards a carry for a long time.
        let mut encoder = RangeEncoder::default();
        let symbols: Vec<u32> =
            (0..5000u32).map(|i| if i % 97 == 96 { 0 } else { 65_534 + i % 2 }).collect();
        let interval = |s: u32| Interval { start: s, size: 1, total: 1 << 16 };
        symbols.iter().for_each(|s| encoder.encode(interval(*s)));
        let bytes = encoder.finish();
        let mut decoder = RangeDecoder::new(&bytes);
        for symbol in symbols {
            assert_eq!(decoder.position(1 << 16), symbol);
            decoder.consume(interval(symbol));
        }
        decoder.finish().unwrap();
    }

    #[test]
    fn mixed_decisions_round_trip() {
        let mut encoder = RangeEncoder::default();
        let word = |i: u32| i.wrapping_mul(2_654_435_761) >> 7;
        for i in 0..20_000u32 {
            match i % 3 {
                0 => encoder.encode_bit(word(i) % 100 == 0, 1 + word(i + 1) % 65_535),
                1 => encoder.encode_raw(word(i) & 0x1ff, 9),
                _ => encoder.encode(Interval { start: word(i) % 1000, size: 1, total: 1000 }),
            }
        }
        let bytes = encoder.finish();
        let mut decoder = RangeDecoder::new(&bytes);
        for i in 0..20_000u32 {
            match i % 3 {
                0 => assert_eq!(decoder.decode_bit(1 + word(i + 1) % 65_535), word(i) % 100 == 0),
                1 => assert_eq!(decoder.decode_raw(9), word(i) & 0x1ff),
                _ => {
                    assert_eq!(decoder.position(1000), word(i) % 1000);
                    decoder.consume(Interval { start: word(i) % 1000, size: 1, total: 1000 });
                }
            }
        }
        decoder.finish().unwrap();
        assert!(RangeEncoder::default().finish().is_empty());
    }
}
