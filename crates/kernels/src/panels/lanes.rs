//! Sixteen 32-bit lanes, one row of a panel in each, on every instruction set.

use half::f16;

use super::ROWS;
use super::pack::Line;
use crate::simd::{Portable, Simd};

/// The operations of a panel product. Both kinds of vector have 16 lanes, whatever the registers.
///
/// Every operation gives the same bits on every set: the integer ones wrap, and
/// [`PanelLanes::fma`] is fused everywhere, in software if need be.
///
/// # Safety
///
/// As for [`Simd`].
pub(super) unsafe trait PanelLanes: Simd {
    /// 16 integers, or 16 times four bytes.
    type I: Copy;
    /// 16 floats.
    type F: Copy;

    fn zero(self) -> Self::I;
    fn line(self, line: &Line) -> Self::I;
    fn shift_left(self, v: Self::I, by: usize) -> Self::I;
    fn shift_right(self, v: Self::I, by: usize) -> Self::I;
    /// The bits `mask` of each byte.
    fn mask(self, v: Self::I, mask: u8) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Adds to each lane the product of its four codes with the four bytes of `x`. Codes have
    /// `BITS` bits.
    fn dot<const BITS: usize>(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I;
    fn to_floats(self, v: Self::I) -> Self::F;

    fn splat_f(self, v: f32) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn floats(self, v: &[f32; ROWS]) -> Self::F;
    fn store(self, to: &mut [f32; ROWS], v: Self::F);
    /// A line of 16 f32.
    fn line_floats(self, line: &Line) -> Self::F;
    /// A line of twice 16 f16.
    fn halves(self, line: &Line) -> (Self::F, Self::F);

    /// Asks for a line that will be read soon, once or (`keep`) several times; it need not exist.
    fn prefetch(self, line: *const Line, keep: bool);

    /// The bits `mask` of each byte after a shift to the right.
    #[inline(always)]
    fn bits(self, v: Self::I, shift: usize, mask: u8) -> Self::I {
        self.mask(if shift == 0 { v } else { self.shift_right(v, shift) }, mask)
    }
}

// SAFETY: the operations are ordinary Rust and need no CPU feature.
unsafe impl PanelLanes for Portable {
    type I = [u32; ROWS];
    type F = [f32; ROWS];

    #[inline(always)]
    fn zero(self) -> [u32; ROWS] {
        [0; ROWS]
    }
    #[inline(always)]
    fn line(self, line: &Line) -> [u32; ROWS] {
        let words = line.0.as_chunks::<4>().0;
        std::array::from_fn(|i| u32::from_le_bytes(words[i]))
    }
    #[inline(always)]
    fn shift_left(self, v: [u32; ROWS], by: usize) -> [u32; ROWS] {
        v.map(|v| v << by)
    }
    #[inline(always)]
    fn shift_right(self, v: [u32; ROWS], by: usize) -> [u32; ROWS] {
        v.map(|v| v >> by)
    }
    #[inline(always)]
    fn mask(self, v: [u32; ROWS], mask: u8) -> [u32; ROWS] {
        v.map(|v| v & (u32::from(mask) * 0x0101_0101))
    }
    #[inline(always)]
    fn or(self, a: [u32; ROWS], b: [u32; ROWS]) -> [u32; ROWS] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn add_i(self, a: [u32; ROWS], b: [u32; ROWS]) -> [u32; ROWS] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn dot<const BITS: usize>(
        self,
        sum: [u32; ROWS],
        codes: [u32; ROWS],
        x: [i8; 4],
    ) -> [u32; ROWS] {
        dot_portable(sum, codes, x)
    }
    #[inline(always)]
    fn to_floats(self, v: [u32; ROWS]) -> [f32; ROWS] {
        v.map(|v| v as i32 as f32)
    }
    #[inline(always)]
    fn splat_f(self, v: f32) -> [f32; ROWS] {
        [v; ROWS]
    }
    #[inline(always)]
    fn mul(self, a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; ROWS], b: [f32; ROWS], c: [f32; ROWS]) -> [f32; ROWS] {
        fma_portable(a, b, c)
    }
    #[inline(always)]
    fn floats(self, v: &[f32; ROWS]) -> [f32; ROWS] {
        *v
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; ROWS], v: [f32; ROWS]) {
        *to = v;
    }
    #[inline(always)]
    fn line_floats(self, line: &Line) -> [f32; ROWS] {
        self.line(line).map(f32::from_bits)
    }
    #[inline(always)]
    fn halves(self, line: &Line) -> ([f32; ROWS], [f32; ROWS]) {
        halves_portable(line)
    }
    #[inline(always)]
    fn prefetch(self, _: *const Line, _: bool) {}
}

// Functions of their own: written out at each of their places they would be megabytes of code.

#[inline(never)]
fn fma_portable(a: [f32; ROWS], b: [f32; ROWS], c: [f32; ROWS]) -> [f32; ROWS] {
    // Once a group only: even a library call is cheap beside the integer work.
    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

#[inline(never)]
fn halves_portable(line: &Line) -> ([f32; ROWS], [f32; ROWS]) {
    let halves = line.0.as_chunks::<2>().0;
    let half = |i: usize| f16::from_le_bytes(halves[i]).to_f32();
    (std::array::from_fn(half), std::array::from_fn(|i| half(ROWS + i)))
}

#[inline(never)]
fn dot_portable(sum: [u32; ROWS], codes: [u32; ROWS], x: [i8; 4]) -> [u32; ROWS] {
    let [x0, x1, x2, x3] = x.map(i32::from);
    std::array::from_fn(|i| {
        let [c0, c1, c2, c3] = codes[i].to_le_bytes().map(i32::from);
        sum[i].wrapping_add((c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3) as u32)
    })
}

#[cfg(target_arch = "x86_64")]
#[path = "lanes_x86.rs"]
mod x86;

#[cfg(target_arch = "aarch64")]
#[path = "lanes_neon.rs"]
mod neon;
