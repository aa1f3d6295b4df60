//! The portable token: plain arrays.

use super::{Simd, Token};
use crate::Isa;

/// Eight lanes in an array; every CPU has this one.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

// SAFETY: ordinary Rust runs everywhere.
unsafe impl Token for Portable {
    const ISA: Isa = Isa::Generic;
}

// SAFETY: the operations are ordinary Rust and need no CPU feature.
unsafe impl Simd for Portable {
    type F32 = [f32; 8];
    const LANES: usize = 8;
    const TILE: usize = 1;

    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 8] {
        [v; 8]
    }
    #[inline(always)]
    unsafe fn load(self, src: &[f32], at: usize) -> [f32; 8] {
        *src[at..].first_chunk().expect("the caller keeps within the slice")
    }
    #[inline(always)]
    unsafe fn put(self, to: &mut [f32], at: usize, v: [f32; 8]) {
        *to[at..].first_chunk_mut().expect("the caller keeps within the slice") = v;
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Not fused: without hardware for it a fused operation is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn sum(self, v: [f32; 8]) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn mul_add1(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}
