//! The plain types: one scale a block, or a few.

use super::super::tables::{E2M1_DOUBLED, half_e8m0, half_ue4m3};
use super::{half, long};

/// Codes in split halves: low nibbles are the first half of the elements, high ones the second.
fn split<const N: usize>(qs: &[u8], y: &mut [f32; N], value: impl Fn(usize, u8) -> f32) {
    for j in 0..N / 2 {
        y[j] = value(j, qs[j] & 15);
        y[N / 2 + j] = value(N / 2 + j, qs[j] >> 4);
    }
}

pub(super) fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(b, 0);
    split(&b[2..], y, |_, q| (f32::from(q) - 8.0) * d);
}

pub(super) fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(b, 0), half(b, 2));
    split(&b[4..], y, |_, q| f32::from(q) * d + m);
}

/// The code with its fifth bit.
fn fifth(q: u8, high: u32, element: usize) -> f32 {
    f32::from(q | ((high >> element & 1) as u8) << 4)
}

pub(super) fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high) = (half(b, 0), long(b, 2));
    split(&b[6..], y, |j, q| (fifth(q, high, j) - 16.0) * d);
}

pub(super) fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m, high) = (half(b, 0), half(b, 2), long(b, 4));
    split(&b[8..], y, |j, q| fifth(q, high, j) * d + m);
}

pub(super) fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half(b, 0);
    for (y, q) in y.iter_mut().zip(&b[2..]) {
        *y = f32::from(*q as i8) * d;
    }
}

pub(super) fn q8_1(b: &[u8; 36], y: &mut [f32; 32]) {
    let d = half(b, 0);
    for (y, q) in y.iter_mut().zip(&b[4..]) {
        *y = f32::from(*q as i8) * d;
    }
}

pub(super) fn q1_0(b: &[u8; 18], y: &mut [f32; 128]) {
    let d = half(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = if b[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}

pub(super) fn q2_0(b: &[u8; 18], y: &mut [f32; 64]) {
    let d = half(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = (f32::from(b[2 + i / 4] >> (2 * (i % 4)) & 3) - 1.0) * d;
    }
}

pub(super) fn mxfp4(b: &[u8; 17], y: &mut [f32; 32]) {
    let d = half_e8m0(b[0]);
    split(&b[1..], y, |_, q| f32::from(E2M1_DOUBLED[usize::from(q)]) * d);
}

pub(super) fn nvfp4(b: &[u8; 36], y: &mut [f32; 64]) {
    for (s, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = half_ue4m3(b[s]);
        split(&b[4 + 8 * s..], y, |_, q| f32::from(E2M1_DOUBLED[usize::from(q)]) * d);
    }
}
