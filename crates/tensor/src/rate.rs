//! Bits by the step of a grid, and the one step at which many matrices take so many bits together.

use serde::{Deserialize, Serialize};

/// Units of an octave that steps are counted in, so that they are whole numbers wherever they are kept.
pub const OCTAVE: i32 = 64;

/// About the bits that a matrix takes when it is rounded to a grid of this step or that and entropy-coded.
///
/// Between two points bits are on the line through them; beyond the finest, each halving of the step takes a bit a weight
/// more, and beyond the coarsest bits fall as they did before it, to 0.
///
/// ```
/// use tensorpress_tensor::rate::{OCTAVE, RateCurve};
///
/// let curve = RateCurve::new(100, vec![(-OCTAVE, 300), (0, 210)]);
/// assert_eq!(curve.bits(-2 * OCTAVE), 400.0);
/// assert_eq!(curve.bits(-OCTAVE / 2), 255.0);
/// assert_eq!(curve.bits(100 * OCTAVE), 0.0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]

pub struct RateCurve {
    weights: u64,
    /// Steps (log2, in parts of [`OCTAVE`]) and bits of the whole matrix: steps rise, bits do not.
    points: Vec<(i32, u64)>,
}

impl RateCurve {
    /// A curve of a matrix of so many weights through these points: log2 of the step in parts of [`OCTAVE`], and the bits
    /// of the whole matrix there. A point at which more bits are taken than at a finer step counts as that.
    #[must_use]
    pub fn new(weights: u64, mut points: Vec<(i32, u64)>) -> Self {
        points.sort_by_key(|(step, bits)| (*step, std::cmp::Reverse(*bits)));
        points.dedup_by_key(|(step, _)| *step);
        for i in 1..points.len() {
            points[i].1 = points[i].1.min(points[i - 1].1);
        }
        Self { weights, points }
    }

    /// Weights of the matrix.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.weights
    }

    /// Bits of the whole matrix at a step; 0 without any point.
    #[must_use]
    pub fn bits(&self, step: i32) -> f64 {
        let of = |(step, bits): (i32, u64)| (f64::from(step), bits as f64);
        let x = f64::from(step);
        let Some(first) = self.points.first().map(|point| of(*point)) else { return 0.0 };
        let after = self.points.iter().position(|(there, _)| *there >= step);
        match after {
            Some(0) => first.1 + (first.0 - x) / f64::from(OCTAVE) * self.weights as f64,
            Some(at) => {
                let (a, b) = (of(self.points[at - 1]), of(self.points[at]));
                a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0)
            }
            None => {
                let last = of(self.points[self.points.len() - 1]);
                let slope = match self.points.len() {
                    1 => -(self.weights as f64) / f64::from(OCTAVE),
                    n => {
                        let before = of(self.points[n - 2]);
                        (last.1 - before.1) / (last.0 - before.0)
                    }
                };
                (last.1 + slope * (x - last.0)).max(0.0)
            }
        }
    }
}

/// The coarsest step at which matrices take at least so many bits together, by their curves; the finest there is where
/// none is fine enough.
#[must_use]
pub fn common_step<'a>(curves: impl Iterator<Item = &'a RateCurve> + Clone, bits: f64) -> i32 {
    let enough = |step: i32| curves.clone().map(|curve| curve.bits(step)).sum::<f64>() >= bits;
    let (mut fine, mut coarse) = (-FARTHEST, FARTHEST);
    while coarse - fine > 1 {
        let middle = (fine + coarse).div_euclid(2);
        if enough(middle) {
            fine = middle;
        } else {
            coarse = middle;
        }
    }
    fine
}

/// No step is finer or coarser.
const FARTHEST: i32 = 100 * OCTAVE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_step_spends_what_there_is() {
        let curves = [
            RateCurve::new(1000, vec![(0, 3000), (64, 2100), (-64, 4000)]),
            RateCurve::new(500, vec![(32, 2000), (-32, 2500), (96, 1700)]),
            // Noise: more bits at a coarser step count as no fewer.
            RateCurve::new(10, vec![(0, 30), (10, 31)]),
        ];
        for bits in [100.0, 1000.0, 4000.0, 6000.0, 9000.0] {
            let step = common_step(curves.iter(), bits);
            let at = |step| curves.iter().map(|curve| curve.bits(step)).sum::<f64>();
            assert!(at(step) >= bits && at(step + 1) < bits, "{bits} bits at {step}");
        }
        assert_eq!(common_step(std::iter::empty(), 1.0), -FARTHEST);
        assert_eq!(RateCurve::new(4, vec![]).bits(3), 0.0);
    }
}
