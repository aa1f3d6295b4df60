//! Types whose codes name points of positive values, with signs beside them.

use super::super::grids::{IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::super::tables::{IQ2_LEVELS, IQ3_XXS_LEVELS, signs};
use super::{half, long, nibble, word};

/// Eight values: a point of eight levels of two bits.
fn eight(point: u16, negative: u8, scale: f32, y: &mut [f32; 8]) {
    for (j, y) in y.iter_mut().enumerate() {
        let level = f32::from(IQ2_LEVELS[usize::from(point >> (2 * j) & 3)]);
        *y = signed(scale * level, negative, j);
    }
}

/// Eight values: two points of four levels of three bits.
fn fours(points: [u16; 2], negative: u8, level: impl Fn(u16) -> f32, y: &mut [f32; 8]) {
    for (j, y) in y.iter_mut().enumerate() {
        *y = signed(level(points[j / 4] >> (3 * (j % 4)) & 7), negative, j);
    }
}

fn signed(value: f32, negative: u8, j: usize) -> f32 {
    if negative >> j & 1 == 1 { -value } else { value }
}

/// The common scale of the IQ2 types.
fn quarter(d: f32, s: u8) -> f32 {
    d * (0.5 + f32::from(s)) * 0.25
}

pub(super) fn iq2_xxs(b: &[u8; 66], y: &mut [f32; 256]) {
    let d = half(b, 0);
    for (octet, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (at, l) = (2 + octet / 4 * 8, octet % 4);
        let w = long(b, at + 4);
        let point = IQ2_XXS[usize::from(b[at + l])];
        eight(point, signs((w >> (7 * l)) as u8), quarter(d, (w >> 28) as u8), y);
    }
}

pub(super) fn iq2_xs(b: &[u8; 74], y: &mut [f32; 256]) {
    let d = half(b, 0);
    for (octet, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let w = word(b, 2 + 2 * octet);
        let scale = quarter(d, nibble(&b[66..], octet / 2));
        eight(IQ2_XS[usize::from(w & 511)], signs((w >> 9) as u8), scale, y);
    }
}

pub(super) fn iq2_s(b: &[u8; 82], y: &mut [f32; 256]) {
    let d = half(b, 0);
    for (octet, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = b[66 + octet / 4] >> (octet % 4 * 2) & 3;
        let point = IQ2_S[usize::from(b[2 + octet]) | usize::from(high) << 8];
        eight(point, b[34 + octet], quarter(d, nibble(&b[74..], octet / 2)), y);
    }
}

pub(super) fn iq3_xxs(b: &[u8; 98], y: &mut [f32; 256]) {
    let d = half(b, 0);
    for (octet, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let w = long(b, 66 + octet / 4 * 4);
        let scale = d * (0.5 + (w >> 28) as f32) * 0.5;
        let points = [0, 1].map(|i| IQ3_XXS[usize::from(b[2 + 2 * octet + i])]);
        let level = |code| scale * f32::from(IQ3_XXS_LEVELS[usize::from(code)]);
        fours(points, signs((w >> (octet % 4 * 7)) as u8), level, y);
    }
}

pub(super) fn iq3_s(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = half(b, 0);
    for (octet, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = d * f32::from(1 + 2 * nibble(&b[106..], octet / 4));
        let points = [0, 1].map(|i| {
            let entry = 2 * octet + i;
            let high = b[66 + entry / 8] >> (entry % 8) & 1;
            IQ3_S[usize::from(b[2 + entry]) | usize::from(high) << 8]
        });
        fours(points, b[74 + octet], |code| scale * f32::from(2 * code + 1), y);
    }
}
