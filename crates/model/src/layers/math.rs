//! Exponentials and what is made of them, written so that the compiler makes vector code of the loops.

const LANES: usize = 8;

/// e^x for finite x, relative error below 5e-7; below -87 it is e^-87, above 88 it is e^88. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
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

/// The largest value; NaN values are passed over; -inf of nothing.
pub(crate) fn max(values: &[f32]) -> f32 {
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

/// Replaces scores by probabilities: exp(scale (x - max)) / sum.
pub(crate) fn softmax(values: &mut [f32], scale: f32) {
    let top = max(values);
    // Found for all and then chosen: a branch would keep the loop from vector code.
    let exp = |x: f32| {
        let power = exp(x);
        if x < FAINT { 0.0 } else { power }
    };
    let mut sums = [0.0f32; LANES];
    let (blocks, rest) = values.as_chunks_mut::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            block[i] = exp(scale * (block[i] - top));
            sums[i] += block[i];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for value in rest {
        *value = exp(scale * (*value - top));
        sum += *value;
    }
    let factor = 1.0 / sum;
    values.iter_mut().for_each(|v| *v *= factor);
}

/// ln of the sum of exp(x), summed in f64.
pub(crate) fn log_sum_exp(values: &[f32]) -> f64 {
    let top = max(values);
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

/// Index of the largest value, the first of equals.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let top = max(values);
    values.iter().position(|v| *v == top).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        for i in -86_900..87_900 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 5e-7, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn no_probability_is_subnormal() {
        let mut values: Vec<f32> = (0..2000).map(|i| i as f32 * -0.1).collect();
        softmax(&mut values, 1.0);
        assert!(values.iter().all(|p| *p == 0.0 || p.is_normal()));
        assert!(values[600] > 0.0 && values[700] == 0.0);
        let mut bad = [1.0, f32::NAN, 0.0];
        softmax(&mut bad, 1.0);
        assert!(bad.iter().all(|p| p.is_nan()));
    }

    #[test]
    fn softmax_sums_to_one_at_every_length() {
        for n in 1..40 {
            let mut values: Vec<f32> = (0..n).map(|i| (i * 7 % 11) as f32).collect();
            let exact: f64 = values.iter().map(|v| f64::from(*v).exp()).sum();
            assert!((log_sum_exp(&values) - exact.ln()).abs() < 1e-6);
            assert_eq!(argmax(&values), values.iter().position(|v| *v == max(&values)).unwrap());
            softmax(&mut values, 1.0);
            assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }
}
