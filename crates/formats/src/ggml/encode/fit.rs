//! Scales, and minima, that fit a group of values: least squares over a few candidates.

use super::{largest, nearest};

/// Below this a group counts as zero.
pub(super) const TINY: f32 = 1e-15;

/// Codes 0..2n around n and a scale, of either sign, for `x ≈ scale (code - n)`; weighted by `weight`, else by x².
///
/// Candidates are scales near the one that brings the largest value to -n; each is then fitted to its codes.
pub(super) fn symmetric(x: &[f32], n: i32, weight: Option<&[f32]>, codes: &mut [u8]) -> f32 {
    let max = largest(x);
    if max.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let level = |inverse: f32, x: f32| nearest(inverse * x).clamp(-n, n - 1);
    let sums = |inverse: f32| {
        let (mut xl, mut ll) = (0.0, 0.0);
        for (i, &x) in x.iter().enumerate() {
            let (l, w) = (level(inverse, x) as f32, weight.map_or(x * x, |w| w[i]));
            xl += w * x * l;
            ll += w * l * l;
        }
        (xl, ll)
    };
    let mut chosen = -(n as f32) / max;
    let (xl, ll) = sums(chosen);
    let mut scale = if ll == 0.0 { 0.0 } else { xl / ll };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|step| *step != 0) {
        let inverse = -(n as f32 + 0.1 * step as f32) / max;
        let (xl, ll) = sums(inverse);
        if ll > 0.0 && xl * xl > best * ll {
            scale = xl / ll;
            best = scale * xl;
            chosen = inverse;
        }
    }
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (n + level(chosen, x)) as u8;
    }
    scale
}

/// As [`symmetric`], weighted by x²: one scale, then up to five sweeps that move codes one by one where that helps.
pub(super) fn symmetric_by_sweeps(x: &[f32], n: i32, codes: &mut [u8]) -> f32 {
    let max = largest(x);
    if max.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -(n as f32) / max;
    let mut levels = [0; 16];
    let levels = &mut levels[..x.len()];
    let (mut xl, mut ll) = (0.0, 0.0);
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = nearest(inverse * x).clamp(-n, n - 1);
        let (w, l) = (x * x, *level as f32);
        xl += w * x * l;
        ll += w * l * l;
    }
    for _ in 0..5 {
        let mut moved = false;
        for (level, &x) in levels.iter_mut().zip(x) {
            let (w, l) = (x * x, *level as f32);
            let (mut rest_xl, mut rest_ll) = (xl - w * x * l, ll - w * l * l);
            if rest_xl <= 0.0 {
                continue;
            }
            let other = nearest(x * rest_ll / rest_xl).clamp(-n, n - 1);
            if other == *level {
                continue;
            }
            let l = other as f32;
            rest_xl += w * x * l;
            rest_ll += w * l * l;
            if rest_ll > 0.0 && rest_xl * rest_xl * ll > xl * xl * rest_ll {
                (*level, xl, ll, moved) = (other, rest_xl, rest_ll, true);
            }
        }
        if !moved {
            break;
        }
    }
    for (code, level) in codes.iter_mut().zip(levels) {
        *code = (*level + n) as u8;
    }
    if ll > 0.0 { xl / ll } else { 0.0 }
}

/// How [`affine`] searches.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// What the first candidate adds to the number of levels, and each next one to that.
    pub(super) from: f32,
    pub(super) step: f32,
    pub(super) steps: i32,
    /// Absolute errors count, not squares.
    pub(super) absolute: bool,
}

impl Search {
    /// What all use where there is importance.
    pub(super) const WEIGHTED: Self = Self { from: -0.9, step: 0.05, steps: 36, absolute: false };
}

/// Codes 0..=n, a scale and a minimum not below 0, for `x ≈ scale code - minimum`.
pub(super) fn affine(
    x: &[f32],
    n: i32,
    weight: &[f32],
    search: Search,
    codes: &mut [u8],
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weight[0];
    let mut sum_x = sum_w * x[0];
    for (&x, &w) in x.iter().zip(weight).skip(1) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let error = |codes: &[u8], scale: f32, min: f32| {
        let mut sum = 0.0;
        for ((&code, &x), &w) in codes.iter().zip(x).zip(weight) {
            let difference = scale * f32::from(code) + min - x;
            sum += w * if search.absolute { difference.abs() } else { difference * difference };
        }
        sum
    };
    let level = |inverse: f32, min: f32, x: f32| nearest(inverse * (x - min)).clamp(0, n) as u8;
    let inverse = n as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = level(inverse, min, x);
    }
    let mut best = error(codes, scale, min);
    let mut candidate = [0; 32];
    let candidate = &mut candidate[..x.len()];
    for step in 0..=search.steps {
        // From the minimum found so far, not from the smallest value.
        let inverse = (search.from + search.step * step as f32 + n as f32) / (max - min);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((code, &x), &w) in candidate.iter_mut().zip(x).zip(weight) {
            *code = level(inverse, min, x);
            let l = f32::from(*code);
            sum_l += w * l;
            sum_ll += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_ll;
            }
            let error = error(candidate, this_scale, this_min);
            if error < best {
                codes.copy_from_slice(candidate);
                (best, scale, min) = (error, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// Codes 0..=n and a scale for `x ≈ scale code`, x not below 0: the best of nine scales, then sweeps.
///
/// Codes are bytes, as in ggml: that of a negative x wraps around, and counts as what it is then in the sweeps.
pub(super) fn positive(x: &[f32], n: i32, weight: &[f32], codes: &mut [u8]) -> f32 {
    let max = x.iter().fold(0.0, |max, &x| if x > max { x } else { max });
    if max < TINY {
        codes.fill(0);
        return 0.0;
    }
    let level = |inverse: f32, x: f32| nearest(inverse * x).min(n);
    let error = |inverse: f32| {
        let scale = 1.0 / inverse;
        let mut sum = 0.0;
        for (&x, &w) in x.iter().zip(weight) {
            let difference = x - scale * level(inverse, x) as f32;
            sum += w * difference * difference;
        }
        sum
    };
    let mut chosen = n as f32 / max;
    let mut best = error(chosen);
    for step in (-4..=4).filter(|step| *step != 0) {
        let inverse = (0.1 * step as f32 + n as f32) / max;
        let error = error(inverse);
        if error < best {
            (best, chosen) = (error, inverse);
        }
    }
    let (mut xl, mut ll) = (0.0, 0.0);
    for ((code, &x), &w) in codes.iter_mut().zip(x).zip(weight) {
        let l = level(chosen, x);
        *code = l as u8;
        let l = l as f32;
        xl += w * x * l;
        ll += w * l * l;
    }
    for _ in 0..5 {
        let mut moved = false;
        for ((code, &x), &w) in codes.iter_mut().zip(x).zip(weight) {
            let l = f32::from(*code);
            let (mut rest_xl, mut rest_ll) = (xl - w * x * l, ll - w * l * l);
            if rest_xl <= 0.0 || rest_ll <= 0.0 {
                continue;
            }
            let other = nearest(x * rest_ll / rest_xl).min(n);
            if other == i32::from(*code) {
                continue;
            }
            let l = other as f32;
            rest_xl += w * x * l;
            rest_ll += w * l * l;
            if rest_xl * rest_xl * ll > xl * xl * rest_ll {
                (*code, xl, ll, moved) = (other as u8, rest_xl, rest_ll, true);
            }
        }
        if !moved {
            break;
        }
    }
    if ll > 0.0 { xl / ll } else { 0.0 }
}
