//! Scales and codes, decided elsewhere, as blocks.

use tensorpress_tensor::half::f16;

use super::super::Type;
use super::{iq4, k, k_coded, legacy};

/// What stands beside the codes of a block.
#[derive(Debug, Clone, Copy)]
pub(in crate::ggml) struct Scales {
    /// d, and m or dmin where the type has one.
    pub(in crate::ggml) halves: [f16; 2],
    /// Scale and minimum of each group as they are stored, where groups have their own.
    pub(in crate::ggml) groups: [[u8; 2]; 16],
}

impl Scales {
    /// The stored scales, or minima, of the first groups.
    fn of<const N: usize>(&self, which: usize) -> [u8; N] {
        std::array::from_fn(|group| self.groups[group][which])
    }

    fn halves(&self, b: &mut [u8], places: [Option<usize>; 2]) {
        for (half, at) in self.halves.iter().zip(places) {
            if let Some(at) = at {
                b[at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
        }
    }
}

/// Writes one block, which must hold zeros, of a type that [`Fill`](crate::ggml::Fill) fills. `codes` are as many as the
/// block has values, in their order.
pub(in crate::ggml) fn write(ty: Type, scales: &Scales, codes: &[u8], b: &mut [u8]) {
    let small = || <&[u8; 32]>::try_from(codes).expect("32 values");
    let large = || <&[u8; 256]>::try_from(codes).expect("256 values");
    match ty {
        Type::Q4_0 | Type::IQ4_NL => {
            scales.halves(b, [Some(0), None]);
            legacy::split(small(), None, 2, b);
        }
        Type::Q5_0 => {
            scales.halves(b, [Some(0), None]);
            legacy::split(small(), Some(2), 6, b);
        }
        Type::Q4_1 => {
            scales.halves(b, [Some(0), Some(2)]);
            legacy::split(small(), None, 4, b);
        }
        Type::Q5_1 => {
            scales.halves(b, [Some(0), Some(2)]);
            legacy::split(small(), Some(4), 8, b);
        }
        Type::Q8_0 => {
            scales.halves(b, [Some(0), None]);
            b[2..].copy_from_slice(codes);
        }
        Type::MXFP4 => {
            b[0] = scales.groups[0][0];
            legacy::split(small(), None, 1, b);
        }
        Type::NVFP4 => {
            b[..4].copy_from_slice(&scales.of::<4>(0));
            for (group, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
                for j in 0..8 {
                    b[4 + 8 * group + j] = codes[j] | codes[8 + j] << 4;
                }
            }
        }
        Type::Q2_K => {
            for (group, [scale, min]) in scales.groups.iter().enumerate() {
                b[group] = scale | min << 4;
            }
            scales.halves(b, [Some(80), Some(82)]);
            k::planes(large(), &mut b[16..80]);
        }
        Type::Q3_K => {
            k::q3_scales(&scales.of(0), b);
            scales.halves(b, [Some(108), None]);
            k::q3_codes(large(), b);
        }
        Type::Q4_K => {
            scales.halves(b, [Some(0), Some(2)]);
            k_coded::scales_and_minima(&scales.of(0), &scales.of(1), b);
            k_coded::pairs(large(), &mut b[16..]);
        }
        Type::Q5_K => {
            scales.halves(b, [Some(0), Some(2)]);
            k_coded::scales_and_minima(&scales.of(0), &scales.of(1), b);
            k_coded::q5_codes(large(), b);
        }
        Type::Q6_K => {
            b[192..208].copy_from_slice(&scales.of::<16>(0));
            scales.halves(b, [Some(208), None]);
            k::q6_codes(large(), b);
        }
        Type::IQ4_XS => {
            scales.halves(b, [Some(0), None]);
            iq4::xs_scales(&scales.of(0), b);
            for (group, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
                legacy::split(codes, None, 8 + 16 * group, b);
            }
        }
        other => unreachable!("{} is not filled", other.name()),
    }
}
