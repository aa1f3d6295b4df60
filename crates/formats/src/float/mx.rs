//! Blocks of small floats under a shared scale: MX (powers of two) and NVFP4.
//!
//! Codes lie one to a byte here; how files pack them is theirs. Source: OCP Microscaling Formats v1.0; scales and
//! rounding as in torchao.

use tensorpress_tensor::{Error, Result};

use super::{Rounding, Small};

/// How the shared scale of an MX block follows from its largest magnitude; `emax` is the exponent of the largest
/// element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScaleRule {
    /// `floor`: 2^(⌊log2 max⌋ - emax), the specification's; magnitudes above the largest element are clipped.
    Floor,
    /// `ceil`: 2^(⌈log2 max⌉ - emax).
    Ceil,
    /// `even`: as `Floor`, of the largest magnitude rounded to the element's mantissa, halves up.
    Even,
    /// `rceil`: the smallest power of two under which nothing is clipped.
    RoundedCeil,
}

impl ScaleRule {
    /// Every rule.
    pub const ALL: [Self; 4] = [Self::Floor, Self::Ceil, Self::Even, Self::RoundedCeil];

    /// torchao's name of the rule, in small letters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Ceil => "ceil",
            Self::Even => "even",
            Self::RoundedCeil => "rceil",
        }
    }

    /// The scale ([`Small::E8m0FnU`]) of a block whose largest magnitude is `max`, not below 0: 0x00 for zeros, NaN for
    /// NaN; infinity counts as 2^128.
    #[must_use]
    pub fn scale(self, max: f32, element: Small) -> u8 {
        if max.is_nan() {
            return 0xff;
        }
        let exponent = |bits: u32| (bits >> 23) as i32;
        let fraction = |bits: u32| bits & ((1 << 23) - 1);
        let bits = max.to_bits();
        let emax = exponent(element.max().to_bits()) - 127;
        let code = match self {
            Self::Floor => exponent(bits) - emax,
            Self::Ceil => exponent(bits) + i32::from(fraction(bits) > 0) - emax,
            Self::Even => exponent(bits + (1 << (22 - element.spec().mantissa))) - emax,
            Self::RoundedCeil => {
                let bits = (max / element.max()).to_bits();
                // The first code is itself half of a binade.
                let below = if exponent(bits) == 0 { 1 << 22 } else { 0 };
                exponent(bits) + i32::from(fraction(bits) > below)
            }
        };
        code.clamp(0, 0xfe) as u8
    }
}

/// Encodes a block of MX: returns its scale, writes a code for each value. Elements are clipped, then rounded to the
/// nearest, ties to even; under a scale that is NaN codes are 0.
///
/// # Errors
/// `ShapeMismatch` if there are not as many codes as values.
pub fn encode_block(
    rule: ScaleRule,
    element: Small,
    values: &[f32],
    codes: &mut [u8],
) -> Result<u8> {
    same_length(values.len(), codes.len())?;
    let scale = rule.scale(largest(values), element);
    // The smallest scale is a subnormal: torchao divides by the next one, or leaves such values as they are, next to 0.
    let divisor = match (scale, rule) {
        (0, ScaleRule::RoundedCeil) => 1.0,
        _ => Small::E8m0FnU.decode(scale.max(1)),
    };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = if scale == 0xff { 0 } else { element.encode(value / divisor, Rounding::Saturate) };
    }
    Ok(scale)
}

/// Decodes a block of MX.
///
/// # Errors
/// `ShapeMismatch` if there are not as many codes as values.
pub fn decode_block(scale: u8, element: Small, codes: &[u8], out: &mut [f32]) -> Result<()> {
    same_length(out.len(), codes.len())?;
    let scale = Small::E8m0FnU.decode(scale);
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = element.decode(code) * scale;
    }
    Ok(())
}

/// The scale of a whole tensor for [`encode_nvfp4`], of its largest magnitude.
#[must_use]
pub fn nvfp4_tensor_scale(max: f32) -> f32 {
    max / (Small::E4m3Fn.max() * Small::E2m1Fn.max())
}

/// Encodes a block of NVFP4 (16 values in files): returns its scale ([`Small::E4m3Fn`], not below 2^-6), writes an E2M1
/// for each value, 0 for NaN. `tensor_scale` is 1 where there is none.
///
/// # Errors
/// `ShapeMismatch` if there are not as many codes as values.
pub fn encode_nvfp4(tensor_scale: f32, values: &[f32], codes: &mut [u8]) -> Result<u8> {
    same_length(values.len(), codes.len())?;
    const SMALLEST: f32 = 1.0 / 64.0;
    let wanted = largest(values) / Small::E2m1Fn.max() / tensor_scale;
    let scale = Small::E4m3Fn.encode(wanted.max(SMALLEST), Rounding::Saturate);
    let factor = 1.0 / tensor_scale / Small::E4m3Fn.decode(scale);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = Small::E2m1Fn.encode(value * factor, Rounding::Saturate);
    }
    Ok(scale)
}

/// Decodes a block of NVFP4.
///
/// # Errors
/// `ShapeMismatch` if there are not as many codes as values.
pub fn decode_nvfp4(tensor_scale: f32, scale: u8, codes: &[u8], out: &mut [f32]) -> Result<()> {
    same_length(out.len(), codes.len())?;
    let scale = tensor_scale * Small::E4m3Fn.decode(scale);
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = Small::E2m1Fn.decode(code) * scale;
    }
    Ok(())
}

/// The largest magnitude; NaN if a value is.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, x| if x.is_nan() || x.abs() > max { x.abs() } else { max })
}

fn same_length(values: usize, codes: usize) -> Result<()> {
    if values == codes {
        return Ok(());
    }
    Err(Error::shape(format!("{codes} codes of {values} values")))
}
