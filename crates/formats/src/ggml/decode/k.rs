//! The K types: 256 values in groups with scales of their own.

use super::half;

/// Two-bit codes in planes: bits 2k, 2k+1 of 32 bytes are 32 elements in a row.
pub(super) fn planes(qs: &[u8], element: usize) -> u8 {
    let (half, plane, l) = (element / 128, element % 128 / 32, element % 32);
    qs[32 * half + l] >> (2 * plane) & 3
}

/// Scale and minimum (six bits each) of group `j` of eight, out of twelve bytes.
pub(in crate::ggml) fn scale_min(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    }
}

/// Scale of group `i` of sixteen of Q3_K, -32..=31, out of twelve bytes.
pub(in crate::ggml) fn q3_scale(s: &[u8], i: usize) -> i8 {
    let low = s[i % 8] >> (4 * (i / 8)) & 15;
    let high = s[8 + i % 4] >> (2 * (i / 4)) & 3;
    (low | high << 4) as i8 - 32
}

pub(super) fn q2(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (half(b, 80), half(b, 82));
    for (group, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(b[group] & 15), dmin * f32::from(b[group] >> 4));
        for (l, y) in y.iter_mut().enumerate() {
            *y = scale * f32::from(planes(&b[16..], 16 * group + l)) - min;
        }
    }
}

pub(super) fn q3(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = half(b, 108);
    for (group, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(q3_scale(&b[96..108], group));
        for (l, y) in y.iter_mut().enumerate() {
            let element = 16 * group + l;
            let high = b[element % 32] >> (element / 32) & 1;
            *y = scale * (f32::from(planes(&b[32..], element) | high << 2) - 4.0);
        }
    }
}

/// Q4_K and Q5_K: `code(element)` finds the whole code.
fn affine(b: &[u8], y: &mut [f32; 256], code: impl Fn(usize) -> u8) {
    let (d, dmin) = (half(b, 0), half(b, 2));
    for (group, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_min(&b[4..16], group);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (l, y) in y.iter_mut().enumerate() {
            *y = scale * f32::from(code(32 * group + l)) - min;
        }
    }
}

/// Four-bit codes: low nibbles of 32 bytes are 32 elements in a row, the high ones the next 32.
fn pairs(qs: &[u8], element: usize) -> u8 {
    qs[element / 64 * 32 + element % 32] >> (element / 32 % 2 * 4) & 15
}

pub(super) fn q4(b: &[u8; 144], y: &mut [f32; 256]) {
    affine(b, y, |element| pairs(&b[16..], element));
}

pub(super) fn q5(b: &[u8; 176], y: &mut [f32; 256]) {
    affine(b, y, |element| {
        pairs(&b[48..], element) | (b[16 + element % 32] >> (element / 32) & 1) << 4
    });
}

pub(super) fn q6(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = half(b, 208);
    for (element, y) in y.iter_mut().enumerate() {
        let (half, plane, l) = (element / 128, element % 128 / 32, element % 32);
        let low = b[64 * half + plane % 2 * 32 + l] >> (plane / 2 * 4) & 15;
        let high = b[128 + 32 * half + l] >> (2 * plane) & 3;
        let scale = d * f32::from(b[192 + element / 16] as i8);
        *y = scale * (f32::from(low | high << 4) - 32.0);
    }
}

pub(super) fn q8(b: &[u8; 292], y: &mut [f32; 256]) {
    let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for (y, q) in y.iter_mut().zip(&b[4..260]) {
        *y = d * f32::from(*q as i8);
    }
}
