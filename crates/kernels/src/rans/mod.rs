//! Interleaved rANS states, in registers where the CPU has wide ones. Every path gives the same bytes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod generic;

use crate::Isa;
use crate::simd::dispatch;

/// Frequencies of a table sum to 2 to the power of this.
pub const PROB_BITS: u32 = 12;
/// The sum of a table's frequencies, and the number of its layout.
pub const PROB_TOTAL: u32 = 1 << PROB_BITS;

/// Interleaved rANS states. State `16 g + l` codes symbols `64 (g / 4) + 4 l + g % 4` of every 128: four groups of 16
/// 32-bit lanes, each holding its symbols in one byte of a lane, make 64 bytes in order.
pub const LANES: usize = 128;

/// States lie in `2^16 .. 2^32` between symbols and take in 16 bits at a time.
pub const LOWEST: u32 = 1 << 16;

/// Bytes behind the words that kernels may read (and ignore).
pub const SLACK: usize = 2 * LANES + 32;

/// Buckets of the alias layout.
pub const BUCKETS: usize = 16;

/// The state that codes symbol `i` of a step.
#[must_use]
pub const fn state_of(i: usize) -> usize {
    let (half, i) = (i / 64, i % 64);
    (4 * half + i % 4) * 16 + i / 4
}

/// By slot: `symbol | frequency << 8 | occurrence << 20`.
pub type BySlot = [u32; PROB_TOTAL as usize];

/// Where the frequencies of a table lie among the slots of a state. Layouts that contradict themselves give wrong bytes, and
/// no more than that.
pub trait Layout {
    /// The layout in registers, of a table of at most 16 entries.
    fn alias(&self) -> Option<&Alias>;
    /// By symbol; 0 is the frequency of symbols that do not occur.
    fn codes(&self) -> [Code; 256];
    /// Slot of the r-th occurrence of the entry that starts at `start`: `slot_of[start + r]`.
    fn slot_of(&self) -> &[u16; PROB_TOTAL as usize];
    /// The table by slot.
    fn by_slot(&self) -> &BySlot;
}

/// The alias layout, as kernels hold it in registers: entries by bucket.
#[derive(Debug, Clone)]
pub struct Alias {
    /// Positions below this in a bucket belong to the bucket's own entry.
    pub threshold: [u32; BUCKETS],
    /// Own entry: `frequency | symbol << 13`.
    pub own: [u32; BUCKETS],
    /// The other entry: `frequency | symbol << 13 | shift << 17`, where position + (signed) shift is the
    /// occurrence's number.
    pub other: [u32; BUCKETS],
    /// Byte of each symbol; that of the escape is 0.
    pub bytes: [u8; BUCKETS],
    /// The escape's symbol, if there is one.
    pub escape: Option<u8>,
}

/// What encoding needs to know of a symbol.
#[derive(Debug, Clone, Copy, Default)]
pub struct Code {
    /// floor((2^64 - 1) / frequency): division by multiplication.
    pub reciprocal: u64,
    /// Layout of the symbol.
    pub freq: u32,
    /// Layout of the symbols before it.
    pub start: u32,
}

/// Where decoding stands in a stream of words.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    /// The states.
    pub states: [u32; LANES],
    /// Words, then at least [`SLACK`] bytes.
    pub words: &'a [u8],
    /// Byte that is next.
    pub at: usize,
    /// Bytes of words.
    pub len: usize,
}

impl Cursor<'_> {
    /// # Panics
    /// If there is no slack.
    fn check(&self) {
        let room = self.words.len().checked_sub(SLACK);
        assert!(room.is_some_and(|room| self.len <= room), "slack behind the words");
    }
}

/// Decodes `out.len()` bytes, a multiple of 128, those that escape from `escapes`; false if words or escapes end early.
///
/// # Panics
/// If a size does not fit.
pub fn decode(
    isa: Isa,
    layout: &impl Layout,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    out: &mut [u8],
) -> bool {
    assert!(out.len().is_multiple_of(LANES), "whole steps");
    cursor.check();
    // Only AVX-512 has a kernel for narrow tables.
    #[cfg(target_arch = "x86_64")]
    if let Some(alias) = layout.alias() {
        let done = dispatch! { isa;
            avx512 => Some(avx512::decode_narrow(alias, cursor, escapes, out));
            _ => None
        };
        if let Some(done) = done {
            return done;
        }
    }
    let by_slot = layout.by_slot();
    // By pieces that stay in the nearest cache until their symbols are bytes.
    out.chunks_mut(32 * LANES).all(|out| {
        let done = dispatch! { isa;
            avx512 => avx512::decode_by_slot(by_slot, cursor, out);
            avx2 => avx2::decode_by_slot(by_slot, cursor, out);
            _ => generic::decode(by_slot, cursor, out)
        };
        done && layout.alias().is_none_or(|alias| generic::to_bytes(alias, out, escapes))
    })
}

/// Decodes bf16 values whose exponents are the symbols of a narrow table and whose signs and mantissas are `raw`
/// (`mantissa << 1 | sign`), escapes included; `raw.len()` is a multiple of 128. `None` if this CPU has no kernel
/// for it, false if words or escapes end early.
///
/// # Panics
/// If a size does not fit.
pub fn decode_bf16(
    isa: Isa,
    layout: &impl Layout,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    raw: &[u8],
    out: &mut [u8],
) -> Option<bool> {
    let alias = layout.alias()?;
    assert!(raw.len().is_multiple_of(LANES) && out.len() == 2 * raw.len(), "whole steps");
    cursor.check();
    dispatch! { isa;
        avx512 => Some(avx512::decode_bf16(alias, cursor, escapes, raw, out));
        _ => {
            let _ = (alias, escapes);
            None
        }
    }
}

/// Encodes `symbols` (a multiple of 128), last first, putting words before `words[at..]`; returns the new start.
///
/// # Panics
/// If there is no room: 2 bytes a symbol always suffice.
pub fn encode(
    isa: Isa,
    layout: &impl Layout,
    states: &mut [u32; LANES],
    symbols: &[u8],
    words: &mut [u8],
    at: usize,
) -> usize {
    assert!(symbols.len().is_multiple_of(LANES), "whole steps");
    assert!(2 * symbols.len() <= at && at <= words.len(), "room for the words");
    dispatch! { isa;
        avx512 => avx512::encode(layout, states, symbols, words, at);
        _ => generic::encode(layout, states, symbols, words, at)
    }
}

/// Appends `map[b]` of every byte to `out`, and the bytes that map to `escape` to `escapes`.
pub fn map_bytes(
    isa: Isa,
    map: &[u8; 256],
    escape: Option<u8>,
    bytes: &[u8],
    out: &mut Vec<u8>,
    escapes: &mut Vec<u8>,
) {
    let start = out.len();
    out.resize(start + bytes.len(), 0);
    let done = dispatch! { isa;
        avx512 => avx512::map_bytes(map, escape, bytes, &mut out[start..], escapes);
        _ => 0
    };
    for (out, byte) in out[start + done..].iter_mut().zip(&bytes[done..]) {
        *out = map[usize::from(*byte)];
        if Some(*out) == escape {
            escapes.push(*byte);
        }
    }
}
