//! Rounding to an integer grid and the error it makes.
//!
//! The arithmetic is that of float32 torch, step by step: `q = clamp(round(x / scale) + zero, 0,
//! maxq)` with a true division and ties to even, and `scale * (q - zero)` back. All results are
//! bit-identical on every instruction set.

use super::simd::{Simd, stamp};

/// How the error of a rounded weight is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorNorm {
    /// `|e|^2`
    Square,
    /// `|e|^2.4`, the norm of GPTQ's search for a clipping range.
    Power2p4,
}

stamp! {
    /// The codes of `x` on the grid `scale * (0 ..= maxq - zero)`. NaN becomes code 0, also where
    /// the division makes it (0 / 0).
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn quantize_affine, quantize_affine_on(
        x: &[f32], scale: f32, zero: f32, maxq: u8, codes: &mut [u8],
    ) = quantize_body
}

#[inline(always)]
fn quantize_body<S: Simd>(_: S, x: &[f32], scale: f32, zero: f32, maxq: u8, codes: &mut [u8]) {
    assert_eq!(x.len(), codes.len(), "quantize_affine: lengths differ");
    let maxq = f32::from(maxq);
    for (code, &x) in codes.iter_mut().zip(x) {
        let q = snap(x, scale, zero, maxq);
        // Also turns NaN into 0.
        let q = if q > 0.0 { q } else { 0.0 };
        // Adding this leaves the integer in the low bits; a cast would not become vector code.
        *code = (q.trunc() + 8_388_608.0).to_bits() as u8;
    }
}

/// The code of one weight, still a float; NaN stays NaN.
#[inline(always)]
fn snap(x: f32, scale: f32, zero: f32, maxq: f32) -> f32 {
    let q = (x / scale).round_ties_even() + zero;
    let q = if q < 0.0 { 0.0 } else { q };
    if q > maxq { maxq } else { q }
}

stamp! {
    /// The error of rounding `x` to one grid: `sum |scale * (q - zero) - x|^p`.
    ///
    /// The power 2.4 is accurate to `1e-6` relative. A NaN in `x` makes the result NaN.
    pub fn grid_error, grid_error_on(
        x: &[f32], scale: f32, zero: f32, maxq: u8, norm: ErrorNorm,
    ) -> f32 = grid_error_body
}

#[inline(always)]
fn grid_error_body<S: Simd>(
    _: S,
    x: &[f32],
    scale: f32,
    zero: f32,
    maxq: u8,
    norm: ErrorNorm,
) -> f32 {
    let maxq = f32::from(maxq);
    match norm {
        ErrorNorm::Square => sum_errors(x, scale, zero, maxq, |e| e * e),
        ErrorNorm::Power2p4 => sum_errors(x, scale, zero, maxq, power_2p4),
    }
}

stamp! {
    /// [`grid_error`] of `x` on many grids: `errors[i]` is that of `scales[i]` and `zeros[i]`.
    ///
    /// # Panics
    ///
    /// If `scales`, `zeros` and `errors` differ in length.
    pub fn grid_errors, grid_errors_on(
        x: &[f32], scales: &[f32], zeros: &[f32], maxq: u8, norm: ErrorNorm, errors: &mut [f32],
    ) = grid_errors_body
}

#[inline(always)]
fn grid_errors_body<S: Simd>(
    s: S,
    x: &[f32],
    scales: &[f32],
    zeros: &[f32],
    maxq: u8,
    norm: ErrorNorm,
    errors: &mut [f32],
) {
    assert!(
        scales.len() == errors.len() && zeros.len() == errors.len(),
        "grid_errors: lengths differ"
    );
    for (error, (&scale, &zero)) in errors.iter_mut().zip(scales.iter().zip(zeros)) {
        *error = grid_error_body(s, x, scale, zero, maxq, norm);
    }
}

stamp! {
    /// What rounding `x` to the nearest multiples of `step` changes, `e = x - step * round(x / step)`: `e.e` and `e.x`.
    /// Ties go to even; `x * (1 / step)` is what is rounded, and at most 2^22 in size.
    pub fn step_error, step_error_on(x: &[f32], step: f32) -> (f32, f32) = step_error_body
}

#[inline(always)]
fn step_error_body<S: Simd>(_: S, x: &[f32], step: f32) -> (f32, f32) {
    let inverse = 1.0 / step;
    let (mut squares, mut products) = ([0.0f32; SUMS], [0.0f32; SUMS]);
    let mut add = |i: usize, x: f32| {
        // Adding this leaves no bits for a fraction: it rounds.
        const ALIGN: f32 = 12_582_912.0;
        let e = x - step * ((x * inverse + ALIGN) - ALIGN);
        squares[i] += e * e;
        products[i] += e * x;
    };
    let (blocks, rest) = x.as_chunks::<SUMS>();
    for block in blocks {
        for i in 0..SUMS {
            add(i, block[i]);
        }
    }
    rest.iter().enumerate().for_each(|(i, &x)| add(i, x));
    (halved(squares), halved(products))
}

/// How many partial sums are kept, on every instruction set alike.
const SUMS: usize = 32;

#[inline(always)]
fn sum_errors(x: &[f32], scale: f32, zero: f32, maxq: f32, power: impl Fn(f32) -> f32) -> f32 {
    let error = |x: f32| (scale * (snap(x, scale, zero, maxq) - zero) - x).abs();
    let mut sums = [0.0f32; SUMS];
    let (blocks, rest) = x.as_chunks::<SUMS>();
    for block in blocks {
        for i in 0..SUMS {
            sums[i] += power(error(block[i]));
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += power(error(x));
    }
    halved(sums)
}

/// The sum, one half added to the other again and again.
#[inline(always)]
fn halved(mut sums: [f32; SUMS]) -> f32 {
    let mut width = SUMS / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// `e^2.4` for `e >= 0`, as `e^2 * e^0.4`.
///
/// With `e = 2^n * m` and `2n = 5i + r` (r from 0 to 4), `e^0.4 = 2^i * 2^(r/5) * m^0.4`, without
/// a branch: `2^(r/5)` from the polynomial through its five values, `m^0.4` from a Chebyshev
/// interpolation (relative error 2.5e-7). Zero, infinity and NaN come out right through `e^2`.
#[inline(always)]
fn power_2p4(e: f32) -> f32 {
    let bits = e.to_bits();
    let m = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000) - 1.5;
    // 2n + 640, positive, so that division by five is one multiplication.
    let twice = 2 * (bits >> 23) + (640 - 254);
    let fifth = (twice * 52_429) >> 18;
    let r = (twice - 5 * fifth) as i32 as f32;
    let power_of_two = f32::from_bits((fifth - 1) << 23);
    let m = horner(
        m,
        [
            1.176_079,
            0.313_623_56,
            -0.062_725_59,
            0.022_223_12,
            -0.009_620_581,
            0.005_250_953,
            -0.002_709_091,
        ],
    );
    let r = horner(r, [1.0, 0.138_616_5, 0.009_635_732, 0.000_425_756_9, 0.000_020_371_05]);
    (e * e) * ((m * r) * power_of_two)
}

/// The polynomial with these coefficients, the constant first.
#[inline(always)]
fn horner<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for c in coefficients[..N - 1].iter().rev() {
        sum = sum * x + c;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::power_2p4;

    #[test]
    fn power_is_accurate_over_the_normal_range() {
        let mut worst = 0.0f64;
        let mut e = 1e-15f32;
        while e < 1e15 {
            let exact = f64::from(e).powf(2.4);
            worst = worst.max((f64::from(power_2p4(e)) / exact - 1.0).abs());
            e *= 1.000_37;
        }
        assert!(worst < 8e-7, "{worst}");
    }

    #[test]
    fn power_of_special_values() {
        assert_eq!(power_2p4(0.0), 0.0);
        assert_eq!(power_2p4(f32::MIN_POSITIVE / 8.0), 0.0);
        assert_eq!(power_2p4(f32::INFINITY), f32::INFINITY);
        assert!(power_2p4(f32::NAN).is_nan());
    }
}
