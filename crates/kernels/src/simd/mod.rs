//! Vectors of f32 behind one private trait, so that an algorithm is written once.
//!
//! A body is a generic `#[inline(always)]` function over a token `S: Simd`. The [`stamp!`] macro
//! instantiates it inside one `#[target_feature]` function per instruction set and makes the
//! safe entry points from it. Bodies that need no vector operation by name ignore the token:
//! LLVM vectorises their plain loops for the features of the function they were inlined into.

#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, prefetch, prefetch_outer};

use super::Isa;

/// Vector operations of one instruction set.
///
/// # Safety
///
/// A value of an implementing type may exist only while code runs that was compiled for, and on
/// a CPU that has, the features of the set: then the operations are safe to call. An operation
/// may be used only in `#[inline(always)]` code reachable from a function with those features.
pub(super) unsafe trait Simd: Copy {
    /// The set's name.
    const ISA: Isa;
    /// A vector of [`Simd::LANES`] numbers.
    type F32: Copy;
    /// How many numbers a vector holds.
    const LANES: usize;
    /// How many tokens the matrix product handles at once: the register file decides.
    const TILE: usize;

    /// All lanes equal to `v`.
    fn splat(self, v: f32) -> Self::F32;
    /// Reads `LANES` numbers from `at` on.
    ///
    /// # Safety
    ///
    /// `at + LANES <= src.len()`.
    unsafe fn load(self, src: &[f32], at: usize) -> Self::F32;
    /// `a * b + c` in each lane, fused where the set has it.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a + b` in each lane.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The sum of all lanes, in an order that is the same for every call.
    fn sum(self, v: Self::F32) -> f32;
    /// One scalar `a * b + c`, fused exactly where [`Simd::mul_add`] is.
    fn mul_add1(self, a: f32, b: f32, c: f32) -> f32;
}

/// Makes a kernel `$name` and its twin `$on`, which takes the instruction set, from a generic body
/// `fn body<S: Simd>(s: S, args...)`; or the twin alone where one name is given.
macro_rules! stamp {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident, $on:ident
        ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? = $body:ident
    ) => {
        $(#[$doc])*
        #[inline]
        $vis fn $name( $($arg: $ty),* ) $(-> $ret)? {
            $on($crate::Isa::detect(), $($arg),*)
        }

        $crate::simd::stamp! {
            #[doc = concat!("[`", stringify!($name), "`] on a chosen instruction set; the portable code where this CPU lacks it.")]
            $vis fn $on( $($arg : $ty),* ) $(-> $ret)? = $body
        }
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $on:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? = $body:ident
    ) => {
        $(#[$doc])*
        $vis fn $on( isa: $crate::Isa, $($arg: $ty),* ) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt")]
            fn avx2( $($arg: $ty),* ) $(-> $ret)? {
                // SAFETY: this function has the features of the token.
                $body(unsafe { $crate::simd::Avx2::new() }, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
            fn avx512( $($arg: $ty),* ) $(-> $ret)? {
                // SAFETY: this function has the features of the token.
                $body(unsafe { $crate::simd::Avx512::new() }, $($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon( $($arg: $ty),* ) $(-> $ret)? {
                // SAFETY: this function has the features of the token.
                $body(unsafe { $crate::simd::Neon::new() }, $($arg),*)
            }
            match isa.or_generic() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `or_generic` names only sets that this CPU has.
                $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `or_generic` names only sets that this CPU has.
                $crate::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: `or_generic` names only sets that this CPU has.
                $crate::Isa::Neon => unsafe { neon($($arg),*) },
                _ => $body($crate::simd::Portable, $($arg),*),
            }
        }
    };
}
pub(super) use stamp;
