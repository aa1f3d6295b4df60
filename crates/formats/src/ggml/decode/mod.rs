//! From blocks to values. The order of operations is ggml's: scales first, then codes, then minima, each in f32.

mod iq;
mod k;
mod legacy;
mod points;
mod ternary;

use tensorpress_tensor::half::{bf16, f16};
use tensorpress_tensor::{Error, Result};

use super::Type;
pub(super) use k::{q3_scale, scale_min};

/// Decodes whole blocks of type `ty` into `out`.
///
/// What the bytes say is what comes out: a scale that is infinite or NaN gives values that are.
///
/// # Errors
/// `Corruption` if `bytes` are no whole number of blocks, `ShapeMismatch` if `out` is not as long as what they hold.
pub fn decode(ty: Type, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if !bytes.len().is_multiple_of(ty.block_bytes()) {
        let (name, len, block) = (ty.name(), bytes.len(), ty.block_bytes());
        return Err(Error::corruption(format!(
            "{len} bytes are not whole blocks of {name} ({block} bytes)"
        )));
    }
    let blocks = bytes.len() / ty.block_bytes();
    if !out.len().is_multiple_of(ty.block_len()) || out.len() / ty.block_len() != blocks {
        let (name, len, block) = (ty.name(), out.len(), ty.block_len());
        return Err(Error::shape(format!(
            "{blocks} blocks of {name} hold {block} values each, not {len} together"
        )));
    }
    match ty {
        Type::F16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = half(b, 0)),
        Type::BF16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| {
            y[0] = bf16::from_le_bytes(*b).to_f32()
        }),
        Type::Q4_0 => each(bytes, out, legacy::q4_0),
        Type::Q4_1 => each(bytes, out, legacy::q4_1),
        Type::Q5_0 => each(bytes, out, legacy::q5_0),
        Type::Q5_1 => each(bytes, out, legacy::q5_1),
        Type::Q8_0 => each(bytes, out, legacy::q8_0),
        Type::Q8_1 => each(bytes, out, legacy::q8_1),
        Type::Q1_0 => each(bytes, out, legacy::q1_0),
        Type::Q2_0 => each(bytes, out, legacy::q2_0),
        Type::MXFP4 => each(bytes, out, legacy::mxfp4),
        Type::NVFP4 => each(bytes, out, legacy::nvfp4),
        Type::Q2_K => each(bytes, out, k::q2),
        Type::Q3_K => each(bytes, out, k::q3),
        Type::Q4_K => each(bytes, out, k::q4),
        Type::Q5_K => each(bytes, out, k::q5),
        Type::Q6_K => each(bytes, out, k::q6),
        Type::Q8_K => each(bytes, out, k::q8),
        Type::TQ1_0 => each(bytes, out, ternary::tq1),
        Type::TQ2_0 => each(bytes, out, ternary::tq2),
        Type::IQ4_NL => each(bytes, out, iq::iq4_nl),
        Type::IQ4_XS => each(bytes, out, iq::iq4_xs),
        Type::IQ2_XXS => each(bytes, out, points::iq2_xxs),
        Type::IQ2_XS => each(bytes, out, points::iq2_xs),
        Type::IQ2_S => each(bytes, out, points::iq2_s),
        Type::IQ3_XXS => each(bytes, out, points::iq3_xxs),
        Type::IQ3_S => each(bytes, out, points::iq3_s),
        Type::IQ1_S => each(bytes, out, iq::iq1_s),
        Type::IQ1_M => each(bytes, out, iq::iq1_m),
    }
    Ok(())
}

/// Block by block; a block's sizes are those of the type.
fn each<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    one: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, values) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        one(block, values);
    }
}

/// The f16 at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The u16 at byte `at`.
fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The u32 at byte `at`.
fn long(block: &[u8], at: usize) -> u32 {
    u32::from(word(block, at)) | u32::from(word(block, at + 2)) << 16
}

/// Nibble `i` of a run of bytes, the low one first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}
