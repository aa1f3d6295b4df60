//! The inner loops: interleaved rANS states, in registers where the CPU has wide ones. The only unsafe code of this
//! crate. Every path gives the same bytes; which one runs is decided by [`Isa::detect`] when the program runs.
#![allow(unsafe_code)]

mod generic;
mod merge;
#[cfg(target_arch = "x86_64")]
mod x86;

use tensorpress_tensor::kernels::Isa;

use crate::coder::slots::{BySlot, Slots};

pub(crate) use merge::{join_planes, split_planes};

/// Interleaved rANS states. State `16 g + l` codes symbols `64 (g / 4) + 4 l + g % 4` of every 128: four groups of 16
/// 32-bit lanes, each holding its symbols in one byte of a lane, make 64 bytes in order.
pub(crate) const LANES: usize = 128;

/// States lie in `2^16 .. 2^32` between symbols and take in 16 bits at a time.
pub(crate) const LOWEST: u32 = 1 << 16;

/// Bytes behind the words that kernels may read (and ignore).
pub(crate) const SLACK: usize = 2 * LANES + 32;

/// The state that codes symbol `i` of a step.
pub(crate) const fn state_of(i: usize) -> usize {
    let (half, i) = (i / 64, i % 64);
    (4 * half + i % 4) * 16 + i / 4
}

/// Where decoding stands in a stream of words.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    pub(crate) states: [u32; LANES],
    /// Words, then at least [`SLACK`] bytes.
    pub(crate) words: &'a [u8],
    /// Byte that is next.
    pub(crate) at: usize,
    /// Bytes of words.
    pub(crate) len: usize,
}

/// Decodes `out.len()` bytes, a multiple of 128, those that escape from `escapes`; false if words or escapes end early.
pub(crate) fn decode(
    isa: Isa,
    slots: &Slots,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    out: &mut [u8],
) -> bool {
    assert!(out.len().is_multiple_of(LANES), "whole steps");
    assert!(cursor.words.len() >= cursor.len + SLACK, "slack behind the words");
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(alias)) = (x86::available(isa), slots.alias()) {
        return x86::decode_narrow(alias, cursor, escapes, out);
    }
    let by_slot = slots.by_slot();
    // By pieces that stay in the nearest cache until their symbols are bytes.
    out.chunks_mut(32 * LANES).all(|out| {
        decode_by_slot(isa, by_slot, cursor, out)
            && slots.alias().is_none_or(|alias| generic::to_bytes(alias, out, escapes))
    })
}

fn decode_by_slot(isa: Isa, by_slot: &BySlot, cursor: &mut Cursor<'_>, out: &mut [u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::available(isa) {
            return x86::decode_by_slot(by_slot, cursor, out);
        }
        if isa != Isa::Generic && Isa::Avx2.is_available() {
            return x86::decode_by_slot_avx2(by_slot, cursor, out);
        }
    }
    let _ = isa;
    generic::decode(by_slot, cursor, out)
}

/// Decodes bf16 values whose exponents are the symbols of a narrow table and whose signs and mantissas are `raw`
/// (`mantissa << 1 | sign`), escapes included; `raw.len()` is a multiple of 128. `None` if this CPU has no kernel
/// for it, false if words or escapes end early.
pub(crate) fn decode_bf16(
    isa: Isa,
    slots: &Slots,
    cursor: &mut Cursor<'_>,
    escapes: &mut &[u8],
    raw: &[u8],
    out: &mut [u8],
) -> Option<bool> {
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(alias)) = (x86::available(isa), slots.alias()) {
        assert!(raw.len().is_multiple_of(LANES) && out.len() == 2 * raw.len(), "whole steps");
        assert!(cursor.words.len() >= cursor.len + SLACK, "slack behind the words");
        return Some(x86::decode_bf16(alias, cursor, escapes, raw, out));
    }
    let _ = (isa, slots, cursor, escapes, raw, out);
    None
}

/// Encodes `symbols` (a multiple of 128), last first, putting words before `words[at..]`; returns the new start.
///
/// # Panics
/// If there is no room: 2 bytes a symbol always suffice.
pub(crate) fn encode(
    isa: Isa,
    slots: &Slots,
    states: &mut [u32; LANES],
    symbols: &[u8],
    words: &mut [u8],
    at: usize,
) -> usize {
    assert!(symbols.len().is_multiple_of(LANES), "whole steps");
    assert!(2 * symbols.len() <= at && at <= words.len(), "room for the words");
    #[cfg(target_arch = "x86_64")]
    if x86::available(isa) {
        return x86::encode(slots, states, symbols, words, at);
    }
    let _ = isa;
    generic::encode(slots, states, symbols, words, at)
}

/// Appends `map[b]` of every byte to `out`, and the bytes that map to `escape` to `escapes`.
pub(crate) fn map_bytes(
    isa: Isa,
    map: &[u8; 256],
    escape: Option<u8>,
    bytes: &[u8],
    out: &mut Vec<u8>,
    escapes: &mut Vec<u8>,
) {
    let start = out.len();
    out.resize(start + bytes.len(), 0);
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if x86::available(isa) {
        done = x86::map_bytes(map, escape, bytes, &mut out[start..], escapes);
    }
    let _ = isa;
    for (out, byte) in out[start + done..].iter_mut().zip(&bytes[done..]) {
        *out = map[usize::from(*byte)];
        if Some(*out) == escape {
            escapes.push(*byte);
        }
    }
}
