//! One family of vectors behind private traits, so that an algorithm is written once.
//!
//! A body is a generic `#[inline(always)]` function over a token `S`: of [`Simd`] where it wants vectors of the registers'
//! own width, of [`Wide`] where it wants 16 lanes whatever the registers, of [`Stored`] where it reads stored numbers. The
//! [`stamp!`] macro instantiates it inside one `#[target_feature]` function per instruction set and makes the safe entry
//! points from it. Bodies that need no vector operation by name ignore the token: LLVM vectorises their plain loops for
//! the features of the function they were inlined into. Kernels written by hand for a set are chosen with [`dispatch!`],
//! which [`stamp!`] uses too.

mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(super) mod stored;
pub(super) mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use memory::{Ahead, prefetch, stream, stream_again};
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
pub(super) use portable::Portable;
pub(super) use stored::Stored;
pub(super) use wide::Wide;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

use super::Isa;

/// Proof that code runs with an instruction set.
///
/// # Safety
///
/// A value of an implementing type may exist only while code runs that was compiled for, and on
/// a CPU that has, the features of the set: then the operations are safe to call. An operation
/// may be used only in `#[inline(always)]` code reachable from a function with those features.
pub(super) unsafe trait Token: Copy {
    /// The set's name.
    const ISA: Isa;
}

/// Operations on vectors as wide as the registers.
///
/// # Safety
///
/// As for [`Token`].
pub(super) unsafe trait Simd: Token {
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
    /// Writes `LANES` numbers from `at` on.
    ///
    /// # Safety
    ///
    /// `at + LANES <= to.len()`.
    unsafe fn put(self, to: &mut [f32], at: usize, v: Self::F32);
    /// `a * b + c` in each lane, fused where the set has it.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a + b` in each lane.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b` in each lane.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The sum of all lanes, in an order that is the same for every call.
    fn sum(self, v: Self::F32) -> f32;
    /// The sums of four vectors, each in an order that is the same for every call.
    #[inline(always)]
    fn sums(self, v: [Self::F32; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }
    /// One scalar `a * b + c`, fused exactly where [`Simd::mul_add`] is.
    fn mul_add1(self, a: f32, b: f32, c: f32) -> f32;
}

/// The features of [`Isa::Avx512`], given to a macro.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_features {
    ($macro:ident $($rest:tt)*) => {
        $crate::simd::$macro! {
            ["avx2" "fma" "f16c" "bmi2" "popcnt" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi" "avx512vbmi2"
                "avx512vnni"]
            $($rest)*
        }
    };
}
/// The features of [`Isa::Avx2`], given to a macro.
#[cfg(target_arch = "x86_64")]
macro_rules! avx2_features {
    ($macro:ident $($rest:tt)*) => {
        $crate::simd::$macro! { ["avx2" "fma" "f16c" "bmi2" "popcnt"] $($rest)* }
    };
}
/// Compiles a function for features.
#[cfg(target_arch = "x86_64")]
macro_rules! compiled_for {
    ([$($feature:tt)*] $($function:tt)*) => {
        #[target_feature($(enable = $feature),*)]
        $($function)*
    };
}
/// Whether the CPU has features.
#[cfg(target_arch = "x86_64")]
macro_rules! detected {
    ([$($feature:tt)*]) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
}
/// Compiles a function for [`Isa::Avx512`].
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    ($($function:tt)*) => { $crate::simd::avx512_features! { compiled_for $($function)* } };
}
/// Compiles a function for [`Isa::Avx2`].
#[cfg(target_arch = "x86_64")]
macro_rules! avx2 {
    ($($function:tt)*) => { $crate::simd::avx2_features! { compiled_for $($function)* } };
}
#[cfg(target_arch = "x86_64")]
pub(super) use {avx2, avx2_features, avx512, avx512_features, compiled_for, detected};

/// Calls what is written for an instruction set, if this CPU has it: functions of `avx512!` and `avx2!`, and of NEON. What
/// is written for AVX2 serves AVX-512 too where nothing else is.
macro_rules! dispatch {
    ($isa:expr; $(avx512 => $avx512:expr;)? $(avx2 => $avx2:expr;)? $(neon => $neon:expr;)? _ => $portable:expr $(;)?) => {
        {
        #[allow(unreachable_patterns)]
        let given = match $isa.or_generic() {
            $(
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `or_generic` names only sets that this CPU has.
                $crate::Isa::Avx512 => unsafe { $avx512 },
            )?
            $(
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `or_generic` names only sets that this CPU has.
                $crate::Isa::Avx2 | $crate::Isa::Avx512 => unsafe { $avx2 },
            )?
            $(
                #[cfg(target_arch = "aarch64")]
                // SAFETY: `or_generic` names only sets that this CPU has.
                $crate::Isa::Neon => unsafe { $neon },
            )?
            _ => $portable,
        };
        given
        }
    };
}
pub(super) use dispatch;

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
        $vis:vis fn $on:ident $(<$K:ident : $bound:path>)? ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? = $body:ident
    ) => {
        $(#[$doc])*
        $vis fn $on $(<$K: $bound>)? ( isa: $crate::Isa, $($arg: $ty),* ) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::avx2! {
                fn avx2 $(<$K: $bound>)? ( $($arg: $ty),* ) $(-> $ret)? {
                    // SAFETY: this function has the features of the token.
                    $body(unsafe { $crate::simd::Avx2::new() }, $($arg),*)
                }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::avx512! {
                fn avx512 $(<$K: $bound>)? ( $($arg: $ty),* ) $(-> $ret)? {
                    // SAFETY: this function has the features of the token.
                    $body(unsafe { $crate::simd::Avx512::new() }, $($arg),*)
                }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon $(<$K: $bound>)? ( $($arg: $ty),* ) $(-> $ret)? {
                // SAFETY: this function has the features of the token.
                $body(unsafe { $crate::simd::Neon::new() }, $($arg),*)
            }
            $crate::simd::dispatch! { isa;
                avx512 => avx512($($arg),*);
                avx2 => avx2($($arg),*);
                neon => neon($($arg),*);
                _ => $body($crate::simd::Portable, $($arg),*)
            }
        }
    };
}
pub(super) use stamp;
