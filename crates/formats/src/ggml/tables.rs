//! Small tables of the block types.

/// The levels of IQ4_NL and IQ4_XS.
pub(super) const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// E2M1 doubled, so that it is whole: what MXFP4 and NVFP4 count in, with half their scales.
pub(super) const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The levels of IQ2_XXS, IQ2_XS and IQ2_S.
pub(super) const IQ2_LEVELS: [u8; 3] = [8, 25, 43];

/// The levels of IQ3_XXS.
pub(super) const IQ3_XXS_LEVELS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];

/// Eight signs from seven bits, bit j set: element j is negative. The eighth makes their number even.
pub(super) fn signs(seven: u8) -> u8 {
    let seven = seven & 127;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

/// 2^(e - 128): half the scale of MXFP4. 255 is not NaN here.
pub(super) fn half_e8m0(e: u8) -> f32 {
    match e {
        0 => f32::from_bits(1 << 21),
        1 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// Half the scale of NVFP4: E4M3 without a sign, in which 0x7f is 0. The top bit counts for nothing.
pub(super) fn half_ue4m3(code: u8) -> f32 {
    if code == 0x7f {
        return 0.0;
    }
    let (exponent, fraction) = (code >> 3 & 15, f32::from(code & 7));
    match exponent {
        0 => fraction / 1024.0,
        _ => (8.0 + fraction) * f32::from_bits((u32::from(exponent) + 127 - 11) << 23),
    }
}
