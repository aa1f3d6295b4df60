//! Sixteen 32-bit lanes on every instruction set.

use half::{bf16, f16};

use super::LANES;

/// 64 aligned bytes: 16 lanes of four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 64]);
}

/// The vector operations of the kernels. Closures are not compiled for the instruction set of the function they stand in:
/// no operation may be called in one. Integer operations are exact and the same on every set.
///
/// # Safety
/// A value of an implementing type may exist only while code runs that was compiled for, and on a CPU that has, the
/// features of the set.
pub(super) unsafe trait Lanes: Copy {
    /// 16 integers, or 16 times four bytes.
    type I: Copy;
    /// 16 floats.
    type F: Copy;

    fn zero_i(self) -> Self::I;
    fn line(self, line: &Line) -> Self::I;
    /// The bits `mask` of each byte after a shift to the right.
    fn bits(self, v: Self::I, shift: u32, mask: u8) -> Self::I;
    /// Adds to each lane the product of its four codes (of `BITS` bits) with the four signed bytes of `x`.
    fn dot<const BITS: u32>(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I;
    fn to_floats(self, v: Self::I) -> Self::F;

    fn splat(self, v: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the set has it.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn load(self, v: &[f32; LANES]) -> Self::F;
    fn load_f32(self, v: &[u8; 4 * LANES]) -> Self::F;
    fn load_f16(self, v: &[u8; 2 * LANES]) -> Self::F;
    fn load_bf16(self, v: &[u8; 2 * LANES]) -> Self::F;
    fn store(self, to: &mut [f32; LANES], v: Self::F);
    fn sum(self, v: Self::F) -> f32;
    /// The sums of four.
    #[inline(always)]
    fn sum4(self, v: [Self::F; 4]) -> [f32; 4] {
        let [a, b, c, d] = v;
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }
    /// The largest lane.
    fn largest(self, v: Self::F) -> f32;
    /// The larger of `a` and `|b|`.
    fn max_abs(self, a: Self::F, b: Self::F) -> Self::F;
    /// `x` rounded to integers of at most [`LEVELS`], as `256 * high + low`.
    fn planes(self, x: Self::F, high: &mut [i8; LANES], low: &mut [i8; LANES]);
    /// Spreads the first lanes of `v` to the places of the bits of `mask`; the others are 0.
    fn expand(self, mask: u16, v: Self::F) -> Self::F;
    /// [`Lanes::expand`] of values in 16 bits: 16 of them can be read.
    #[inline(always)]
    fn expand_f16(self, mask: u16, v: &[u8; 2 * LANES]) -> Self::F {
        self.expand(mask, self.load_f16(v))
    }
    /// [`Lanes::expand`] of 32 values: even and odd lanes.
    #[inline(always)]
    fn expand_bf16(self, mask: u32, v: &[u8; 4 * LANES]) -> [Self::F; 2] {
        let mut lanes = [[0.0; LANES]; 2];
        let (mut rest, words) = (mask, v.as_chunks::<2>().0);
        for word in words.iter().take(mask.count_ones() as usize) {
            let at = rest.trailing_zeros() as usize;
            lanes[at % 2][at / 2] = bf16::from_le_bytes(*word).to_f32();
            rest &= rest - 1;
        }
        [self.load(&lanes[0]), self.load(&lanes[1])]
    }
    /// Asks for what will be read in a while; the address need not be valid. It goes to the second level: a page ahead is
    /// too much for the first, whose few miss buffers would wait for memory.
    fn prefetch(self, at: *const u8);
    /// Asks for bytes `at..at + len` of what will be read next, whether they are there or not.
    #[inline(always)]
    fn ahead(self, next: &[u8], at: usize, len: usize) {
        if !next.is_empty() && len > 0 {
            for line in (0..len).step_by(64) {
                self.prefetch(next.as_ptr().wrapping_add(at + line));
            }
        }
    }
}

/// A float type as it lies in memory.
pub(super) trait Elem {
    const SIZE: usize;
    /// 16 values; `bytes` are `16 * SIZE`.
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::F;
    fn one(bytes: &[u8]) -> f32;
    /// Whether values are spread 32 at a time.
    const PAIRED: bool = false;
    /// [`Lanes::expand`] of the first values; 16 can be read.
    #[inline(always)]
    fn spread<L: Lanes>(l: L, mask: u16, bytes: &[u8]) -> L::F {
        l.expand(mask, Self::load(l, bytes))
    }
    /// 32 entries where these are [`Elem::PAIRED`]: the even ones, the odd ones; 32 can be read.
    #[inline(always)]
    fn spread_pair<L: Lanes>(l: L, mask: u32, bytes: &[u8]) -> [L::F; 2] {
        l.expand_bf16(mask, bytes.first_chunk().expect("32 values"))
    }
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Elem for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::F {
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
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::F {
        l.load_f16(bytes.first_chunk().expect("16 values"))
    }
    #[inline(always)]
    fn one(bytes: &[u8]) -> f32 {
        f16::from_le_bytes(*bytes.first_chunk().expect("a value")).to_f32()
    }
    #[inline(always)]
    fn spread<L: Lanes>(l: L, mask: u16, bytes: &[u8]) -> L::F {
        l.expand_f16(mask, bytes.first_chunk().expect("16 values"))
    }
}

impl Elem for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::F {
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
            tensorpress_tensor::DType::F32 => {
                type $E = $crate::kernels::lanes::F32;
                $call
            }
            tensorpress_tensor::DType::F16 => {
                type $E = $crate::kernels::lanes::F16;
                $call
            }
            tensorpress_tensor::DType::BF16 => {
                type $E = $crate::kernels::lanes::Bf16;
                $call
            }
            other => panic!("{other:?} is no type of a cache"),
        }
    };
}
pub(super) use with_elem;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable;

// SAFETY: the operations are ordinary Rust and need no CPU feature.
unsafe impl Lanes for Portable {
    type I = [u32; LANES];
    type F = [f32; LANES];

    #[inline(always)]
    fn zero_i(self) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    fn line(self, line: &Line) -> Self::I {
        let words = line.0.as_chunks::<4>().0;
        std::array::from_fn(|i| u32::from_le_bytes(words[i]))
    }
    #[inline(always)]
    fn bits(self, v: Self::I, shift: u32, mask: u8) -> Self::I {
        v.map(|v| (v >> shift) & (u32::from(mask) * 0x0101_0101))
    }
    #[inline(always)]
    fn dot<const BITS: u32>(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I {
        let [x0, x1, x2, x3] = x.map(i32::from);
        std::array::from_fn(|i| {
            let [c0, c1, c2, c3] = codes[i].to_le_bytes().map(i32::from);
            sum[i].wrapping_add((c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3) as u32)
        })
    }
    #[inline(always)]
    fn to_floats(self, v: Self::I) -> Self::F {
        v.map(|v| v as i32 as f32)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        [v; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> Self::F {
        *v
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8; 4 * LANES]) -> Self::F {
        std::array::from_fn(|i| f32::from_le_bytes(v.as_chunks().0[i]))
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8; 2 * LANES]) -> Self::F {
        std::array::from_fn(|i| f16::from_le_bytes(v.as_chunks().0[i]).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8; 2 * LANES]) -> Self::F {
        std::array::from_fn(|i| bf16::from_le_bytes(v.as_chunks().0[i]).to_f32())
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: Self::F) {
        *to = v;
    }
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        v.iter().sum()
    }
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        v.iter().fold(0.0, |a, b| if *b > a { *b } else { a })
    }
    #[inline(always)]
    fn max_abs(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if b[i].abs() > a[i] { b[i].abs() } else { a[i] })
    }
    #[inline(always)]
    fn planes(self, x: Self::F, high: &mut [i8; LANES], low: &mut [i8; LANES]) {
        planes_portable(x, high, low);
    }
    #[inline(always)]
    fn expand(self, mask: u16, v: Self::F) -> Self::F {
        expand_portable(mask, v)
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}

/// The largest integer that two planes of int8 hold on both sides of zero.
pub(super) const LEVELS: f32 = 32_639.0;

#[inline(always)]
pub(super) fn expand_portable(mask: u16, v: [f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    let (mut rest, mut next) = (mask, 0);
    while rest != 0 {
        out[rest.trailing_zeros() as usize] = v[next];
        next += 1;
        rest &= rest - 1;
    }
    out
}

#[inline(always)]
pub(super) fn planes_portable(x: [f32; LANES], high: &mut [i8; LANES], low: &mut [i8; LANES]) {
    for i in 0..LANES {
        // Adding 1.5 x 2^23 leaves the rounded integer in the low bits.
        let n = (x[i] + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000) as i32;
        // The low byte is taken as signed, which the high one makes up for.
        high[i] = (n.wrapping_add(128) >> 8) as i8;
        low[i] = n as i8;
    }
}
