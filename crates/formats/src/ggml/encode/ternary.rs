//! The ternary types: the scale is the largest magnitude.

use super::{Block, inverse, largest, put_half};

/// -1, 0, 1 as 0, 1, 2, and the scale.
fn trits(x: &[f32; 256]) -> ([u8; 256], f32) {
    let d = largest(x).abs();
    let id = inverse(d);
    (x.map(|x| ((x * id).round() as i32 + 1) as u8), d)
}

/// Trits, the first the most significant, as a fraction of 256 rounded up.
fn pack(trits: impl Iterator<Item = u8>) -> u8 {
    let number = trits.fold(0, |number, trit| number * 3 + u32::from(trit));
    (number * 256).div_ceil(243) as u8
}

pub(super) fn tq1(x: Block<'_, 256>, b: &mut [u8; 54]) {
    let (trits, d) = trits(x.x);
    for (from, bytes, element, count) in [(0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4)] {
        for m in 0..bytes {
            let of_byte = (0..count).map(|t| trits[element + bytes * t + m]);
            b[from + m] = pack(of_byte.chain(std::iter::repeat_n(0, 5 - count)));
        }
    }
    put_half(b, 52, d);
}

pub(super) fn tq2(x: Block<'_, 256>, b: &mut [u8; 66]) {
    let (trits, d) = trits(x.x);
    super::k::planes(&trits, &mut b[..64]);
    put_half(b, 64, d);
}
