//! Reading stored numbers and spreading them over the lanes of a support, beyond what [`Simd`] does.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Portable, Simd};

/// Reading stored numbers as f32 and spreading them over the lanes of a support.
///
/// # Safety
///
/// As [`Simd`].
pub(crate) unsafe trait Stored: Simd {
    /// `LANES` little-endian f32.
    ///
    /// # Safety
    ///
    /// So many numbers lie at `at`, at any alignment; so for the other types below.
    unsafe fn f32s(self, at: *const u8) -> Self::F32;
    /// `LANES` f16.
    ///
    /// # Safety
    ///
    /// As [`Stored::f32s`].
    unsafe fn f16s(self, at: *const u8) -> Self::F32;
    /// `LANES` bf16.
    ///
    /// # Safety
    ///
    /// As [`Stored::f32s`].
    unsafe fn bf16s(self, at: *const u8) -> Self::F32;
    /// `LANES` bytes as whole numbers.
    ///
    /// # Safety
    ///
    /// As [`Stored::f32s`].
    unsafe fn bytes(self, at: *const u8) -> Self::F32;
    /// The first half of `LANES` f32; the others are 0. So for the other types below.
    ///
    /// # Safety
    ///
    /// As [`Stored::f32s`], for half as many.
    unsafe fn half_f32s(self, at: *const u8) -> Self::F32;
    /// Half as many f16.
    ///
    /// # Safety
    ///
    /// As [`Stored::half_f32s`].
    unsafe fn half_f16s(self, at: *const u8) -> Self::F32;
    /// Half as many bf16.
    ///
    /// # Safety
    ///
    /// As [`Stored::half_f32s`].
    unsafe fn half_bf16s(self, at: *const u8) -> Self::F32;
    /// Lane by lane from the lowest: the next number of `v` where the bit of `keep` is set, else 0.
    fn expand(self, keep: u32, v: Self::F32) -> Self::F32;
    /// `scale * (v - zero)` in each lane, both operations rounded.
    fn affine(self, v: Self::F32, scale: f32, zero: f32) -> Self::F32;
    /// Writes `LANES` numbers.
    ///
    /// # Safety
    ///
    /// There is place for them at `at`.
    unsafe fn store(self, at: *mut f32, v: Self::F32);
}

/// Numbers from the bytes at an address.
///
/// # Safety
///
/// `N * M` bytes lie there.
#[inline(always)]
unsafe fn numbers<const N: usize, const M: usize>(
    at: *const u8,
    number: impl Fn([u8; N]) -> f32,
) -> [f32; M] {
    // SAFETY: the caller has so many bytes there; arrays of bytes may lie anywhere.
    let bytes = unsafe { at.cast::<[[u8; N]; M]>().read() };
    bytes.map(number)
}

#[inline(always)]
fn half([a, b, c, d]: [f32; 4]) -> [f32; 8] {
    [a, b, c, d, 0.0, 0.0, 0.0, 0.0]
}

// SAFETY: the operations need no CPU feature.
unsafe impl Stored for Portable {
    #[inline(always)]
    unsafe fn f32s(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { numbers(at, f32::from_le_bytes) }
    }
    #[inline(always)]
    unsafe fn f16s(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { numbers(at, |b| crate::convert::widen_f16(u16::from_le_bytes(b))) }
    }
    #[inline(always)]
    unsafe fn bf16s(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { numbers(at, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)) }
    }
    #[inline(always)]
    unsafe fn bytes(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { numbers(at, |[b]: [u8; 1]| f32::from(b)) }
    }
    #[inline(always)]
    unsafe fn half_f32s(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        half(unsafe { numbers(at, f32::from_le_bytes) })
    }
    #[inline(always)]
    unsafe fn half_f16s(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        half(unsafe { numbers(at, |b| crate::convert::widen_f16(u16::from_le_bytes(b))) })
    }
    #[inline(always)]
    unsafe fn half_bf16s(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        half(unsafe { numbers(at, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)) })
    }
    #[inline(always)]
    fn expand(self, keep: u32, v: [f32; 8]) -> [f32; 8] {
        let mut next = 0;
        std::array::from_fn(|lane| {
            let kept = keep >> lane & 1 == 1;
            let value = v[next & 7];
            next += usize::from(kept);
            if kept { value } else { 0.0 }
        })
    }
    #[inline(always)]
    fn affine(self, v: [f32; 8], scale: f32, zero: f32) -> [f32; 8] {
        v.map(|v| scale * (v - zero))
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller has place for them; f32 pointers are aligned.
        unsafe { at.cast::<[f32; 8]>().write(v) }
    }
}
