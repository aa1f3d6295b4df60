//! IQ2_XXS, IQ2_XS and IQ2_S.

use super::fit::{TINY, positive};
use super::lattice::{Group, Search, scale_code, weights};
use super::{Block, nearby, put_half};

/// Scales of a block are 4 bits of `d (2 l + 1)`: the largest is 31.
const LARGEST: f32 = 31.0;

/// Searches a group of 16 from the largest value.
fn plain(max: f32) -> Search {
    Search { top: 5.0, max, step: 0.1, steps: 9, all_again: false }
}

fn largest(scales: &[f32]) -> f32 {
    scales.iter().fold(0.0, |max, &s| if s > max { s } else { max })
}

pub(super) fn iq2_xxs(x: Block<'_, 256>, b: &mut [u8; 66]) {
    let weights = weights(x, 1.0, |_, x| x * x);
    let mut scales = [0.0; 8];
    let mut qs = [0_u32; 16];
    for g in 0..8 {
        let mut group = Group::with_even_signs(&x.x[32 * g..][..32], &weights[32 * g..][..32]);
        if group.max() < TINY {
            continue;
        }
        let scale = positive(&group.x, 4, group.weight, &mut [0; 32]);
        let max = scale * 3.0;
        if max <= 0.0 {
            continue;
        }
        let search = Search { steps: 6, all_again: true, ..plain(max) };
        let (points, scale) = group.fit(&nearby::IQ2_XXS, search, scale);
        scales[g] = scale;
        for k in 0..4 {
            qs[2 * g] |= u32::from(points[k]) << (8 * k);
            qs[2 * g + 1] |= u32::from(group.signs[k] & 127) << (7 * k);
        }
    }
    let max = largest(&scales);
    if max == 0.0 {
        return;
    }
    let d = max / LARGEST;
    put_half(b, 0, d);
    for g in 0..8 {
        qs[2 * g + 1] |= u32::from(scale_code(1.0 / d, scales[g], 15)) << 28;
    }
    for (b, q) in b[2..].as_chunks_mut().0.iter_mut().zip(qs) {
        *b = q.to_le_bytes();
    }
}

pub(super) fn iq2_xs(x: Block<'_, 256>, b: &mut [u8; 74]) {
    let weights = weights(x, 1.0, |_, x| x * x);
    let mut scales = [0.0; 16];
    let mut qs = [0_u16; 32];
    for g in 0..16 {
        let mut group = Group::with_even_signs(&x.x[16 * g..][..16], &weights[16 * g..][..16]);
        let max = group.max();
        if max < TINY {
            continue;
        }
        let (points, scale) = group.fit(&nearby::IQ2_XS, plain(max), max / 5.0);
        scales[g] = scale;
        for k in 0..2 {
            qs[2 * g + k] = points[k] | u16::from(group.signs[k] & 127) << 9;
        }
    }
    let max = largest(&scales);
    if max == 0.0 {
        return;
    }
    let d = max / LARGEST;
    put_half(b, 0, d);
    for g in 0..16 {
        b[66 + g / 2] |= scale_code(1.0 / d, scales[g], 15) << (4 * (g % 2));
    }
    for (b, q) in b[2..66].as_chunks_mut().0.iter_mut().zip(qs) {
        *b = q.to_le_bytes();
    }
}

pub(super) fn iq2_s(x: Block<'_, 256>, b: &mut [u8; 82]) {
    let weights = weights(x, 2.0, |s, x| 0.25 * s + x * x);
    let mut scales = [0.0; 16];
    for g in 0..16 {
        let mut group = Group::new(&x.x[16 * g..][..16], &weights[16 * g..][..16]);
        let max = group.max();
        if max < 1e-8 {
            continue;
        }
        let (points, scale) = group.fit(&nearby::IQ2_S, plain(max), max / 5.0);
        scales[g] = scale;
        for k in 0..2 {
            let octet = 2 * g + k;
            b[2 + octet] = points[k] as u8;
            b[34 + octet] = group.signs[k];
            b[66 + octet / 4] |= ((points[k] >> 8) as u8) << (2 * (octet % 4));
        }
    }
    let max = largest(&scales);
    if max == 0.0 {
        return;
    }
    let d = max / LARGEST;
    put_half(b, 0, d * 0.9875);
    for g in 0..16 {
        b[74 + g / 2] |= scale_code(1.0 / d, scales[g], 15) << (4 * (g % 2));
    }
}
