//! The inner loops: interleaved rANS states, in registers where the CPU has wide ones. The only unsafe code of this
//! crate. Every path gives the same bytes; which one runs is decided by [`Isa::detect`] when the program runs.
#![allow(unsafe_code)]

mod generic;
mod merge;
#[cfg(target_arch = "x86_64")]
mod x86;

use tensorpress_tensor::kernels::Isa;

use crate::coder::slots::{BySlot, Slots};
#[cfg(test)]
use crate::model::PROB_TOTAL;

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
    #[cfg(target_arch = "x86_64")]
    let done = match x86::available(isa) {
        true => x86::map_bytes(map, escape, bytes, &mut out[start..], escapes),
        false => 0,
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    let _ = isa;
    for (out, byte) in out[start + done..].iter_mut().zip(&bytes[done..]) {
        *out = map[usize::from(*byte)];
        if Some(*out) == escape {
            escapes.push(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coder::blocks::count;
    use crate::model::Table;

    /// Symbols of a table with these frequencies, likelier ones more often.
    fn symbols(slots: &Slots, counts: &[u32; 256], len: usize) -> Vec<u8> {
        let total: u64 = counts.iter().map(|n| u64::from(*n)).sum();
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let draw = |x: &mut u64| {
            *x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut left = (*x >> 33) % total;
            let byte = counts.iter().position(|n| {
                let inside = left < u64::from(*n);
                left = left.saturating_sub(if inside { 0 } else { u64::from(*n) });
                inside
            });
            slots.symbol_of(byte.expect("below the total") as u8)
        };
        (0..len).map(|_| draw(&mut x)).collect()
    }

    fn check(counts: &[u32; 256], len: usize) {
        let slots = Slots::new(&Table::wide(counts));
        let symbols = symbols(&slots, counts, len);
        let mut expected = ([LOWEST; LANES], vec![0; 2 * len + 2 * LANES + SLACK]);
        let room = 2 * len + 2 * LANES;
        let at = generic::encode(&slots, &mut expected.0, &symbols, &mut expected.1, room);
        for isa in Isa::available() {
            let (mut states, mut words) = ([LOWEST; LANES], vec![0; expected.1.len()]);
            let start = encode(isa, &slots, &mut states, &symbols, &mut words, room);
            assert_eq!(start, at, "{isa:?}");
            assert_eq!(states, expected.0, "{isa:?}");
            assert_eq!(words[at..room], expected.1[at..room], "{isa:?}");
            let mut cursor = Cursor { states, words: &words[at..], at: 0, len: room - at };
            let mut out = vec![0; len];
            assert!(decode(isa, &slots, &mut cursor, &mut &[][..], &mut out), "{isa:?}");
            let coded: Vec<u8> = out.iter().map(|byte| slots.symbol_of(*byte)).collect();
            assert_eq!(coded, symbols, "{isa:?}");
            assert!(cursor.states.iter().all(|x| *x == LOWEST) && cursor.at == cursor.len);
        }
        assert_eq!(count(&symbols).iter().sum::<u32>() as usize, len);
    }

    /// Every frequency: division by multiplication must be exact on every path.
    #[test]
    fn every_path_writes_the_same_words() {
        for freq in 1..PROB_TOTAL {
            let mut counts = [0; 256];
            (counts[3], counts[200]) = (freq, PROB_TOTAL - freq);
            check(&counts, if freq % 64 < 2 || freq > 4000 { 20 * LANES } else { 2 * LANES });
        }
        for entries in [3, 15, 16, 17, 40, 256] {
            let counts =
                std::array::from_fn(|i| if i < entries { 1 + (i as u32 * 37) % 101 } else { 0 });
            check(&counts, 40 * LANES);
        }
    }
}
