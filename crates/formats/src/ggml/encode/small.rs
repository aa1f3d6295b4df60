//! One and two bits, and four-bit floats.

use super::super::tables::{E2M1_DOUBLED, half_e8m0, half_ue4m3};
use super::{Block, inverse, largest, put_half};

pub(super) fn q1_0(x: Block<'_, 128>, b: &mut [u8; 18]) {
    let sum = x.x.iter().fold(0.0, |sum, x| sum + x.abs());
    put_half(b, 0, sum / 128.0);
    for (i, &x) in x.x.iter().enumerate() {
        b[2 + i / 8] |= u8::from(x >= 0.0) << (i % 8);
    }
}

pub(super) fn q2_0(x: Block<'_, 64>, b: &mut [u8; 18]) {
    let d = largest(x.x).abs();
    put_half(b, 0, d);
    let id = inverse(d);
    for (i, &x) in x.x.iter().enumerate() {
        let code = ((x * id).round() as i32 + 1).clamp(0, 3);
        b[2 + i / 4] |= (code as u8) << (2 * (i % 4));
    }
}

/// The nearest E2M1, the first of equals.
fn e2m1(x: f32, half_scale: f32) -> u8 {
    let error = |code: u8| (f32::from(E2M1_DOUBLED[usize::from(code)]) * half_scale - x).abs();
    (1..16)
        .fold(
            (0, error(0)),
            |best, code| if error(code) < best.1 { (code, error(code)) } else { best },
        )
        .0
}

pub(super) fn mxfp4(x: Block<'_, 32>, b: &mut [u8; 17]) {
    let max = largest(x.x).abs();
    // 4 = 2^2 is the power of two in the largest E2M1.
    let e = if max > 0.0 { (max.log2().floor() as i32 - 2 + 127) as u8 } else { 0 };
    b[0] = e;
    let d = half_e8m0(e);
    for j in 0..16 {
        b[1 + j] = e2m1(x.x[j], d) | e2m1(x.x[16 + j], d) << 4;
    }
}

/// The scale of NVFP4: halves of the last bit go up, and from 256 on it is 448.
fn ue4m3(x: f32) -> u8 {
    const LARGEST: u8 = 0x7e;
    if x <= 0.0 || x.is_nan() {
        return 0;
    }
    let bits = x.min(448.0).to_bits();
    let exponent = (bits >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        return ((x * 512.0 + 0.5) as i32).min(7) as u8;
    }
    // The last bit kept may carry into the exponent.
    let code = (((exponent as u32) << 3) | (bits >> 20 & 7)) + (bits >> 19 & 1);
    if exponent >= 15 || code >= 15 << 3 { LARGEST } else { code as u8 }
}

pub(super) fn nvfp4(x: Block<'_, 64>, b: &mut [u8; 36]) {
    for (s, x) in x.x.as_chunks::<16>().0.iter().enumerate() {
        b[s] = ue4m3(largest(x).abs() / 6.0);
        let d = half_ue4m3(b[s]);
        for j in 0..8 {
            b[4 + 8 * s + j] = e2m1(x[j], d) | e2m1(x[8 + j], d) << 4;
        }
    }
}
