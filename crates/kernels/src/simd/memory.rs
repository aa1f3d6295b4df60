//! Asking for memory before it is read.

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
