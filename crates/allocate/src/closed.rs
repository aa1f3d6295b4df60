//! Optima that have a form of their own, where a unit of sensitivity c loses c 2^(-2 R) at R bits (BAQ: Zhang et al., *BAQ:
//! Efficient Bit Allocation Quantization for Large Language Models*, 2025).

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;

use tensorpress_tensor::{Error, Result};

/// Bits of each unit, at `mean` on average and within `range`: R + ½ log2(c / geometric mean of c) where nothing is at an
/// end of the range, so that all lose the same, and the same for those that are not (reverse water
/// filling) where some are. Units of no sensitivity get the least.
///
/// # Errors
/// `InvalidArgument` if `mean` is outside the range; `Numerical` for a sensitivity below 0, NaN or infinite.
pub fn bits(sensitivity: &[f64], mean: f64, range: RangeInclusive<f64>) -> Result<Vec<f64>> {
    let (low, high) = (*range.start(), *range.end());
    if !(range.contains(&mean) && low.is_finite() && high.is_finite()) {
        let allowed = format!("from {low} to {high}");
        return Err(Error::invalid(format!("a mean of {mean} bits: allowed are those {allowed}")));
    }
    check(sensitivity)?;
    let most = sensitivity.iter().copied().fold(0.0, f64::max);
    if most == 0.0 {
        return Ok(vec![mean; sensitivity.len()]);
    }
    // What a unit gets where all that are between the ends lose 2^water.
    let of = |c: f64, water: f64| match c > 0.0 {
        true => (0.5 * (c.log2() - water)).clamp(low, high),
        false => low,
    };
    let total = mean * sensitivity.len() as f64;
    let sum = |water: f64| sensitivity.iter().map(|c| of(*c, water)).sum::<f64>();
    let least = sensitivity.iter().copied().filter(|c| *c > 0.0).fold(most, f64::min);
    let (mut deep, mut high_water) =
        (least.log2() - 2.0 * high - 1.0, most.log2() - 2.0 * low + 1.0);
    for _ in 0..200 {
        let middle = 0.5 * (deep + high_water);
        if sum(middle) >= total { deep = middle } else { high_water = middle }
    }
    Ok(sensitivity.iter().map(|c| of(*c, deep)).collect())
}

/// Whole bits of each unit, `total` together unless all are at an end of the range: the optimum, as a bit is ever given to
/// the unit that gains the most by it, and gains fall.
///
/// # Errors
/// `InvalidArgument` if the least of the range is more than `total`; `Numerical` as in [`bits`].
pub fn whole_bits(sensitivity: &[f64], total: u64, range: RangeInclusive<u32>) -> Result<Vec<u32>> {
    struct Gain(f64, usize);
    impl PartialEq for Gain {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }
    impl Eq for Gain {}
    impl PartialOrd for Gain {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Gain {
        fn cmp(&self, other: &Self) -> Ordering {
            self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
        }
    }
    check(sensitivity)?;
    let (low, high) = (*range.start(), *range.end());
    let least = u64::from(low) * sensitivity.len() as u64;
    let Some(mut left) = total.checked_sub(least) else {
        return Err(Error::invalid(format!("{total} bits are too few: the least are {least}")));
    };
    let gain = |c: f64, bits: u32| 0.75 * c * (-2.0 * f64::from(bits)).exp2();
    let mut bits = vec![low; sensitivity.len()];
    let mut heap: BinaryHeap<Gain> =
        sensitivity.iter().enumerate().map(|(at, c)| Gain(gain(*c, low), at)).collect();
    while left > 0 {
        let Some(Gain(_, at)) = heap.pop() else { break };
        if bits[at] < high {
            bits[at] += 1;
            left -= 1;
            heap.push(Gain(gain(sensitivity[at], bits[at]), at));
        }
    }
    Ok(bits)
}

/// By what factor the best bits lose less than equal ones: the arithmetic mean of the sensitivities by the geometric one. At least 1; infinite where one of several is 0.
#[must_use]
pub fn gain(sensitivity: &[f64]) -> f64 {
    let n = sensitivity.len().max(1) as f64;
    let arithmetic = sensitivity.iter().sum::<f64>() / n;
    let geometric = (sensitivity.iter().map(|c| c.ln()).sum::<f64>() / n).exp();
    arithmetic / geometric
}

/// Numbers of levels for the columns of a matrix, as BAQ's released code makes them of what each column lost when all had
/// `bits` (½ Σ (w - q)² / d² of a first pass of GPTQ): (loss 2^(1.95 bits) / geometric mean of losses)^(1 / 1.95), rounded.
/// Their logarithms are about `bits` on average, and no whole numbers.
///
/// # Errors
/// `Numerical` for a loss below 0, NaN or infinite; `InvalidArgument` for bits that are none or above 16.
pub fn column_levels(losses: &[f32], bits: f64) -> Result<Vec<u32>> {
    /// The exponent of the law by which a column's loss falls with its bits, and what keeps its logarithm finite.
    const LAW: f64 = 1.95;
    const LEAST: f64 = 1e-8;
    if !(0.0..=16.0).contains(&bits) {
        return Err(Error::invalid(format!("{bits} bits: allowed are those from 0 to 16")));
    }
    let losses: Vec<f64> = losses.iter().map(|loss| f64::from(*loss)).collect();
    check(&losses)?;
    let n = losses.len().max(1) as f64;
    let geometric = (losses.iter().map(|loss| (loss + LEAST).ln()).sum::<f64>() / n).exp();
    let levels = |loss: &f64| {
        let levels = (loss / geometric * (LAW * bits).exp2()).powf(1.0 / LAW);
        levels.clamp(1.0, 65_536.0).round_ties_even() as u32
    };
    Ok(losses.iter().map(levels).collect())
}

fn check(sensitivity: &[f64]) -> Result<()> {
    match sensitivity.iter().position(|c| !(0.0..f64::INFINITY).contains(c)) {
        Some(at) => Err(Error::numerical(format!("sensitivity {at} is {}", sensitivity[at]))),
        None => Ok(()),
    }
}
