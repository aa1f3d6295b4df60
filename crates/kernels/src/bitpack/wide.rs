//! Codes of 9 to 16 bits, in the same stream as narrower ones.

use super::packed_len;

/// Packs `codes`; bits above `bits` in a code are ignored. Writes the first
/// `packed_len(codes.len(), bits)` bytes of `out`.
///
/// # Panics
///
/// Unless `bits` is 9 to 16, or if `out` is too short.
pub fn pack_wide(codes: &[u16], bits: u32, out: &mut [u8]) {
    check_bits(bits);
    let len = packed_len(codes.len(), bits);
    assert!(out.len() >= len, "pack_wide: the target is too short");
    for (unit, packed) in codes.chunks(8).zip(out[..len].chunks_mut(bits as usize)) {
        let word = unit.iter().enumerate().fold(0u128, |word, (i, code)| {
            word | u128::from(code & mask(bits)) << (i as u32 * bits)
        });
        packed.copy_from_slice(&word.to_le_bytes()[..packed.len()]);
    }
}

/// Unpacks `out.len()` codes, the first of them being code `start` of the row.
///
/// # Panics
///
/// Unless `bits` is 9 to 16, or if the row does not hold that many codes.
pub fn unpack_wide(packed: &[u8], bits: u32, start: usize, out: &mut [u16]) {
    check_bits(bits);
    let end = start.checked_add(out.len());
    let held = end.is_some_and(|end| packed_len(end, bits) <= packed.len());
    assert!(held, "unpack_wide: the row is too short");
    for (i, out) in out.iter_mut().enumerate() {
        // Index and bits are split before they are multiplied: no overflow for any index.
        let index = start + i;
        let bit = index % 8 * bits as usize;
        let from = &packed[index / 8 * bits as usize + bit / 8..];
        // A code and the bits before it in its first byte: 23 bits at most.
        let word = match from.first_chunk::<4>() {
            Some(word) => u32::from_le_bytes(*word),
            None => from.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)),
        };
        *out = (word >> (bit % 8)) as u16 & mask(bits);
    }
}

fn check_bits(bits: u32) {
    assert!((9..=16).contains(&bits), "wide codes have 9 to 16 bits");
}

fn mask(bits: u32) -> u16 {
    u16::MAX >> (16 - bits)
}
