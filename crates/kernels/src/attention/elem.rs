//! Float types as they lie in memory, read 16 at a time.

use half::{bf16, f16};

use super::Wide;

/// A float type as it lies in memory.
pub(super) trait Elem {
    const SIZE: usize;
    /// 16 values; `bytes` are `16 * SIZE`.
    fn load<L: Wide>(l: L, bytes: &[u8]) -> L::F;
    fn one(bytes: &[u8]) -> f32;
    /// Whether values are spread 32 at a time.
    const PAIRED: bool = false;
    /// [`Wide::expand`] of the first values; 16 can be read.
    #[inline(always)]
    fn spread<L: Wide>(l: L, mask: u16, bytes: &[u8]) -> L::F {
        l.expand(mask, Self::load(l, bytes))
    }
    /// 32 entries where these are [`Elem::PAIRED`], in the order of [`super::arrange`]; 32 can be read.
    #[inline(always)]
    fn spread_pair<L: Wide>(l: L, mask: u32, bytes: &[u8]) -> [L::F; 2] {
        l.expand_bf16(mask, bytes.first_chunk().expect("32 values"))
    }
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Elem for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn load<L: Wide>(l: L, bytes: &[u8]) -> L::F {
        l.load_f32(bytes.first_chunk().expect("16 values"))
    }
    #[inline(always)]
    fn one(bytes: &[u8]) -> f32 {
        f32::from_le_bytes(*bytes.first_chunk().expect("a value"))
    }
}

impl Elem for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<L: Wide>(l: L, bytes: &[u8]) -> L::F {
        l.load_f16(bytes.first_chunk().expect("16 values"))
    }
    #[inline(always)]
    fn one(bytes: &[u8]) -> f32 {
        f16::from_le_bytes(*bytes.first_chunk().expect("a value")).to_f32()
    }
    #[inline(always)]
    fn spread<L: Wide>(l: L, mask: u16, bytes: &[u8]) -> L::F {
        l.expand_f16(mask, bytes.first_chunk().expect("16 values"))
    }
    const PAIRED: bool = true;
    #[inline(always)]
    fn spread_pair<L: Wide>(l: L, mask: u32, bytes: &[u8]) -> [L::F; 2] {
        l.expand_f16_pair(mask, bytes.first_chunk().expect("32 values"))
    }
}

impl Elem for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<L: Wide>(l: L, bytes: &[u8]) -> L::F {
        l.load_bf16(bytes.first_chunk().expect("16 values"))
    }
    #[inline(always)]
    fn one(bytes: &[u8]) -> f32 {
        bf16::from_le_bytes(*bytes.first_chunk().expect("a value")).to_f32()
    }
    const PAIRED: bool = true;
}

/// Calls a generic function with the [`Elem`] of a float type.
macro_rules! with_elem {
    ($dtype:expr, $E:ident => $call:expr) => {
        match $dtype {
            $crate::FloatType::F32 => {
                type $E = $crate::attention::elem::F32;
                $call
            }
            $crate::FloatType::F16 => {
                type $E = $crate::attention::elem::F16;
                $call
            }
            $crate::FloatType::Bf16 => {
                type $E = $crate::attention::elem::Bf16;
                $call
            }
        }
    };
}
pub(super) use with_elem;
