//! Sixteen rows through one block of columns, in registers and L1.
#![allow(unsafe_code)]

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{ColumnRule, Decision, LANES, Lanes};
use crate::kernels::Isa;

/// The block being swept.
pub(super) struct Block<'a> {
    pub(super) start: usize,
    /// U over the block's columns, contiguous.
    pub(super) factor: ArrayView2<'a, f32>,
}

/// Buffers of one tile.
pub(super) struct TileBuffers<R: ColumnRule> {
    columns: Vec<Lanes>,
    errors: Vec<Lanes>,
    codes: Vec<[u8; LANES]>,
    state: R::Tile,
}

impl<R: ColumnRule> TileBuffers<R> {
    pub(super) fn new(width: usize) -> Self {
        Self {
            columns: vec![[0.0; LANES]; width],
            errors: vec![[0.0; LANES]; width],
            codes: vec![[0; LANES]; width],
            state: R::Tile::default(),
        }
    }
}

/// Decides the block's columns for the rows of one tile; writes values, codes and -e, and returns the sum of e².
pub(super) fn sweep_tile<R: ColumnRule>(
    rule: &R,
    block: &Block<'_>,
    row: usize,
    weight: &mut ArrayViewMut2<'_, f32>,
    codes: &mut ArrayViewMut2<'_, u8>,
    errors: &mut ArrayViewMut2<'_, f32>,
    buffers: &mut TileBuffers<R>,
) -> f64 {
    match Isa::detect() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: detected just now.
        Isa::Avx512 => unsafe { avx512(rule, block, row, weight, codes, errors, buffers) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: detected just now.
        Isa::Avx2 => unsafe { avx2(rule, block, row, weight, codes, errors, buffers) },
        _ => sweep_tile_body(rule, block, row, weight, codes, errors, buffers, spread),
    }
}

macro_rules! with_features {
    ($name:ident, $features:literal, $spread:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name<R: ColumnRule>(
            rule: &R,
            block: &Block<'_>,
            row: usize,
            weight: &mut ArrayViewMut2<'_, f32>,
            codes: &mut ArrayViewMut2<'_, u8>,
            errors: &mut ArrayViewMut2<'_, f32>,
            buffers: &mut TileBuffers<R>,
        ) -> f64 {
            let spread = |columns: &mut [Lanes], e: &Lanes, u: &[f32]| $spread(columns, e, u);
            sweep_tile_body(rule, block, row, weight, codes, errors, buffers, spread)
        }
    };
}
with_features!(avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", spread_avx512);
with_features!(avx2, "avx2,fma", spread_avx2);

/// Adds `error * u[k]` to column k. Written by hand per instruction set: left alone, LLVM turns the loop over
/// columns into gathers and scatters, 50 times slower.
#[inline(always)]
fn spread(columns: &mut [Lanes], error: &Lanes, u: &[f32]) {
    for (column, u) in columns.iter_mut().zip(u) {
        for lane in 0..LANES {
            column[lane] += error[lane] * u;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn spread_avx512(columns: &mut [Lanes], error: &Lanes, u: &[f32]) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps};
    // SAFETY: a `Lanes` is 16 floats, the width of the register; unaligned access is allowed.
    let error = unsafe { _mm512_loadu_ps(error.as_ptr()) };
    for (column, u) in columns.iter_mut().zip(u) {
        // SAFETY: as above.
        unsafe {
            let sum = _mm512_fmadd_ps(error, _mm512_set1_ps(*u), _mm512_loadu_ps(column.as_ptr()));
            _mm512_storeu_ps(column.as_mut_ptr(), sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
fn spread_avx2(columns: &mut [Lanes], error: &Lanes, u: &[f32]) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps};
    // SAFETY: a `Lanes` is 16 floats, two registers; unaligned access is allowed.
    let (low, high) =
        unsafe { (_mm256_loadu_ps(error.as_ptr()), _mm256_loadu_ps(error.as_ptr().add(8))) };
    for (column, u) in columns.iter_mut().zip(u) {
        let (u, p) = (_mm256_set1_ps(*u), column.as_mut_ptr());
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(p, _mm256_fmadd_ps(low, u, _mm256_loadu_ps(p)));
            _mm256_storeu_ps(p.add(8), _mm256_fmadd_ps(high, u, _mm256_loadu_ps(p.add(8))));
        }
    }
}

#[inline(always)]
fn sweep_tile_body<R: ColumnRule>(
    rule: &R,
    block: &Block<'_>,
    row: usize,
    weight: &mut ArrayViewMut2<'_, f32>,
    codes: &mut ArrayViewMut2<'_, u8>,
    errors: &mut ArrayViewMut2<'_, f32>,
    buffers: &mut TileBuffers<R>,
    spread: impl Fn(&mut [Lanes], &Lanes, &[f32]),
) -> f64 {
    let width = block.factor.ncols();
    let factor = block.factor.as_slice().expect("contiguous");
    let columns = &mut buffers.columns[..width];
    for (lane, w) in weight.rows().into_iter().enumerate() {
        let w = &w.to_slice().expect("contiguous rows")[block.start..block.start + width];
        for (column, value) in columns.iter_mut().zip(w) {
            column[lane] = *value;
        }
    }
    let mut loss = [0.0f32; LANES];
    let mut total = 0.0f64;
    let mut decision = Decision::default();
    for j in 0..width {
        let u_row = &factor[j * width..(j + 1) * width];
        rule.decide(&mut buffers.state, row, block.start + j, &columns[j..], &mut decision);
        let mut error: Lanes = [0.0; LANES];
        for lane in 0..LANES {
            error[lane] = (decision.value[lane] - columns[j][lane]) / u_row[j];
            loss[lane] += error[lane] * error[lane];
        }
        spread(&mut columns[j + 1..], &error, &u_row[j + 1..]);
        columns[j] = decision.value;
        buffers.errors[j] = error;
        buffers.codes[j] = decision.code;
    }
    for (lane, mut w) in weight.rows_mut().into_iter().enumerate() {
        let w = w.as_slice_mut().expect("contiguous rows");
        for (value, column) in w[block.start..block.start + width].iter_mut().zip(&*columns) {
            *value = column[lane];
        }
        total += f64::from(loss[lane]);
    }
    for (lane, mut e) in errors.rows_mut().into_iter().enumerate() {
        let e = e.as_slice_mut().expect("contiguous rows");
        e.iter_mut().zip(&buffers.errors).for_each(|(e, error)| *e = error[lane]);
    }
    for (lane, mut c) in codes.rows_mut().into_iter().enumerate() {
        let c = c.as_slice_mut().expect("contiguous rows");
        let c = &mut c[block.start..block.start + width];
        c.iter_mut().zip(&buffers.codes).for_each(|(c, code)| *c = code[lane]);
    }
    total
}
