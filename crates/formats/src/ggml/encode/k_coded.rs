//! Q4_K and Q5_K: scales and minima of six bits.

use super::super::decode::scale_min;
use super::fit::{Search, affine, positive};
use super::k::requantise;
use super::{Block, nearest, put_half, square};

/// Writes d, dmin, scales and minima to `b`; returns the codes 0..=n.
fn affine_groups(x: Block<'_, 256>, n: i32, plain: Search, b: &mut [u8]) -> [u8; 256] {
    let mut codes = [0; 256];
    let (mut scales, mut mins, mut sums) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    let weights = x.weights(2.0 * square(x.x) / 256.0);
    for j in 0..8 {
        let group = 32 * j..32 * j + 32;
        let (values, codes) = (&x.x[group.clone()], &mut codes[group.clone()]);
        (scales[j], mins[j]) = match &weights {
            Some(weights) => {
                let weights = &weights[group];
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                affine(values, n, weights, Search::WEIGHTED, codes)
            }
            None => {
                let mean = (square(values) / 32.0).sqrt();
                let weights: [f32; 32] = std::array::from_fn(|i| mean + values[i].abs());
                affine(values, n, &weights, plain, codes)
            }
        };
    }
    let (mut ls, mut lm) = ([0; 8], [0; 8]);
    let (d, dmin) = if weights.is_some() {
        (positive(&scales, 63, &sums, &mut ls), positive(&mins, 63, &sums, &mut lm))
    } else {
        (to_largest(&scales, &mut ls), to_largest(&mins, &mut lm))
    };
    let (d, dmin) = (put_half(b, 0, d), put_half(b, 2, dmin));
    scales_and_minima(&ls, &lm, b);
    for j in 0..8 {
        let (scale, min) = scale_min(&b[4..16], j);
        let min = dmin * f32::from(min);
        requantise(
            &x.x[32 * j..][..32],
            &mut codes[32 * j..][..32],
            d * f32::from(scale),
            |x, d| nearest((x + min) / d).clamp(0, n),
        );
    }
    codes
}

/// Six bits each, in twelve bytes.
pub(super) fn scales_and_minima(ls: &[u8; 8], lm: &[u8; 8], b: &mut [u8]) {
    for j in 0..4 {
        b[4 + j] = ls[j] | ls[j + 4] >> 4 << 6;
        b[8 + j] = lm[j] | lm[j + 4] >> 4 << 6;
        b[12 + j] = ls[j + 4] & 15 | lm[j + 4] << 4;
    }
}

/// Codes 0..=63 of values not below 0, the largest becomes 63; returns their scale.
fn to_largest(x: &[f32; 8], codes: &mut [u8; 8]) -> f32 {
    let max = x.iter().fold(0.0, |max, &x| if x > max { x } else { max });
    let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
    *codes = x.map(|x| nearest(inverse * x).min(63) as u8);
    max / 63.0
}

/// Low nibbles of 32 bytes are 32 elements in a row, the high ones the next 32.
pub(super) fn pairs(codes: &[u8; 256], qs: &mut [u8]) {
    for (element, code) in codes.iter().enumerate() {
        qs[element / 64 * 32 + element % 32] |= (code & 15) << (element / 32 % 2 * 4);
    }
}

pub(super) fn q4(x: Block<'_, 256>, b: &mut [u8; 144]) {
    const SEARCH: Search = Search { from: -1.0, step: 0.1, steps: 20, absolute: false };
    let codes = affine_groups(x, 15, SEARCH, b);
    pairs(&codes, &mut b[16..]);
}

pub(super) fn q5(x: Block<'_, 256>, b: &mut [u8; 176]) {
    const SEARCH: Search = Search { from: -0.5, step: 0.1, steps: 15, absolute: false };
    let codes = affine_groups(x, 31, SEARCH, b);
    q5_codes(&codes, b);
}

pub(super) fn q5_codes(codes: &[u8; 256], b: &mut [u8]) {
    for (element, code) in codes.iter().enumerate() {
        b[16 + element % 32] |= code >> 4 << (element / 32);
    }
    pairs(codes, &mut b[48..]);
}
