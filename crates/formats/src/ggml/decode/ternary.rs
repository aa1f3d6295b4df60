//! The ternary types.

use super::half;
use super::k::planes;

const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Trit `t` of a byte that holds five as a fraction of 256.
fn trit(byte: u8, t: usize) -> u8 {
    ((u16::from(byte.wrapping_mul(POWERS[t])) * 3) >> 8) as u8
}

pub(super) fn tq1(b: &[u8; 54], y: &mut [f32; 256]) {
    let d = half(b, 52);
    // Runs of bytes: where they begin, how many, and the first element of their first trit.
    for (from, bytes, element, trits) in [(0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4)] {
        for t in 0..trits {
            for m in 0..bytes {
                y[element + bytes * t + m] = (f32::from(trit(b[from + m], t)) - 1.0) * d;
            }
        }
    }
}

pub(super) fn tq2(b: &[u8; 66], y: &mut [f32; 256]) {
    let d = half(b, 64);
    for (element, y) in y.iter_mut().enumerate() {
        *y = (f32::from(planes(b, element)) - 1.0) * d;
    }
}
