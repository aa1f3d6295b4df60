//! The K types of two, three, six and eight bits.

use super::super::decode::q3_scale;
use super::fit::{Search, TINY, affine, positive, symmetric, symmetric_by_sweeps};
use super::{Block, inverse, largest, nearest, put_half, square};

/// Two-bit codes in planes: 32 elements in a row are bits 2k, 2k+1 of 32 bytes.
pub(super) fn planes(codes: &[u8; 256], qs: &mut [u8]) {
    for (element, code) in codes.iter().enumerate() {
        let (half, plane, l) = (element / 128, element % 128 / 32, element % 32);
        qs[32 * half + l] |= (code & 3) << (2 * plane);
    }
}

pub(super) fn q2(x: Block<'_, 256>, b: &mut [u8; 84]) {
    const SEARCH: Search = Search { from: -0.5, step: 0.1, steps: 15, absolute: true };
    let mut codes = [0; 256];
    let (mut scales, mut mins, mut sums) = ([0.0; 16], [0.0; 16], [0.0; 16]);
    let weights = x.weights(square(x.x) / 256.0);
    for j in 0..16 {
        let group = 16 * j..16 * j + 16;
        let (values, codes) = (&x.x[group.clone()], &mut codes[group.clone()]);
        (scales[j], mins[j]) = match &weights {
            Some(weights) => {
                let weights = &weights[group];
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                affine(values, 3, weights, Search::WEIGHTED, codes)
            }
            None => {
                let weights: [f32; 16] = std::array::from_fn(|i| values[i].abs());
                affine(values, 3, &weights, SEARCH, codes)
            }
        };
    }
    let (mut ls, mut lm) = ([0; 16], [0; 16]);
    let (d, dmin) = if weights.is_some() {
        (positive(&scales, 15, &sums, &mut ls), positive(&mins, 15, &sums, &mut lm))
    } else {
        (to_largest(&scales, 15, &mut ls), to_largest(&mins, 15, &mut lm))
    };
    let (d, dmin) = (put_half(b, 80, d), put_half(b, 82, dmin));
    for j in 0..16 {
        b[j] = ls[j] | lm[j] << 4;
        let (scale, min) = (d * f32::from(ls[j]), dmin * f32::from(lm[j]));
        requantise(&x.x[16 * j..][..16], &mut codes[16 * j..][..16], scale, |x, d| {
            nearest((x + min) / d).clamp(0, 3)
        });
    }
    planes(&codes, &mut b[16..80]);
}

/// Codes again, now under the scale that is stored; codes under a scale of 0 stay.
pub(super) fn requantise(x: &[f32], codes: &mut [u8], d: f32, code: impl Fn(f32, f32) -> i32) {
    if d == 0.0 {
        return;
    }
    for (c, &x) in codes.iter_mut().zip(x) {
        *c = code(x, d) as u8;
    }
}

/// Codes 0..=n of values not below 0, the largest becomes n; returns their scale.
fn to_largest(x: &[f32], n: u8, codes: &mut [u8]) -> f32 {
    let max = x.iter().fold(0.0, |max, &x| if x > max { x } else { max });
    if max <= 0.0 {
        return 0.0;
    }
    let inverse = f32::from(n) / max;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = nearest(inverse * x) as u8;
    }
    max / f32::from(n)
}

pub(super) fn q3(x: Block<'_, 256>, b: &mut [u8; 110]) {
    let mut codes = [0; 256];
    let (mut scales, mut sums) = ([0.0; 16], [0.0; 16]);
    let weights = x.weights(2.0 * square(x.x) / 256.0);
    for j in 0..16 {
        let group = 16 * j..16 * j + 16;
        let (values, codes) = (&x.x[group.clone()], &mut codes[group.clone()]);
        scales[j] = match &weights {
            Some(weights) => {
                let weights = &weights[group];
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                symmetric(values, 4, Some(weights), codes)
            }
            None => symmetric_by_sweeps(values, 4, codes),
        };
    }
    let mut ls = [0; 16];
    let d = if weights.is_some() {
        symmetric(&scales, 32, Some(&sums), &mut ls)
    } else {
        let max = largest(&scales);
        let inverse = -32.0 / max;
        if max != 0.0 {
            ls = scales.map(|s| (nearest(inverse * s).clamp(-32, 31) + 32) as u8);
        }
        if max == 0.0 { 0.0 } else { 1.0 / inverse }
    };
    q3_scales(&ls, b);
    let d = put_half(b, 108, d);
    for j in 0..16 {
        let scale = d * f32::from(q3_scale(&b[96..108], j));
        requantise(&x.x[16 * j..][..16], &mut codes[16 * j..][..16], scale, |x, d| {
            nearest(x / d).clamp(-4, 3) + 4
        });
    }
    q3_codes(&codes, b);
}

/// Scales, 32 above what they are.
pub(super) fn q3_scales(ls: &[u8; 16], b: &mut [u8]) {
    for (j, l) in ls.iter().enumerate() {
        b[96 + j % 8] |= (l & 15) << (4 * (j / 8));
        b[104 + j % 4] |= l >> 4 << (2 * (j / 4));
    }
}

pub(super) fn q3_codes(codes: &[u8; 256], b: &mut [u8]) {
    for (element, code) in codes.iter().enumerate() {
        b[element % 32] |= code >> 2 << (element / 32);
    }
    planes(codes, &mut b[32..96]);
}

pub(super) fn q6(x: Block<'_, 256>, b: &mut [u8; 210]) {
    let mut codes = [0; 256];
    let mut scales = [0.0; 16];
    for j in 0..16 {
        let group = 16 * j..16 * j + 16;
        let weights = x.importance.map(|w| &w[group.clone()]);
        scales[j] = symmetric(&x.x[group.clone()], 32, weights, &mut codes[group]);
    }
    let max = largest(&scales);
    if max.abs() < TINY {
        return;
    }
    let inverse = -128.0 / max;
    let d = put_half(b, 208, 1.0 / inverse);
    for j in 0..16 {
        let scale = nearest(inverse * scales[j]).min(127) as i8;
        b[192 + j] = scale as u8;
        requantise(
            &x.x[16 * j..][..16],
            &mut codes[16 * j..][..16],
            d * f32::from(scale),
            |x, d| nearest(x / d).clamp(-32, 31) + 32,
        );
    }
    q6_codes(&codes, b);
}

pub(super) fn q6_codes(codes: &[u8; 256], b: &mut [u8]) {
    for (element, code) in codes.iter().enumerate() {
        let (half, plane, l) = (element / 128, element % 128 / 32, element % 32);
        b[64 * half + plane % 2 * 32 + l] |= (code & 15) << (plane / 2 * 4);
        b[128 + 32 * half + l] |= code >> 4 << (2 * plane);
    }
}

pub(super) fn q8(x: Block<'_, 256>, b: &mut [u8; 292]) {
    let max = largest(x.x);
    if max == 0.0 {
        return;
    }
    let id = -127.0 / max;
    b[..4].copy_from_slice(&inverse(id).to_le_bytes());
    for (j, x) in x.x.as_chunks::<16>().0.iter().enumerate() {
        let mut sum = 0;
        for (l, x) in x.iter().enumerate() {
            let code = nearest(id * x).min(127) as i8;
            b[4 + 16 * j + l] = code as u8;
            sum += i16::from(code);
        }
        b[260 + 2 * j..][..2].copy_from_slice(&sum.to_le_bytes());
    }
}
