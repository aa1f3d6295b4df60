//! The plain types. Without importance one scale from the extremes; with it a fit weighted by importance √(σ² + x²), σ²
//! the mean square of the row.

use super::fit::{Search, affine, symmetric};
use super::{Block, inverse, largest, put_half};

/// Codes in split halves, low nibbles first; fifth bits into `high` if there are any.
pub(super) fn split(codes: &[u8; 32], high: Option<usize>, qs: usize, b: &mut [u8]) {
    for j in 0..16 {
        b[qs + j] = codes[j] & 15 | codes[16 + j] << 4;
    }
    if let Some(at) = high {
        let bits = codes.iter().enumerate().fold(0, |bits, (i, c)| bits | u32::from(c >> 4) << i);
        b[at..at + 4].copy_from_slice(&bits.to_le_bytes());
    }
}

/// Codes around n: the value of the largest magnitude becomes code 0.
fn around(x: Block<'_, 32>, n: u8, b: &mut [u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let half = f32::from(n);
    match x.weights(x.row_square) {
        Some(weights) => {
            let d = symmetric(x.x, n.into(), Some(&weights), &mut codes);
            put_half(b, 0, d);
        }
        None => {
            let d = largest(x.x) / -half;
            put_half(b, 0, d);
            let id = inverse(d);
            for (code, x) in codes.iter_mut().zip(x.x) {
                // Towards zero, which rounds halves up.
                *code = ((x * id + (half + 0.5)) as i32 as u8).min(2 * n - 1);
            }
        }
    }
    codes
}

/// Codes 0..=n between the extremes.
fn between(x: Block<'_, 32>, n: u8, b: &mut [u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    match x.weights(x.row_square) {
        Some(weights) => {
            let (d, min) = affine(x.x, n.into(), &weights, Search::WEIGHTED, &mut codes);
            put_half(b, 0, d);
            put_half(b, 2, -min);
        }
        None => {
            let (mut min, mut max) = (f32::MAX, -f32::MAX);
            for &x in x.x {
                min = if x < min { x } else { min };
                max = if x > max { x } else { max };
            }
            let d = (max - min) / f32::from(n);
            put_half(b, 0, d);
            put_half(b, 2, min);
            let id = inverse(d);
            for (code, x) in codes.iter_mut().zip(x.x) {
                *code = (((x - min) * id + 0.5) as i32 as u8).min(n);
            }
        }
    }
    codes
}

pub(super) fn q4_0(x: Block<'_, 32>, b: &mut [u8; 18]) {
    let codes = around(x, 8, b);
    split(&codes, None, 2, b);
}

pub(super) fn q4_1(x: Block<'_, 32>, b: &mut [u8; 20]) {
    let codes = between(x, 15, b);
    split(&codes, None, 4, b);
}

pub(super) fn q5_0(x: Block<'_, 32>, b: &mut [u8; 22]) {
    let codes = around(x, 16, b);
    split(&codes, Some(2), 6, b);
}

pub(super) fn q5_1(x: Block<'_, 32>, b: &mut [u8; 24]) {
    let codes = between(x, 31, b);
    split(&codes, Some(4), 8, b);
}

/// Signed codes of eight bits and their scale; ties to even, or away from zero.
fn eight<const EVEN: bool>(x: &[f32; 32]) -> ([i8; 32], f32) {
    let max = largest(x).abs();
    let d = max / 127.0;
    let id = match (EVEN, max == 0.0) {
        (true, false) => 127.0 / max,
        (true, true) => 0.0,
        (false, _) => inverse(d),
    };
    let round = |x: f32| if EVEN { (x * id).round_ties_even() } else { (x * id).round() };
    (x.map(|x| round(x) as i8), d)
}

pub(super) fn q8_0<const EVEN: bool>(x: Block<'_, 32>, b: &mut [u8; 34]) {
    let (codes, d) = eight::<EVEN>(x.x);
    put_half(b, 0, d);
    b[2..].copy_from_slice(&codes.map(|c| c as u8));
}

pub(super) fn q8_1<const EVEN: bool>(x: Block<'_, 32>, b: &mut [u8; 36]) {
    let (codes, d) = eight::<EVEN>(x.x);
    put_half(b, 0, d);
    let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
    put_half(b, 2, sum as f32 * d);
    b[4..].copy_from_slice(&codes.map(|c| c as u8));
}
