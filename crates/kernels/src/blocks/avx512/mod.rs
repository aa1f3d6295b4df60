//! Blocks with AVX-512: codes in registers, 64 at a time, and products of unsigned with signed bytes.

mod panels;
mod vectors;

pub(crate) use panels::Panel;
pub(super) use vectors::{
    SHARES, Strided, add_bits, by_four, by_two, from_0, half, half_e8m0, halves, planes,
    planes_in_place, sixteen, splat, two_by_two, two_halves,
};

use std::arch::x86_64::*;

use super::input::{BlockActivations, Planes};
use super::kinds::Kind;
use super::lanes::Unit;
use super::product::{LONGEST, TILE, TOGETHER, parts, unit_bytes};
use super::types::BlockRows;
use super::{GROUPS, UNIT};
use crate::simd::{Ahead, avx512, prefetch, stream};
use crate::work::Places;

/// How many bytes ahead of the reading the next ones are asked for.
const AHEAD: usize = 8192;

avx512! {
    /// As [`rows_of`](super::product), of what was prepared for this set.
    pub(super) fn rows<K: Kind>(
        w: &BlockRows<'_>,
        input: &BlockActivations,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        match input.activations().planes() {
            1 => by_tokens::<K, 1>(w, &input.one_plane, input.tokens(), first, places, out),
            _ => by_tokens::<K, 2>(w, &input.two_planes, input.tokens(), first, places, out),
        }
    }
}

/// More tokens than these go through panels.
const FEW: usize = 4;

avx512! {
    #[inline]
    fn by_tokens<K: Kind, const P: usize>(
        w: &BlockRows<'_>,
        x: &[Planes<P>],
        t: usize,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        match t {
            1 => one_token::<K, P>(w, x, first, out),
            2..=FEW => some_tokens::<K, P>(w, x, t, first, places, out),
            _ => panels::many_tokens::<K, P>(w, x, t, first, places, out),
        }
    }
}

avx512! {
    /// Adds the products of the rows from `first` on with one token.
    #[inline]
    fn one_token<K: Kind, const P: usize>(
        w: &BlockRows<'_>,
        x: &[Planes<P>],
        first: usize,
        out: &mut [f32],
    ) {
        let mut buffer = [0; LONGEST];
        let ask = stream();
        for (r, out) in out.iter_mut().enumerate() {
            let row = w.row(first + r);
            for (i, x) in x.chunks(TILE).enumerate() {
                let mut sums = Sums::new();
                for (u, x) in x.iter().enumerate() {
                    let bytes = unit_bytes(row, i * TILE + u, K::BYTES, &mut buffer);
                    // A choice made once: the compiler makes two loops of it.
                    if ask == Ahead::Once {
                        ask_for::<K>(bytes, Ahead::Once);
                    } else {
                        ask_for::<K>(bytes, Ahead::Outer);
                    }
                    // SAFETY: this function has the features; a unit's bytes are there.
                    unsafe {
                        let codes = K::codes(bytes.as_ptr());
                        let (scales, minima) = K::grids(bytes.as_ptr());
                        add_unit(&mut sums, codes, scales, minima, x);
                    }
                }
                *out += sums.total();
            }
        }
    }
}

/// Asks for what lies ahead of a unit.
#[inline(always)]
fn ask_for<K: Kind>(bytes: &[u8], to: Ahead) {
    for line in (0..K::BYTES).step_by(64) {
        prefetch(bytes.as_ptr().wrapping_add(AHEAD + line), to);
    }
}

avx512! {
    /// Adds the products of the rows from `first` on with `t` tokens to `out [some rows, t]`.
    #[inline]
    fn some_tokens<K: Kind, const P: usize>(
        w: &BlockRows<'_>,
        x: &[Planes<P>],
        t: usize,
        first: usize,
        places: &mut Places,
        out: &mut [f32],
    ) {
        let units = w.cols.div_ceil(UNIT);
        let mut buffer = [0; LONGEST];
        for part in parts(t, first..first + out.len() / t, units) {
            places.units.resize(TOGETHER * TILE, Unit::ZERO);
            let mut unpacked = places.units.iter_mut();
            for r in part.rows.clone() {
                for (unit, to) in part.units.clone().zip(&mut unpacked) {
                    let bytes = unit_bytes(w.row(r), unit, K::BYTES, &mut buffer);
                    // SAFETY: this function has the features; a unit's bytes are there.
                    unsafe { unpack::<K>(bytes, to) };
                }
            }
            for token in part.tokens {
                let x = &x[token * units..][part.units.clone()];
                for (r, unpacked) in part.rows.clone().zip(places.units.chunks_exact(x.len())) {
                    out[(r - first) * t + token] += unpacked_units::<P>(unpacked, x);
                }
            }
        }
    }
}

avx512! {
    /// The product of units of unsigned codes with as many of activations: one function for all types.
    #[inline(never)]
    fn unpacked_units<const P: usize>(units: &[Unit], x: &[Planes<P>]) -> f32 {
        let mut sums = Sums::new();
        for (unit, x) in units.iter().zip(x) {
            // SAFETY: this function has the features; 256 codes and 16 scales are there.
            unsafe {
                let at: *const u8 = unit.codes.as_ptr().cast();
                let codes = [
                    _mm512_loadu_si512(at.cast()),
                    _mm512_loadu_si512(at.add(64).cast()),
                    _mm512_loadu_si512(at.add(128).cast()),
                    _mm512_loadu_si512(at.add(192).cast()),
                ];
                let scales = _mm512_loadu_ps(unit.scales.as_ptr());
                let minima = _mm512_loadu_ps(unit.minima.as_ptr());
                add_unit(&mut sums, codes, scales, minima, x);
            }
        }
        sums.total()
    }
}

/// Unpacks a unit into unsigned codes.
///
/// # Safety
///
/// Where the features are; `bytes` are a unit's.
#[inline(always)]
unsafe fn unpack<K: Kind>(bytes: &[u8], to: &mut Unit) {
    // SAFETY: as the caller promises; 256 codes and 16 scales have their places.
    unsafe {
        let (scales, minima) = K::grids(bytes.as_ptr());
        let codes = K::codes(bytes.as_ptr());
        _mm512_storeu_ps(to.scales.as_mut_ptr(), scales);
        _mm512_storeu_ps(to.minima.as_mut_ptr(), minima);
        let at: *mut u8 = to.codes.as_mut_ptr().cast();
        _mm512_storeu_si512(at.cast(), codes[0]);
        _mm512_storeu_si512(at.add(64).cast(), codes[1]);
        _mm512_storeu_si512(at.add(128).cast(), codes[2]);
        _mm512_storeu_si512(at.add(192).cast(), codes[3]);
    }
}

/// The sums of a tile: products of the four quarters of units, and minima.
struct Sums {
    products: [__m512; 4],
    minima: __m512,
}

impl Sums {
    #[inline(always)]
    fn new() -> Self {
        // SAFETY: made where the features are.
        unsafe { Self { products: [_mm512_setzero_ps(); 4], minima: _mm512_setzero_ps() } }
    }

    #[inline(always)]
    fn total(self) -> f32 {
        let [a, b, c, d] = self.products;
        // SAFETY: as above.
        unsafe {
            let sums = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
            _mm512_reduce_add_ps(_mm512_sub_ps(sums, self.minima))
        }
    }
}

/// Adds the products of a unit.
///
/// # Safety
///
/// Where the features are.
#[inline(always)]
unsafe fn add_unit<const P: usize>(
    sums: &mut Sums,
    codes: [__m512i; 4],
    scales: __m512,
    minima: __m512,
    x: &Planes<P>,
) {
    // SAFETY: as the caller promises; reads lie within planes of 256 levels and 16 scales.
    unsafe {
        let of = _mm512_loadu_ps(x.grids.sums.as_ptr());
        sums.minima = _mm512_fmadd_ps(minima, of, sums.minima);
        let scales = _mm512_mul_ps(scales, _mm512_loadu_ps(x.grids.scales.as_ptr()));
        let mut i = 0;
        while i < 4 {
            let mut dot = _mm512_setzero_si512();
            let mut p = 0;
            while p < P {
                let levels = _mm512_loadu_si512(x.levels[p].as_ptr().add(64 * i).cast());
                if p > 0 {
                    dot = _mm512_slli_epi32::<8>(dot);
                }
                dot = _mm512_dpbusd_epi32(dot, codes[i], levels);
                p += 1;
            }
            // Four lanes for each scale.
            let scales = _mm512_permutexvar_ps(by_four(4 * i as i32), scales);
            let dot = _mm512_cvtepi32_ps(dot);
            sums.products[i] = _mm512_fmadd_ps(dot, scales, sums.products[i]);
            i += 1;
        }
    }
}

const _: () = assert!(GROUPS == 16, "one scale to a lane");
