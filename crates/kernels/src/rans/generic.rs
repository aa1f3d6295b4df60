//! The portable path, which defines what the others compute.

use super::{Alias, Cursor, LANES, LOWEST, Layout, PROB_BITS, PROB_TOTAL, state_of};

/// Symbol of each state, in the order of states.
const SYMBOL_OF: [usize; LANES] = {
    let mut order = [0; LANES];
    let mut i = 0;
    while i < LANES {
        order[state_of(i)] = i;
        i += 1;
    }
    order
};

pub(super) fn decode(
    by_slot: &[u32; PROB_TOTAL as usize],
    cursor: &mut Cursor<'_>,
    out: &mut [u8],
) -> bool {
    let mut states = cursor.states;
    let mut at = cursor.at;
    for step in out.as_chunks_mut::<LANES>().0 {
        if at > cursor.len {
            return false;
        }
        let words = &cursor.words[at..at + 2 * LANES];
        let mut read = 0;
        for (state, symbol) in states.iter_mut().zip(SYMBOL_OF) {
            let entry = by_slot[(*state % PROB_TOTAL) as usize];
            step[symbol] = entry as u8;
            let mut x = (entry >> 8 & 0xfff) * (*state >> PROB_BITS) + (entry >> 20);
            if x < LOWEST {
                x = x << 16 | u32::from(u16::from_le_bytes([words[read], words[read + 1]]));
                read += 2;
            }
            *state = x;
        }
        at += read;
    }
    cursor.states = states;
    cursor.at = at;
    at <= cursor.len
}

/// Maps symbols of a narrow table to bytes in place, taking escaped ones from `escapes`; false if those end early.
pub(super) fn to_bytes(alias: &Alias, symbols: &mut [u8], escapes: &mut &[u8]) -> bool {
    let escape = alias.escape.unwrap_or(u8::MAX);
    let mut escaped = false;
    for symbol in symbols.iter() {
        escaped |= *symbol == escape;
    }
    for symbol in symbols {
        if escaped && *symbol == escape {
            let Some((first, rest)) = escapes.split_first() else { return false };
            (*symbol, *escapes) = (*first, rest);
        } else {
            *symbol = alias.bytes[usize::from(*symbol & 15)];
        }
    }
    true
}

pub(super) fn encode(
    layout: &impl Layout,
    states: &mut [u32; LANES],
    symbols: &[u8],
    words: &mut [u8],
    mut at: usize,
) -> usize {
    let codes = layout.codes();
    let slot_of = layout.slot_of();
    for step in symbols.as_chunks::<LANES>().0.iter().rev() {
        // A step needs room for a word of every lane, written whether needed or not.
        let room = &mut words[at - 2 * LANES..at];
        let mut free = 2 * LANES;
        for (state, symbol) in states.iter_mut().zip(SYMBOL_OF).rev() {
            let code = codes[usize::from(step[symbol])];
            let mut x = *state;
            let full = x >= code.freq << (32 - PROB_BITS);
            room[free - 2..free].copy_from_slice(&(x as u16).to_le_bytes());
            free -= 2 * usize::from(full);
            x = if full { x >> 16 } else { x };
            let quotient =
                ((u128::from(u64::from(x) + 1) * u128::from(code.reciprocal)) >> 64) as u32;
            let rest = x - quotient * code.freq;
            let slot = slot_of[((code.start + rest) % PROB_TOTAL) as usize];
            *state = quotient << PROB_BITS | u32::from(slot);
        }
        at -= 2 * LANES - free;
    }
    at
}
