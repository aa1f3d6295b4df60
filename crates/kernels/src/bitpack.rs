//! Codes of 1 to 16 bits as a dense bit stream: bytes up to 8 bits, else of 16 bits each.
//!
//! Code `i` occupies the bits `i * bits ..` of the stream, the least significant bit first, the
//! bytes in ascending order. A row starts at a byte boundary and the bits after its last code are
//! zero. Eight codes therefore fill exactly `bits` bytes: that is the unit the fast paths use.
//! All results are bit-identical on every instruction set.

mod wide;

use super::Isa;
use crate::simd::dispatch;

pub use wide::{pack_wide, unpack_wide};

/// Calls `$f::<BITS>` for the value of `$bits`.
macro_rules! by_bits {
    ($bits:expr, $f:ident($($arg:expr),*)) => {
        match $bits {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            3 => $f::<3>($($arg),*),
            4 => $f::<4>($($arg),*),
            5 => $f::<5>($($arg),*),
            6 => $f::<6>($($arg),*),
            7 => $f::<7>($($arg),*),
            _ => $f::<8>($($arg),*),
        }
    };
}

/// How many bytes `n` codes of `bits` bits take.
///
/// # Panics
///
/// Unless `bits` is 1 to 16, or if the number of bytes exceeds the address space.
pub const fn packed_len(n: usize, bits: u32) -> usize {
    assert!(1 <= bits && bits <= 16, "codes have 1 to 16 bits");
    let bits = bits as usize;
    // In whole units of eight codes first, so that nothing overflows on the way.
    n / 8 * bits + (n % 8 * bits).div_ceil(8)
}

pub(crate) const fn check_bits(bits: u32) {
    assert!(1 <= bits && bits <= 8, "codes in bytes have 1 to 8 bits");
}

const fn mask(bits: u32) -> u8 {
    (0xff_u16 >> (8 - bits)) as u8
}

/// Packs `codes`; bits above `bits` in a code are ignored. Writes the first
/// `packed_len(codes.len(), bits)` bytes of `out`.
///
/// # Panics
///
/// Unless `bits` is 1 to 8, or if `out` is too short.
pub fn pack_bits(codes: &[u8], bits: u32, out: &mut [u8]) {
    pack_bits_on(Isa::detect(), codes, bits, out);
}

/// [`pack_bits`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn pack_bits_on(isa: Isa, codes: &[u8], bits: u32, out: &mut [u8]) {
    check_bits(bits);
    let len = packed_len(codes.len(), bits);
    assert!(out.len() >= len, "pack_bits: the target is too short");
    let out = &mut out[..len];
    let (units, rest) = codes.as_chunks::<8>();
    let (packed, last) = out.split_at_mut(units.len() * bits as usize);
    if bits == 8 {
        packed.copy_from_slice(units.as_flattened());
    } else {
        dispatch! { isa;
            avx2 => x86::pack(units, bits, packed);
            _ => by_bits!(bits, pack_units(units, packed))
        }
    }
    if !rest.is_empty() {
        let mut unit = [0; 8];
        unit[..rest.len()].copy_from_slice(rest);
        let bytes = gather(&unit, bits).to_le_bytes();
        last.copy_from_slice(&bytes[..last.len()]);
    }
}

/// Unpacks `out.len()` codes, the first of them being code `start` of the row.
///
/// # Panics
///
/// Unless `bits` is 1 to 8, or if the row does not hold that many codes.
pub fn unpack_bits(packed: &[u8], bits: u32, start: usize, out: &mut [u8]) {
    unpack_bits_on(Isa::detect(), packed, bits, start, out);
}

/// [`unpack_bits`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn unpack_bits_on(isa: Isa, packed: &[u8], bits: u32, start: usize, out: &mut [u8]) {
    check_bits(bits);
    let end = start.checked_add(out.len());
    let held = end.is_some_and(|end| packed_len(end, bits) <= packed.len());
    assert!(held, "unpack_bits: the row is too short");
    // Up to the next byte boundary that is a unit boundary too, one by one.
    let lead = (start.wrapping_neg() % 8).min(out.len());
    let (lead, out) = out.split_at_mut(lead);
    for (i, code) in lead.iter_mut().enumerate() {
        *code = code_at(packed, bits, start + i);
    }
    if out.is_empty() {
        return;
    }
    let first = (start + lead.len()) / 8 * bits as usize;
    let packed = &packed[first..first + packed_len(out.len(), bits)];
    dispatch! { isa;
        avx512 => x86::unpack_avx512(packed, bits, out);
        avx2 => x86::unpack_bmi2(packed, bits, out);
        neon => match bits {
            4 => neon::unpack4(packed, out),
            _ => by_bits!(bits, unpack_units(packed, out)),
        };
        _ => by_bits!(bits, unpack_units(packed, out))
    }
}

/// One code of a packed row.
///
/// # Panics
///
/// If the row is too short.
#[inline]
pub fn code_at(packed: &[u8], bits: u32, index: usize) -> u8 {
    // Index and bits are split before they are multiplied: no overflow for any index.
    let bit = index % 8 * bits as usize;
    let byte = index / 8 * bits as usize + bit / 8;
    let low = u16::from(packed[byte]);
    let high = packed.get(byte + 1).map_or(0, |&b| u16::from(b));
    ((low | high << 8) >> (bit % 8)) as u8 & mask(bits)
}

/// Eight codes as one number of `8 * bits` bits.
#[inline(always)]
fn gather(unit: &[u8; 8], bits: u32) -> u64 {
    (0..8).fold(0, |word, i| word | u64::from(unit[i] & mask(bits)) << (i as u32 * bits))
}

fn pack_units<const BITS: usize>(units: &[[u8; 8]], packed: &mut [u8]) {
    for (unit, packed) in units.iter().zip(packed.as_chunks_mut::<BITS>().0) {
        packed.copy_from_slice(&gather(unit, BITS as u32).to_le_bytes()[..BITS]);
    }
}

fn unpack_units<const BITS: usize>(packed: &[u8], out: &mut [u8]) {
    let (units, rest) = out.as_chunks_mut::<8>();
    // What the whole units leave over may itself be a whole word.
    let (packed, last) = packed.split_at(units.len() * BITS);
    let words = packed.as_chunks::<BITS>().0;
    let spread = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        std::array::from_fn(|i| (word >> (i * BITS)) as u8 & mask(BITS as u32))
    };
    for (unit, word) in units.iter_mut().zip(words) {
        *unit = spread(word);
    }
    if !rest.is_empty() {
        let unit: [u8; 8] = spread(last);
        rest.copy_from_slice(&unit[..rest.len()]);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use crate::simd::{avx2, avx512};

    /// Which bit of each byte of a word of eight codes belongs to a code.
    fn code_bits(bits: u32) -> u64 {
        u64::from(super::mask(bits)) * 0x0101_0101_0101_0101
    }

    avx2! {
        /// One bit-gathering instruction packs a unit of eight codes.
        pub(super) fn pack(units: &[[u8; 8]], bits: u32, packed: &mut [u8]) {
            let select = code_bits(bits);
            let bytes = bits as usize;
            for (unit, packed) in units.iter().zip(packed.chunks_exact_mut(bytes)) {
                let word = _pext_u64(u64::from_le_bytes(*unit), select).to_le_bytes();
                packed.copy_from_slice(&word[..bytes]);
            }
        }
    }

    avx2! {
        /// One bit-scattering instruction unpacks a unit of eight codes.
        pub(super) fn unpack_bmi2(packed: &[u8], bits: u32, out: &mut [u8]) {
            let select = code_bits(bits);
            let bytes = bits as usize;
            for (i, unit) in out.chunks_mut(8).enumerate() {
                let rest = &packed[i * bytes..];
                let word = match rest.first_chunk::<8>() {
                    Some(word) => u64::from_le_bytes(*word),
                    None => {
                        let mut word = [0; 8];
                        word[..rest.len()].copy_from_slice(rest);
                        u64::from_le_bytes(word)
                    }
                };
                let codes = _pdep_u64(word, select).to_le_bytes();
                match <&mut [u8; 8]>::try_from(&mut *unit) {
                    Ok(unit) => *unit = codes,
                    Err(_) => unit.copy_from_slice(&codes[..unit.len()]),
                }
            }
        }
    }

    /// [`Unpacker::place`] by the bits of a code: made once, as short runs of codes are unpacked too.
    static PLACES: [[u8; 64]; 9] = {
        let mut places = [[0; 64]; 9];
        let mut at = 0;
        while at < 9 * 64 {
            let (width, i) = (at / 64, at % 64);
            let place = i / 8 * width + i % 8;
            places[width][i] = if place < 64 { place as u8 } else { 63 };
            at += 1;
        }
        places
    };

    /// Unpacks 64 codes at a time in registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Unpacker {
        /// Byte `j` of lane `i`: where byte `j` of that lane's unit of eight codes lies.
        place: __m512i,
        /// Byte `j` of each lane: at which bit of the lane code `j` begins.
        shift: __m512i,
        mask: __m512i,
        /// The bytes that 64 codes take.
        pub(crate) full: __mmask64,
    }

    impl Unpacker {
        avx512! {
                /// For codes of `bits` (1 to 8) bits.
                #[inline]
                pub(crate) fn new(bits: u32) -> Self {
                    let width = bits as usize;
                    let place = &PLACES[width];
                    // SAFETY: the array holds the 64 bytes that are read.
                    let place = unsafe { _mm512_loadu_epi8(place.as_ptr().cast()) };
                    // Byte j is j * bits: below 64, so that nothing carries.
                    let shifts = 0x0706_0504_0302_0100 * i64::from(bits);
                    Self {
                        place,
                        shift: _mm512_set1_epi64(shifts),
                        mask: _mm512_set1_epi8(super::mask(bits) as i8),
                        full: !0 >> (64 - 8 * width),
                    }
                }
        }

        avx512! {
                /// The codes, a byte each, of the packed bytes in `raw`.
                #[inline]
                pub(crate) fn unpack(self, raw: __m512i) -> __m512i {
                    let units = _mm512_permutexvar_epi8(self.place, raw);
                    _mm512_and_si512(_mm512_multishift_epi64_epi8(self.shift, units), self.mask)
                }
        }
    }

    avx512! {
        pub(super) fn unpack_avx512(packed: &[u8], bits: u32, out: &mut [u8]) {
            let unpacker = Unpacker::new(bits);
            for (i, block) in out.chunks_mut(64).enumerate() {
                let packed = &packed[i * 8 * bits as usize..];
                let held = if packed.len() >= 64 { !0 } else { (1u64 << packed.len()) - 1 };
                // SAFETY: the mask keeps the read within the slice.
                let raw =
                    unsafe { _mm512_maskz_loadu_epi8(unpacker.full & held, packed.as_ptr().cast()) };
                let keep = !0 >> (64 - block.len());
                // SAFETY: the mask keeps the write within the block.
                unsafe {
                    _mm512_mask_storeu_epi8(block.as_mut_ptr().cast(), keep, unpacker.unpack(raw));
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    /// Unpacks 32 codes of four bits at a time.
    #[target_feature(enable = "neon")]
    pub(super) fn unpack4(packed: &[u8], out: &mut [u8]) {
        let (blocks, rest) = out.as_chunks_mut::<32>();
        let (packed, last) = packed.split_at(blocks.len() * 16);
        let words = packed.as_chunks::<16>().0;
        for (block, word) in blocks.iter_mut().zip(words) {
            // SAFETY: a word holds 16 bytes and a block 32.
            unsafe {
                let raw = vld1q_u8(word.as_ptr());
                let (low, high) = (vandq_u8(raw, vdupq_n_u8(15)), vshrq_n_u8::<4>(raw));
                vst1q_u8(block.as_mut_ptr(), vzip1q_u8(low, high));
                vst1q_u8(block.as_mut_ptr().add(16), vzip2q_u8(low, high));
            }
        }
        super::unpack_units::<4>(last, rest);
    }
}
