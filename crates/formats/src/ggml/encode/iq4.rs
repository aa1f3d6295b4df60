//! IQ4_NL and IQ4_XS: indices into uneven levels.

use super::super::tables::IQ4_LEVELS;
use super::fit::TINY;
use super::{Block, inverse, largest, nearest, nearest_level, put_half, square};

fn level(index: usize) -> f32 {
    f32::from(IQ4_LEVELS[index])
}

/// The scale of a group of 32 that fits best, of `2 tries + 1` more than the first.
fn scale(x: &[f32], weights: &[f32], tries: i32) -> f32 {
    let max = largest(x);
    if max.abs() < TINY {
        return 0.0;
    }
    let sums = |inverse: f32| {
        let (mut qx, mut qq) = (0.0, 0.0);
        for (&x, &w) in x.iter().zip(weights) {
            let q = level(nearest_level(&IQ4_LEVELS, inverse * x));
            qx += w * q * x;
            qq += w * q * q;
        }
        (qx, qq)
    };
    let first = if tries > 0 { -max / level(0) } else { max / level(0) };
    let (qx, qq) = sums(1.0 / first);
    // Nothing fits where no value counts.
    let mut d = if qq > 0.0 { qx / qq } else { 0.0 };
    let mut best = d * qx;
    for step in -tries..=tries {
        let (qx, qq) = sums((step as f32 + level(0)) / max);
        if qq > 0.0 && qx * qx > best * qq {
            d = qx / qq;
            best = d * qx;
        }
    }
    d
}

fn weights<const N: usize>(x: Block<'_, N>) -> [f32; N] {
    x.weights(square(x.x) * (2.0 / N as f32)).unwrap_or_else(|| x.x.map(|x| x * x))
}

/// Indices in split halves.
fn split(x: &[f32], inverse: f32, qs: &mut [u8]) {
    let index = |x: f32| nearest_level(&IQ4_LEVELS, inverse * x) as u8;
    for j in 0..16 {
        qs[j] = index(x[j]) | index(x[16 + j]) << 4;
    }
}

pub(super) fn iq4_nl(x: Block<'_, 32>, b: &mut [u8; 18]) {
    let d = scale(x.x, &weights(x), 7);
    put_half(b, 0, d);
    split(x.x, inverse(d), &mut b[2..]);
}

/// Without the search: indices are those under the first scale.
pub(super) fn iq4_nl_plain(x: Block<'_, 32>, b: &mut [u8; 18]) {
    let d = scale(x.x, &x.x.map(|x| x * x), -1);
    put_half(b, 0, d);
    split(x.x, inverse(largest(x.x) / level(0)), &mut b[2..]);
}

pub(super) fn iq4_xs(x: Block<'_, 256>, b: &mut [u8; 136]) {
    let weights = weights(x);
    let scales: [f32; 8] =
        std::array::from_fn(|g| scale(&x.x[32 * g..][..32], &weights[32 * g..][..32], 7));
    let d = -largest(&scales) / 32.0;
    put_half(b, 0, d);
    let id = inverse(d);
    let mut ls = [0; 8];
    for g in 0..8 {
        let l = nearest(id * scales[g]).clamp(-32, 31);
        split(&x.x[32 * g..][..32], inverse(d * l as f32), &mut b[8 + 16 * g..][..16]);
        ls[g] = (l + 32) as u8;
    }
    xs_scales(&ls, b);
}

/// Scales, 32 above what they are.
pub(super) fn xs_scales(ls: &[u8; 8], b: &mut [u8]) {
    let mut high = 0_u16;
    for (g, l) in ls.iter().enumerate() {
        b[4 + g / 2] |= (l & 15) << (4 * (g % 2));
        high |= u16::from(l >> 4) << (2 * g);
    }
    b[2..4].copy_from_slice(&high.to_le_bytes());
}
