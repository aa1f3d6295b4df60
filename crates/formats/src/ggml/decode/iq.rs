//! Uneven levels (IQ4) and ternary points (IQ1).

use tensorpress_tensor::half::f16;

use super::super::grids::IQ1;
use super::super::tables::IQ4_LEVELS;
use super::{half, nibble, word};

/// Sixteen bytes of indices in split halves.
fn levels(qs: &[u8], scale: f32, y: &mut [f32]) {
    for j in 0..16 {
        y[j] = scale * f32::from(IQ4_LEVELS[usize::from(qs[j] & 15)]);
        y[16 + j] = scale * f32::from(IQ4_LEVELS[usize::from(qs[j] >> 4)]);
    }
}

pub(super) fn iq4_nl(b: &[u8; 18], y: &mut [f32; 32]) {
    levels(&b[2..], half(b, 0), y);
}

pub(super) fn iq4_xs(b: &[u8; 136], y: &mut [f32; 256]) {
    let (d, high) = (half(b, 0), word(b, 2));
    for (group, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = nibble(&b[4..8], group) | ((high >> (2 * group) & 3) as u8) << 4;
        levels(&b[8 + 16 * group..], d * (f32::from(scale) - 32.0), y);
    }
}

/// What is added to the points of IQ1.
const SHIFT: f32 = 0.125;

/// Eight values around a ternary point.
fn ternary(point: usize, scale: f32, shift: f32, y: &mut [f32]) {
    for (j, y) in y.iter_mut().enumerate() {
        *y = scale * (f32::from(IQ1[point] >> (2 * j) & 3) - 1.0 + shift);
    }
}

pub(super) fn iq1_s(b: &[u8; 50], y: &mut [f32; 256]) {
    let d = half(b, 0);
    for (octet, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (group, l) = (octet / 4, octet % 4);
        let qh = word(b, 34 + 2 * group);
        let point = usize::from(b[2 + octet]) | usize::from(qh >> (3 * l) & 7) << 8;
        let scale = d * f32::from(2 * (qh >> 12 & 7) + 1);
        ternary(point, scale, if qh & 0x8000 != 0 { -SHIFT } else { SHIFT }, y);
    }
}

pub(super) fn iq1_m(b: &[u8; 56], y: &mut [f32; 256]) {
    let scales: [u16; 4] = std::array::from_fn(|i| word(b, 48 + 2 * i));
    let bits = scales.iter().enumerate().fold(0, |bits, (i, s)| bits | (s >> 12) << (4 * i));
    let d = f16::from_bits(bits).to_f32();
    for (octet, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (group, pair) = (octet / 4, octet / 2 % 2);
        let high = nibble(&b[32..48], octet);
        let point = usize::from(b[octet]) | usize::from(high & 7) << 8;
        let s = scales[group / 2] >> (6 * (group % 2) + 3 * pair) & 7;
        ternary(point, d * f32::from(2 * s + 1), if high & 8 != 0 { -SHIFT } else { SHIFT }, y);
    }
}
