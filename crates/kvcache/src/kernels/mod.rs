//! Inner loops of attention over stored forms: scalar products with keys, weighted sums of values.
//!
//! Every function takes the instruction set as its first argument and runs the portable code where the CPU lacks it.
//! Sizes that do not fit are programmer errors and panic.
#![allow(unsafe_code)]

mod bitmap;
mod float;
mod int;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod softmax;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use bitmap::{Bitmaps, SLACK, arrange, bitmap_dots, bitmap_mix, restore};
pub(crate) use float::{float_dots, float_mix};
pub(crate) use int::{MAX_DIM, Page, Work, by_channel_dots, by_token_dots, by_token_mix};
pub(crate) use lanes::Line;
pub(crate) use softmax::softmax;

/// Lanes of a vector, whatever the registers.
pub(crate) const LANES: usize = 16;

/// Scores of several queries: row `i` is `data[i * stride + first..][..len]`.
pub(crate) struct Scores<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) first: usize,
    pub(crate) len: usize,
}

impl Scores<'_> {
    #[inline(always)]
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.stride + self.first..][..self.len]
    }
}

/// Weights of several queries, laid out as [`Scores`].
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) first: usize,
    pub(crate) len: usize,
}

impl<'a> Weights<'a> {
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride + self.first..][..self.len]
    }
}

/// Makes `fn $name(isa, args...)` from a generic body `fn body<L: Lanes>(l: L, args...)`: one copy per instruction set.
macro_rules! stamp {
    ($(#[$doc:meta])* fn $name:ident ( $($arg:ident : $ty:ty),* $(,)? ) = $body:ident) => {
        $(#[$doc])*
        pub(crate) fn $name(isa: tensorpress_tensor::kernels::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(
                enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx2,fma,f16c,bmi2,popcnt"
            )]
            fn avx512($($arg: $ty),*) {
                // SAFETY: this function is compiled for the features and called only where the CPU has them.
                $body(unsafe { $crate::kernels::x86::Avx512::new() }, $($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
            fn avx2($($arg: $ty),*) {
                // SAFETY: as above.
                $body(unsafe { $crate::kernels::x86::Avx2::new() }, $($arg),*);
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon($($arg: $ty),*) {
                // SAFETY: as above.
                $body(unsafe { $crate::kernels::neon::Neon::new() }, $($arg),*);
            }
            use tensorpress_tensor::kernels::Isa;
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the CPU has the set.
                Isa::Avx512 if isa.is_available() => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the CPU has the set.
                Isa::Avx2 if isa.is_available() => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: the CPU has the set.
                Isa::Neon if isa.is_available() => unsafe { neon($($arg),*) },
                _ => $body($crate::kernels::lanes::Portable, $($arg),*),
            }
        }
    };
}
use stamp;
