//! Exponentials and what is made of them: loops that compilers make vector code of.
//!
//! Nothing is fused and lanes are the same everywhere, so that all instruction sets give the same bits.

use super::simd::{Simd, stamp};

const LANES: usize = 16;

/// e^x, relative error below 5e-7; below -87 it is e^-87, above 88 it is e^88. NaN stays NaN.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 x 2^23 rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln(2) in two parts, the first of few bits: its product with n is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's series on |r| <= ln(2) / 2; the first term left out is below 1.2e-7. Pairs keep the chain short.
    let r2 = r * r;
    let high = (1.0 / 24.0 + r * (1.0 / 120.0)) + r2 * (1.0 / 720.0);
    let series = (1.0 + r) + r2 * ((0.5 + r * (1.0 / 6.0)) + r2 * high);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    series * power
}

stamp! {
    /// The largest value; NaN values are passed over; -inf of nothing.
    pub fn maximum, maximum_on(values: &[f32]) -> f32 = maximum_body
}

#[inline(always)]
fn maximum_body<S: Simd>(_: S, values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for i in 0..LANES {
            most[i] = if block[i] > most[i] { block[i] } else { most[i] };
        }
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// Scores this far below the largest have no probability: in sums with that of the largest they would be lost, and in
/// products with others they would become numbers of fewer digits, which CPUs take a hundred times as long for.
const FAINT: f32 = -64.0;

stamp! {
    /// Replaces scores by probabilities: exp(scale (x - largest)) / sum, or 0 where that is less than e^-64 of the largest.
    /// NaN, or nothing but -inf, makes all of them NaN.
    pub fn softmax, softmax_on(values: &mut [f32], scale: f32) = softmax_body
}

#[inline(always)]
fn softmax_body<S: Simd>(s: S, values: &mut [f32], scale: f32) {
    let top = maximum_body(s, values);
    // Found for all and then chosen: a branch would keep the loop from vector code.
    let power = |x: f32| {
        let power = exp(x);
        if x < FAINT { 0.0 } else { power }
    };
    let mut sums = [0.0f32; LANES];
    let (blocks, rest) = values.as_chunks_mut::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            block[i] = power(scale * (block[i] - top));
            sums[i] += block[i];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for value in rest {
        *value = power(scale * (*value - top));
        sum += *value;
    }
    let factor = 1.0 / sum;
    values.iter_mut().for_each(|v| *v *= factor);
}

stamp! {
    /// ln of the sum of e^x, summed in f64.
    pub fn log_sum_exp, log_sum_exp_on(values: &[f32]) -> f64 = log_sum_exp_body
}

#[inline(always)]
fn log_sum_exp_body<S: Simd>(s: S, values: &[f32]) -> f64 {
    let top = maximum_body(s, values);
    let mut sums = [0.0f64; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            sums[i] += f64::from(exp(block[i] - top));
        }
    }
    let rest: f64 = rest.iter().map(|v| f64::from(exp(v - top))).sum();
    f64::from(top) + (sums.iter().sum::<f64>() + rest).ln()
}

stamp! {
    /// x / (1 + e^(-a x)), value by value: SiLU where a is 1.
    pub fn swish, swish_on(values: &mut [f32], a: f32) = swish_body
}

#[inline(always)]
fn swish_body<S: Simd>(_: S, values: &mut [f32], a: f32) {
    let (blocks, rest) = values.as_chunks_mut::<LANES>();
    let of = |x: f32| x / (1.0 + exp(-a * x));
    for block in blocks {
        for x in block {
            *x = of(*x);
        }
    }
    rest.iter_mut().for_each(|x| *x = of(*x));
}
