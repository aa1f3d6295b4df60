use tensorpress_tensor::{Error, Result};

use super::SymbolModels;
use crate::coder::range::Interval;

/// Steps of a scale: 16 an octave, from 1/16 to 128.
const SCALES: usize = 16 * 11 + 1;
/// Fractions of a mean.
const FRACTIONS: usize = 16;
/// Total of a distribution.
const TOTAL: u32 = 1 << 16;

/// A normal distribution of one integer symbol: mean and standard deviation in units of the symbol, rounded to what
/// is exactly the same on every machine (1/16 of a step, 1/16 of an octave).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gaussian {
    /// Mean in sixteenths.
    mean: i32,
    /// Index of the scale.
    scale: u8,
}

impl Gaussian {
    /// The nearest representable distribution; scales are kept within 1/16 to 128.
    ///
    /// # Errors
    /// `Numerical` if a parameter is not finite, or the scale is not above 0.
    pub fn new(mean: f32, scale: f32) -> Result<Self> {
        if !mean.is_finite() || !scale.is_finite() || scale <= 0.0 {
            return Err(Error::numerical(format!(
                "normal distribution of mean {mean}, scale {scale}"
            )));
        }
        let mean = (f64::from(mean) * FRACTIONS as f64).round().clamp(-1e6, 1e6) as i32;
        // By exponent and mantissa, since logarithms are not rounded alike everywhere.
        let scale = f64::from(scale).clamp(0.0625, 128.0);
        let octave = (scale.to_bits() >> 52) as i64 - 1023;
        let mantissa = (1 << 30) | (scale.to_bits() >> 22 & ((1 << 30) - 1)) as i64;
        let upper = SIXTEENTHS[1..].iter().chain([&(2 << 30)]);
        let part =
            SIXTEENTHS.iter().zip(upper).take_while(|(a, b)| mantissa > (*a + *b) / 2).count();
        let step = (octave + 4) as usize * 16 + part;
        Ok(Self { mean, scale: step.min(SCALES - 1) as u8 })
    }
}

/// Discretised normal distributions, one for each symbol, over bytes: the probability of v is that of the interval
/// v - 1/2 .. v + 1/2, what lies outside 0 to 255 goes to the ends, and every byte keeps at least 2^-16 (one unit).
///
/// This is the model of learned codecs (Balle et al., "Variational image compression with a scale hyperprior",
/// 2018), in integers. Signed symbols are shifted by the caller.
#[derive(Debug, Clone)]
pub struct Gaussians {
    parameters: Vec<Gaussian>,
    /// Standard normal distribution function on a grid, in units of 2^-32.
    curve: Vec<u32>,
}

/// Grid of the curve: from -8 to 8 standard deviations.
const CURVE_STEPS: usize = 1 << 12;
const CURVE_REACH: f64 = 8.0;

impl Gaussians {
    /// One distribution a symbol.
    #[must_use]
    pub fn new(parameters: Vec<Gaussian>) -> Self {
        let curve = (0..=CURVE_STEPS)
            .map(|i| {
                let x = (i as f64 / CURVE_STEPS as f64 * 2.0 - 1.0) * CURVE_REACH;
                (distribution(x) * f64::from(u32::MAX)) as u32
            })
            .collect();
        Self { parameters, curve }
    }

    /// Sum of the sizes below `value` (0 to 256) of a distribution.
    fn below(&self, gaussian: Gaussian, value: u32) -> u32 {
        // 256 units are dealt out evenly, one to each value; the curve shares out the others.
        let share = match value {
            0 => 0,
            256 => u32::MAX,
            _ => {
                let edge = i64::from(value) * 16 - 8 - i64::from(gaussian.mean);
                // 2^(step / 16) from exact parts: octaves by shifting, sixteenths from a table of integers.
                let (octave, part) =
                    (i64::from(gaussian.scale / 16), usize::from(gaussian.scale % 16));
                let unit = SIXTEENTHS[part] << octave;
                // edge / 16 / scale, on the grid: scale = unit / 2^30 / 16.
                let per_unit = (CURVE_STEPS as i128 / 2) << 30;
                let at = i128::from(edge) * per_unit / (i128::from(unit) * CURVE_REACH as i128);
                let at = (at + CURVE_STEPS as i128 / 2).clamp(0, CURVE_STEPS as i128);
                self.curve[at as usize]
            }
        };
        value + ((u64::from(share) * u64::from(TOTAL - 256)) >> 32) as u32 + u32::from(value == 256)
    }

    fn interval_of(&self, gaussian: Gaussian, value: u8) -> Interval {
        let start = self.below(gaussian, u32::from(value));
        Interval { start, size: self.below(gaussian, u32::from(value) + 1) - start, total: TOTAL }
    }
}

/// 2^30 x 2^(i / 16), rounded.
const SIXTEENTHS: [i64; 16] = [
    1_073_741_824,
    1_121_280_436,
    1_170_923_762,
    1_222_764_986,
    1_276_901_417,
    1_333_434_672,
    1_392_470_869,
    1_454_120_821,
    1_518_500_250,
    1_585_730_000,
    1_655_936_265,
    1_729_250_827,
    1_805_811_301,
    1_885_761_398,
    1_969_251_188,
    2_056_437_387,
];

/// The standard normal distribution function by its series and continued fraction, in additions, multiplications and
/// divisions alone, which every machine rounds alike.
fn distribution(x: f64) -> f64 {
    let a = x.abs();
    // exp(-a^2 / 2) as 2^-32 powers of a short series.
    let small = -a * a / 2.0 / 1024.0;
    let mut density = 1.0 + small * (1.0 + small / 2.0 * (1.0 + small / 3.0 * (1.0 + small / 4.0)));
    for _ in 0..10 {
        density *= density;
    }
    density *= 0.398_942_280_401_432_7;
    let upper = if a < 3.0 {
        // Phi(a) = 1/2 + density x (a + a^3/3 + a^5/15 ...).
        let (mut term, mut sum, mut n) = (a, a, 1.0);
        while term > 1e-17 {
            n += 2.0;
            term *= a * a / n;
            sum += term;
        }
        0.5 - density * sum
    } else {
        let mut fraction = a;
        for k in (1..60).rev() {
            fraction = a + f64::from(k) / fraction;
        }
        density / fraction
    };
    if x > 0.0 { 1.0 - upper } else { upper }
}

impl SymbolModels for Gaussians {
    fn len(&self) -> usize {
        self.parameters.len()
    }

    fn total(&self) -> u32 {
        TOTAL
    }

    fn interval(&self, i: usize, value: u8) -> Option<Interval> {
        Some(self.interval_of(self.parameters[i], value))
    }

    fn find(&self, i: usize, position: u32) -> (u8, Interval) {
        let gaussian = self.parameters[i];
        // The last value whose interval begins at or before the position.
        let (mut low, mut high) = (0u32, 255u32);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if self.below(gaussian, middle) <= position {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        (low as u8, self.interval_of(gaussian, low as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distribution_is_the_normal_one() {
        // Values of the standard normal distribution function (Abramowitz and Stegun, table 26.1).
        let table = [
            (0.0, 0.5),
            (1.0, 0.841_344_746),
            (1.96, 0.975_002_105),
            (3.0, 0.998_650_102),
            (-2.0, 0.022_750_132),
            (-4.0, 3.167_124e-5),
        ];
        for (x, p) in table {
            assert!((distribution(x) - p).abs() < 1e-8, "{x}: {}", distribution(x));
        }
    }

    #[test]
    fn intervals_partition_the_whole() {
        for (mean, scale) in
            [(0.0, 0.01), (127.3, 1.0), (255.0, 3.0), (-400.0, 0.5), (900.0, 50.0), (80.5, 128.0)]
        {
            let models = Gaussians::new(vec![Gaussian::new(mean, scale).unwrap()]);
            let mut end = 0;
            for value in 0..=255u8 {
                let interval = models.interval(0, value).unwrap();
                assert_eq!(interval.start, end, "{mean} {scale} {value}");
                assert!(interval.size > 0);
                end += interval.size;
                for position in [interval.start, end - 1] {
                    assert_eq!(models.find(0, position), (value, interval));
                }
            }
            assert_eq!(end, TOTAL);
        }
        let models = Gaussians::new(vec![Gaussian::new(100.0, 2.0).unwrap()]);
        let centre = f64::from(models.interval(0, 100).unwrap().size) / f64::from(TOTAL);
        assert!((centre - 0.1974).abs() < 2e-3, "{centre}");
    }
}
