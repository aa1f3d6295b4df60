//! IQ3_XXS and IQ3_S.

use super::lattice::{Group, Search, scale_code, weights};
use super::{Block, nearby, put_half};

fn search(max: f32, steps: i32, all_again: bool) -> Search {
    Search { top: 15.0, max, step: 0.2, steps, all_again }
}

pub(super) fn iq3_xxs(x: Block<'_, 256>, b: &mut [u8; 98]) {
    let weights = weights(x, 2.0, |_, x| x * x);
    let mut scales = [0.0; 8];
    let mut signs = [0_u32; 8];
    for g in 0..8 {
        let mut group = Group::with_even_signs(&x.x[32 * g..][..32], &weights[32 * g..][..32]);
        let max = group.max();
        if max < 1e-8 {
            continue;
        }
        let (points, scale) = group.fit(&nearby::IQ3_XXS, search(max, 15, false), max / 15.0);
        scales[g] = scale;
        for (k, point) in points.iter().enumerate() {
            b[2 + 8 * g + k] = *point as u8;
        }
        for k in 0..4 {
            signs[g] |= u32::from(group.signs[k] & 127) << (7 * k);
        }
    }
    let max = scales.iter().fold(0.0, |max, &s| if s > max { s } else { max });
    if max == 0.0 {
        b.fill(0);
        return;
    }
    let d = max / 31.0;
    put_half(b, 0, d * 1.0125);
    for g in 0..8 {
        signs[g] |= u32::from(scale_code(1.0 / d, scales[g], 15)) << 28;
    }
    for (b, s) in b[66..].as_chunks_mut().0.iter_mut().zip(signs) {
        *b = s.to_le_bytes();
    }
}

/// A group of zeros takes no place among points and signs, as in ggml: those that follow move up.
pub(super) fn iq3_s(x: Block<'_, 256>, b: &mut [u8; 110]) {
    let weights = weights(x, 2.0, |_, x| x * x);
    let mut scales = [0.0; 8];
    let mut place = 0;
    for g in 0..8 {
        let mut group = Group::new(&x.x[32 * g..][..32], &weights[32 * g..][..32]);
        let max = group.max();
        if max == 0.0 {
            continue;
        }
        let (points, scale) = group.fit(&nearby::IQ3_S, search(max, 9, true), max / 15.0);
        scales[g] = scale;
        for (k, point) in points.iter().enumerate() {
            b[2 + 8 * place + k] = *point as u8;
            b[66 + g] |= ((point >> 8) as u8) << k;
        }
        b[74 + 4 * place..][..4].copy_from_slice(&group.signs);
        place += 1;
    }
    let max = scales.iter().fold(0.0, |max, &s| if s > max { s } else { max });
    if max == 0.0 {
        return;
    }
    let d = max / 31.0;
    put_half(b, 0, d * 1.033);
    for g in 0..8 {
        b[106 + g / 2] |= scale_code(1.0 / d, scales[g], 15) << (4 * (g % 2));
    }
}
