//! The arithmetic coder of the released code (torchac, Mentzer et al., 2019; the coder is Nelson's of 2014): 32-bit bounds,
//! tables of 16 bits, bits from the highest of a byte on.

use super::table::Table;

const HALF: u32 = 1 << 31;
const QUARTER: u32 = 1 << 30;

/// Writes bits.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    byte: u8,
    held: u32,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        self.byte = self.byte << 1 | u8::from(bit);
        self.held += 1;
        if self.held == 8 {
            self.bytes.push(self.byte);
            (self.byte, self.held) = (0, 0);
        }
    }

    /// A bit, and its opposite as often as bounds met in the middle since the last.
    fn settle(&mut self, bit: bool, pending: &mut u64) {
        self.push(bit);
        (0..std::mem::take(pending)).for_each(|_| self.push(!bit));
    }
}

/// Bounds of what the bits so far can still become.
struct Bounds {
    low: u32,
    high: u32,
}

/// What can be said of the bounds.
enum Step {
    Bit(bool),
    Middle,
    Nothing,
}

impl Bounds {
    fn all() -> Self {
        Self { low: 0, high: u32::MAX }
    }

    fn span(&self) -> u64 {
        u64::from(self.high) - u64::from(self.low) + 1
    }

    fn narrow(&mut self, (start, end): (u32, u32)) {
        let span = self.span();
        self.high = self.low.wrapping_sub(1).wrapping_add(((span * u64::from(end)) >> 16) as u32);
        self.low = self.low.wrapping_add(((span * u64::from(start)) >> 16) as u32);
    }

    /// Doubles the bounds where they agree in a bit, or lie around the middle.
    fn step(&mut self) -> Step {
        if self.high < HALF || self.low >= HALF {
            let bit = self.low >= HALF;
            self.low <<= 1;
            self.high = self.high << 1 | 1;
            return Step::Bit(bit);
        }
        if self.low >= QUARTER && self.high < HALF + QUARTER {
            self.low = (self.low << 1) & (HALF - 1);
            self.high = self.high << 1 | HALF | 1;
            return Step::Middle;
        }
        Step::Nothing
    }
}

/// Codes the symbols of one channel.
///
/// # Panics
/// If the table lacks a symbol.
#[must_use]
pub fn encode_symbols(symbols: impl IntoIterator<Item = u8>, table: &Table) -> Vec<u8> {
    let (mut bits, mut bounds, mut pending) = (Bits::default(), Bounds::all(), 0);
    for symbol in symbols {
        bounds.narrow(table.range(usize::from(symbol)));
        loop {
            match bounds.step() {
                Step::Bit(bit) => bits.settle(bit, &mut pending),
                Step::Middle => pending += 1,
                Step::Nothing => break,
            }
        }
    }
    pending += 1;
    bits.settle(bounds.low >= QUARTER, &mut pending);
    while bits.held > 0 {
        bits.push(false);
    }
    bits.bytes
}

/// The symbols of one channel; bytes that end early read as zeros, and whatever bytes there are give some symbols of the
/// table: a checksum must tell whether they are those that were written.
#[must_use]
pub fn decode_symbols(bytes: &[u8], count: usize, table: &Table) -> Vec<u8> {
    let mut next = 0usize;
    let mut bit = || {
        let bit = bytes.get(next / 8).map_or(0, |byte| byte >> (7 - next % 8) & 1);
        next += 1;
        u32::from(bit)
    };
    let mut value = (0..32).fold(0u32, |value, _| value << 1 | bit());
    let mut bounds = Bounds::all();
    let mut symbols = Vec::new();
    for _ in 0..count {
        let span = bounds.span();
        let above = u64::from(value.wrapping_sub(bounds.low)) + 1;
        let part = ((above << 16) - 1) / span;
        let symbol = table.symbol(part.min(u64::from(u16::MAX)) as u32);
        symbols.push(symbol as u8);
        bounds.narrow(table.range(symbol));
        loop {
            match bounds.step() {
                Step::Bit(_) => value = value << 1 | bit(),
                Step::Middle => value = value.wrapping_sub(QUARTER) << 1 | bit(),
                Step::Nothing => break,
            }
        }
    }
    symbols
}
