//! Bits in and out, least significant first.

use tensorpress_tensor::{Error, Result};

/// Collects bits into bytes.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    count: u32,
}

impl BitWriter {
    /// Appends the low `bits` (at most 32) of `value`.
    #[inline]
    pub(crate) fn write(&mut self, value: u32, bits: u32) {
        debug_assert!(bits <= 32 && u64::from(value) >> bits == 0, "{value} in {bits} bits");
        self.pending |= u64::from(value) << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// Fills the last byte with zeros.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.bytes.push(self.pending as u8);
        }
        self.bytes
    }
}

/// Takes bits from bytes.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    pending: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pending: 0, count: 0 }
    }

    /// The next `bits` (at most 32).
    #[inline]
    pub(crate) fn read(&mut self, bits: u32) -> Result<u32> {
        while self.count < bits {
            let Some((first, rest)) = self.bytes.split_first() else {
                return Err(Error::insufficient("bits end early"));
            };
            self.pending |= u64::from(*first) << self.count;
            self.count += 8;
            self.bytes = rest;
        }
        let value = self.pending & ((1 << bits) - 1);
        self.pending >>= bits;
        self.count -= bits;
        Ok(value as u32)
    }

    /// Bytes that no bit was taken from.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() + self.count as usize / 8
    }

    /// Whether the bits up to the next byte are all 0.
    pub(crate) fn is_aligned(&self) -> bool {
        self.pending & ((1 << (self.count % 8)) - 1) == 0
    }

    /// Whether nothing but the padding of the last byte is left.
    pub(crate) fn is_finished(&self) -> bool {
        self.bytes.is_empty() && self.count < 8 && self.pending == 0
    }
}
