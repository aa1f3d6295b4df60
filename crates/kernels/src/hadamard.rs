//! Walsh-Hadamard transforms between rows of lanes.
//!
//! Only sums and differences of two values, taken level by level from the nearest lanes to the farthest: how many
//! levels a pass takes at once, and what is done first, changes no bit. Bit-identical on every instruction set.

use super::simd::{Ahead, Simd, prefetch, stamp};

/// Levels are taken three at a time: eight vectors and what is made of them fit the registers of every set.
const RADIX: usize = 8;
/// How many values ahead of the writing the lines of a row are asked for.
const AHEAD: usize = 64;
/// Values that are transformed in the first cache before others are touched.
const NEAR: usize = 4096;

/// x := H x over `lane`s: `x` is cut into lanes of consecutive values, a power of two of them, and value `i` of all
/// lanes is transformed by the +-1 Walsh-Hadamard matrix in natural order, for each `i`. Not normalised.
///
/// # Panics
///
/// Unless the number of lanes is a power of two, or if there are no lanes.
pub fn hadamard_lanes(x: &mut [f32], lane: usize) {
    hadamard_lanes_on(crate::Isa::detect(), x, lane);
}

/// [`hadamard_lanes`] on a chosen instruction set; the portable code where this CPU lacks it.
pub fn hadamard_lanes_on(isa: crate::Isa, x: &mut [f32], lane: usize) {
    if x.is_empty() {
        return;
    }
    let lanes = x.len().checked_div(lane).unwrap_or(0);
    assert!(lanes.is_power_of_two() && lanes * lane == x.len(), "hadamard_lanes: number of lanes");
    if x.len() <= NEAR || lanes <= RADIX {
        levels_on(isa, x, lane);
        return;
    }
    let part = x.len() / RADIX;
    x.chunks_exact_mut(part).for_each(|part| hadamard_lanes_on(isa, part, lane));
    levels_on(isa, x, part);
}

stamp! {
    /// All levels over lanes, one pass after the other.
    fn levels_on(x: &mut [f32], lane: usize) = levels_body
}

#[inline(always)]
fn levels_body<S: Simd>(s: S, x: &mut [f32], lane: usize) {
    let mut done = lane;
    while done < x.len() {
        let parts = (x.len() / done).min(RADIX);
        for chunk in x.chunks_exact_mut(done * parts) {
            match parts {
                2 => in_place::<S, 2>(s, chunk),
                4 => in_place::<S, 4>(s, chunk),
                _ => in_place::<S, RADIX>(s, chunk),
            }
        }
        done *= parts;
    }
}

/// Between `R` equal parts.
#[inline(always)]
fn in_place<S: Simd, const R: usize>(s: S, x: &mut [f32]) {
    let n = x.len() / R;
    assert!(n * R == x.len());
    let mut at = 0;
    while at + S::LANES <= n {
        let mut v = [s.splat(0.0); R];
        for (r, v) in v.iter_mut().enumerate() {
            // SAFETY: a vector from `at` on lies within each part.
            *v = unsafe { s.load(x, r * n + at) };
        }
        butterflies(s, &mut v);
        for (r, v) in v.iter().enumerate() {
            // SAFETY: as above.
            unsafe { s.put(x, r * n + at, *v) };
        }
        at += S::LANES;
    }
    for at in at..n {
        let mut v: [f32; R] = std::array::from_fn(|r| x[r * n + at]);
        butterflies1(&mut v);
        for (r, v) in v.iter().enumerate() {
            x[r * n + at] = *v;
        }
    }
}

#[inline(always)]
fn butterflies<S: Simd, const R: usize>(s: S, v: &mut [S::F32; R]) {
    let mut half = 1;
    while half < R {
        for i in 0..R {
            if i & half == 0 {
                let (a, b) = (v[i], v[i + half]);
                v[i] = s.add(a, b);
                v[i + half] = s.sub(a, b);
            }
        }
        half *= 2;
    }
}

#[inline(always)]
fn butterflies1<const R: usize>(v: &mut [f32; R]) {
    let mut half = 1;
    while half < R {
        for i in 0..R {
            if i & half == 0 {
                (v[i], v[i + half]) = (v[i] + v[i + half], v[i] - v[i + half]);
            }
        }
        half *= 2;
    }
}

/// The last levels, out of place: `x` is cut into `out.len()` rows, and what becomes of them between `parts` equal
/// parts is written to the rows of `out`.
///
/// # Panics
///
/// Unless `parts` is 1, 2, 4 or 8 and divides the rows, and those have equal lengths that fill `x`.
pub fn hadamard_rows(x: &[f32], parts: usize, out: &mut [&mut [f32]]) {
    hadamard_rows_on(crate::Isa::detect(), x, parts, out);
}

stamp! {
    /// [`hadamard_rows`] on a chosen instruction set; the portable code where this CPU lacks it.
    pub fn hadamard_rows_on(x: &[f32], parts: usize, out: &mut [&mut [f32]]) = rows_body
}

#[inline(always)]
fn rows_body<S: Simd>(s: S, x: &[f32], parts: usize, out: &mut [&mut [f32]]) {
    match parts {
        1 => out_of_place::<S, 1>(s, x, out),
        2 => out_of_place::<S, 2>(s, x, out),
        4 => out_of_place::<S, 4>(s, x, out),
        8 => out_of_place::<S, RADIX>(s, x, out),
        _ => panic!("hadamard_rows: {parts} parts"),
    }
}

#[inline(always)]
fn out_of_place<S: Simd, const R: usize>(s: S, x: &[f32], out: &mut [&mut [f32]]) {
    let rows = out.len() / R;
    let width = out.first().map_or(0, |row| row.len());
    let fits = rows * R == out.len() && x.len() == out.len() * width;
    assert!(fits && out.iter().all(|row| row.len() == width), "hadamard_rows: shapes differ");
    let ahead = AHEAD.min(width);
    for row in 0..rows {
        let mut at = 0;
        while at + S::LANES <= width {
            let (later, then) = match at + ahead {
                then if then < width => (row, then),
                then => ((row + 1).min(rows - 1), then - width),
            };
            for r in 0..R {
                prefetch(out[r * rows + later].as_ptr().wrapping_add(then), Ahead::Near);
            }
            let mut v = [s.splat(0.0); R];
            for (r, v) in v.iter_mut().enumerate() {
                // SAFETY: a vector from `at` on lies within the row, and all rows within `x`.
                *v = unsafe { s.load(x, (r * rows + row) * width + at) };
            }
            butterflies(s, &mut v);
            for (r, v) in v.iter().enumerate() {
                // SAFETY: as above.
                unsafe { s.put(out[r * rows + row], at, *v) };
            }
            at += S::LANES;
        }
        for at in at..width {
            let mut v: [f32; R] = std::array::from_fn(|r| x[(r * rows + row) * width + at]);
            butterflies1(&mut v);
            for (r, v) in v.iter().enumerate() {
                out[r * rows + row][at] = *v;
            }
        }
    }
}

stamp! {
    /// `x[l, ..] *= factors[l]` for all lanes `l` of equal length.
    ///
    /// # Panics
    ///
    /// Unless `factors` divides the length of `x`.
    pub fn scale_lanes, scale_lanes_on(x: &mut [f32], factors: &[f32]) = scale_body
}

#[inline(always)]
fn scale_body<S: Simd>(_: S, x: &mut [f32], factors: &[f32]) {
    if x.is_empty() {
        return;
    }
    let lane = x.len().checked_div(factors.len()).unwrap_or(0);
    assert_eq!(lane * factors.len(), x.len(), "scale_lanes: number of factors");
    for (lane, factor) in x.chunks_exact_mut(lane).zip(factors) {
        lane.iter_mut().for_each(|v| *v *= factor);
    }
}
