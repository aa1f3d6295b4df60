//! What a unit of each type is made of.

mod k;
mod levels;
mod short;

pub(super) use k::{Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
pub(super) use levels::IQ4_XS;
pub(super) use short::{IQ4_NL, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m512, __m512i};

use super::UNIT;
use super::lanes::{Lanes, Unit};

/// A type of blocks.
pub(super) trait Kind {
    /// Bytes of a unit.
    const BYTES: usize;
    /// Weights that share a scale, 16 or 32.
    const BY: usize;

    /// Unpacks a unit of [`Kind::BYTES`] bytes into signed codes.
    fn unpack<S: Lanes>(s: S, bytes: &[u8], to: &mut Unit);

    /// The codes of a unit, unsigned, in order.
    ///
    /// # Safety
    ///
    /// Where the features of [`Isa::Avx512`](crate::Isa) are; [`Kind::BYTES`] bytes can be read.
    #[cfg(target_arch = "x86_64")]
    unsafe fn codes(unit: *const u8) -> [__m512i; 4];

    /// The scale of each 16 weights, and the minimum that goes with unsigned codes.
    ///
    /// # Safety
    ///
    /// As for [`Kind::codes`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn grids(unit: *const u8) -> (__m512, __m512);
}

/// The uneven levels of the IQ4 types.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// E2M1, doubled so that it is whole.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// What is added to a table of levels to make it unsigned.
const fn offset(table: &[i8; 16]) -> i8 {
    let (mut least, mut i) = (0, 0);
    while i < 16 {
        if table[i] < least {
            least = table[i];
        }
        i += 1;
    }
    -least
}

/// The bits at byte `at` of a unit.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The f16 at bytes `at` and `at + 2`.
#[inline(always)]
fn two_halves<S: Lanes>(s: S, bytes: &[u8], [a, b]: [usize; 2]) -> [f32; 2] {
    let floats = s.halves([word(bytes, a), word(bytes, b), 0, 0, 0, 0, 0, 0]);
    [floats[0], floats[1]]
}

/// Splits nibbles: the low ones first, the high ones behind.
#[inline(always)]
fn nibbles(bytes: &[u8], codes: &mut [i8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for (code, byte) in low.iter_mut().zip(bytes) {
        *code = (byte & 15) as i8;
    }
    for (code, byte) in high.iter_mut().zip(bytes) {
        *code = (byte >> 4) as i8;
    }
}

/// Two-bit codes in planes: bits 2k and 2k + 1 of 32 bytes are 32 codes in a row.
#[inline(always)]
fn planes(bytes: &[u8], codes: &mut [i8; UNIT]) {
    for (bytes, codes) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        for (plane, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = (byte >> (2 * plane) & 3) as i8;
            }
        }
    }
}

/// Adds `weight` where bit k of 32 bytes is set: bits k belong to the k-th 32 codes.
#[inline(always)]
fn add_bits(bytes: &[u8], weight: i8, codes: &mut [i8; UNIT]) {
    for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code += (byte >> k & 1) as i8 * weight;
        }
    }
}

/// Subtracts what makes codes signed.
#[inline(always)]
fn centre(offset: i8, codes: &mut [i8; UNIT]) {
    codes.iter_mut().for_each(|code| *code -= offset);
}
