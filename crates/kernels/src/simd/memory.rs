//! Asking for memory before it is read.
//!
//! Whether that helps, and how, is a property of the CPU, not of the code: on one a hint into no cache but the first saves
//! the others for what is needed again, on the other it waits for the few places of lines on their way. What is chosen for
//! whom is said here, and measured in `docs/benchmarks/speed.md`.

use std::sync::OnceLock;

use crate::cpu::{Vendor, vendor};

/// Where a line that is asked for should come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// The first cache: for a little way ahead, as the places for lines on their way there are few.
    Near,
    /// The second cache: as far ahead as one likes.
    Outer,
    /// The first cache, past the outer ones: for what is read once.
    Once,
}

/// How a long stream that is read once (12 KiB ahead) is asked for: as AMD's Zen 4 and 5 gain by [`Ahead::Once`], and as
/// everyone else bears.
///
/// 8192 x 28672 weights of 4 bits, one token, on one thread of an Intel Xeon (Emerald Rapids), four such matrices in turn so
/// that no cache holds the next: [`Ahead::Once`] 14.9 ms, nothing 12.8, [`Ahead::Near`] 9.0, [`Ahead::Outer`] 8.7, a plain
/// read 9.1. On Zen 5 [`Ahead::Once`] gave 0.82 to 0.92 of a plain read.
pub(crate) fn stream() -> Ahead {
    static CHOSEN: OnceLock<Ahead> = OnceLock::new();
    *CHOSEN.get_or_init(|| match vendor() {
        Vendor::Amd => Ahead::Once,
        Vendor::Other => Ahead::Outer,
    })
}

/// The same for a stream whose lines are read again right away, by other tokens.
pub(crate) fn stream_again() -> Ahead {
    match stream() {
        Ahead::Once => Ahead::Near,
        other => other,
    }
}

/// Asks for the cache line at an address, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T, to: Ahead) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and every x86-64 CPU has it; any address is allowed.
    unsafe {
        use std::arch::x86_64::*;
        match to {
            Ahead::Near => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
            Ahead::Outer => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
            Ahead::Once => _mm_prefetch::<_MM_HINT_NTA>(at.cast()),
        }
    }
    // Elsewhere the hardware's own foresight is left to it.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, to);
}
