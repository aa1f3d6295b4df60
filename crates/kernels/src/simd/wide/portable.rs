//! Plain Rust: arrays.

use half::{bf16, f16};

use super::{LANES, Line, Wide};
use crate::simd::Portable;

// SAFETY: the operations are ordinary Rust and need no CPU feature.
unsafe impl Wide for Portable {
    type I = [u32; LANES];
    type F = [f32; LANES];
    #[inline(always)]
    fn zero(self) -> [u32; LANES] {
        [0; LANES]
    }
    #[inline(always)]
    fn line(self, line: &Line) -> [u32; LANES] {
        let words = line.0.as_chunks::<4>().0;
        std::array::from_fn(|i| u32::from_le_bytes(words[i]))
    }
    #[inline(always)]
    fn shift_left(self, v: [u32; LANES], by: usize) -> [u32; LANES] {
        v.map(|v| v << by)
    }
    #[inline(always)]
    fn shift_right(self, v: [u32; LANES], by: usize) -> [u32; LANES] {
        v.map(|v| v >> by)
    }
    #[inline(always)]
    fn mask(self, v: [u32; LANES], mask: u8) -> [u32; LANES] {
        v.map(|v| v & (u32::from(mask) * 0x0101_0101))
    }
    #[inline(always)]
    fn or(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn add_i(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn word(self, x: [i8; 4]) -> [u32; LANES] {
        [u32::from_le_bytes(x.map(|x| x as u8)); LANES]
    }
    #[inline(always)]
    fn quarter(self, x: &[[i8; 4]; 4]) -> [u32; LANES] {
        std::array::from_fn(|i| u32::from_le_bytes(x[i % 4].map(|x| x as u8)))
    }
    #[inline(always)]
    fn quarters(self, v: [&[u8; 16]; 4]) -> [u32; LANES] {
        std::array::from_fn(|i| u32::from_le_bytes(v[i / 4].as_chunks().0[i % 4]))
    }
    #[inline(always)]
    fn lookup(self, table: [u32; LANES], codes: [u32; LANES]) -> [u32; LANES] {
        lookup_portable(table, codes)
    }
    #[inline(always)]
    fn dots<const BITS: usize>(self, sum: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        dots_portable(sum, codes, x)
    }
    #[inline(always)]
    fn sum_quarters(self, v: [[u32; LANES]; 4]) -> [u32; LANES] {
        std::array::from_fn(|i| {
            v[i % 4][i / 4 * 4..][..4].iter().fold(0u32, |sum, v| sum.wrapping_add(*v))
        })
    }
    #[inline(always)]
    fn to_floats(self, v: [u32; LANES]) -> [f32; LANES] {
        v.map(|v| v as i32 as f32)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> [f32; LANES] {
        [v; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        fma_portable(a, b, c)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> [f32; LANES] {
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
    fn line_floats(self, line: &Line) -> [f32; LANES] {
        self.line(line).map(f32::from_bits)
    }
    #[inline(always)]
    fn halves(self, line: &Line) -> ([f32; LANES], [f32; LANES]) {
        halves_portable(line)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: [f32; LANES]) {
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
        planes(x, high, low);
    }
    #[inline(always)]
    fn expand(self, mask: u16, v: Self::F) -> Self::F {
        expand(mask, v)
    }
}

// Functions of their own: written out at each of their places they would be megabytes of code.

#[inline(never)]
fn fma_portable(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
    // Once a group only: even a library call is cheap beside the integer work.
    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
}

#[inline(never)]
fn halves_portable(line: &Line) -> ([f32; LANES], [f32; LANES]) {
    let halves = line.0.as_chunks::<2>().0;
    let half = |i: usize| f16::from_le_bytes(halves[i]).to_f32();
    (std::array::from_fn(half), std::array::from_fn(|i| half(LANES + i)))
}

#[inline(never)]
fn lookup_portable(table: [u32; LANES], codes: [u32; LANES]) -> [u32; LANES] {
    std::array::from_fn(|i| {
        let byte = |code: u8| {
            let code = usize::from(code);
            table[i / 4 * 4 + code / 4].to_le_bytes()[code % 4]
        };
        u32::from_le_bytes(codes[i].to_le_bytes().map(byte))
    })
}

#[inline(never)]
fn dots_portable(sum: [u32; LANES], codes: [u32; LANES], x: [u32; LANES]) -> [u32; LANES] {
    std::array::from_fn(|i| {
        let [c0, c1, c2, c3] = codes[i].to_le_bytes().map(i32::from);
        let [x0, x1, x2, x3] = x[i].to_le_bytes().map(|x| i32::from(x as i8));
        sum[i].wrapping_add((c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3) as u32)
    })
}

#[inline(always)]
pub(super) fn expand(mask: u16, v: [f32; LANES]) -> [f32; LANES] {
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
pub(super) fn planes(x: [f32; LANES], high: &mut [i8; LANES], low: &mut [i8; LANES]) {
    for i in 0..LANES {
        // Adding 1.5 x 2^23 leaves the rounded integer in the low bits.
        let n = (x[i] + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000) as i32;
        // The low byte is taken as signed, which the high one makes up for.
        high[i] = (n.wrapping_add(128) >> 8) as i8;
        low[i] = n as i8;
    }
}
