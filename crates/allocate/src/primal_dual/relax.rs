//! The relaxed problem: descent on counts and ascent on the multiplier.

use tensorpress_tensor::{Error, Result};

use super::Counted;

/// A problem with counts as shares of their ranges, and a loss and a cost whose ranges are about 1.
pub(super) struct Scaled<'a> {
    problem: &'a dyn Counted,
    budget: f64,
    low: Vec<f64>,
    span: Vec<f64>,
    loss: f64,
    cost: f64,
}

/// Where a descent is: shares, the Lagrangian there and its slope.
struct Point {
    at: Vec<f64>,
    value: f64,
    slope: Vec<f64>,
}

/// A descent is at rest where a step along the slope would move no share by more.
const REST: f64 = 1e-9;

/// A step may end above the last value, but not above the highest of so many before (Grippo, Lampariello, Lucidi, 1986).
const MEMORY: usize = 8;

impl<'a> Scaled<'a> {
    /// `InvalidArgument` if even the least counts cost more than the budget.
    pub(super) fn new(
        problem: &'a dyn Counted,
        bounds: &[(u64, u64)],
        budget: f64,
    ) -> Result<Self> {
        let low: Vec<f64> = bounds.iter().map(|(low, _)| *low as f64).collect();
        let high: Vec<f64> = bounds.iter().map(|(_, high)| *high as f64).collect();
        let span = low.iter().zip(&high).map(|(low, high)| high - low).collect();
        let mut scaled = Self { problem, budget, low, span, loss: 1.0, cost: 1.0 };
        let ((loss_low, least), (loss_high, most)) =
            (scaled.both(&scaled.low)?, scaled.both(&high)?);
        if least > budget {
            return Err(Error::invalid(format!(
                "a budget of {budget} is too small: the least is {least}"
            )));
        }
        let unit = |range: f64| if range > 0.0 { range } else { 1.0 };
        (scaled.loss, scaled.cost) = (unit((loss_low - loss_high).abs()), unit(most - least));
        Ok(scaled)
    }

    /// Loss and cost of counts, in the problem's own measure.
    pub(super) fn both(&self, counts: &[f64]) -> Result<(f64, f64)> {
        let (loss, cost) = (self.problem.loss(counts)?, self.problem.cost(counts)?);
        match loss.is_finite() && cost.is_finite() {
            true => Ok((loss, cost)),
            false => Err(Error::numerical(format!("loss {loss} and cost {cost} at {counts:?}"))),
        }
    }

    /// A multiplier in the problem's own measure.
    pub(super) fn price(&self, multiplier: f64) -> f64 {
        multiplier * self.loss / self.cost
    }

    /// Counts and the multiplier, after so many ascents with so many steps of descent before each at most.
    pub(super) fn relax(&self, rounds: usize, steps: usize) -> Result<(Vec<f64>, f64)> {
        let mut at = vec![0.5; self.span.len()];
        let (mut multiplier, mut weight, mut before) = (0.0f64, 1.0f64, f64::INFINITY);
        for _ in 0..rounds {
            let rests;
            (at, rests) = self.descend(at, steps, multiplier, weight)?;
            let over = (self.both(&self.counts(&at))?.1 - self.budget) / self.cost;
            // What is left of the budget is no fault where nothing is paid for it.
            let off = over.max(-multiplier / weight).abs();
            multiplier = (multiplier + weight * over).max(0.0);
            if rests && off < REST {
                break;
            }
            if off > REST && off > 0.25 * before && weight < 1e6 {
                weight *= 4.0;
            }
            before = off;
        }
        Ok((self.counts(&at), multiplier))
    }

    /// Projected descent, and whether it came to rest.
    fn descend(
        &self,
        at: Vec<f64>,
        steps: usize,
        multiplier: f64,
        weight: f64,
    ) -> Result<(Vec<f64>, bool)> {
        let moved = |here: &Point, step: f64| -> Vec<f64> {
            here.at
                .iter()
                .zip(&here.slope)
                .map(|(at, slope)| (at - step * slope).clamp(0.0, 1.0))
                .collect()
        };
        let mut here = self.lagrangian(at, multiplier, weight)?;
        let mut values = vec![here.value];
        let mut step = 1.0;
        for _ in 0..steps {
            let rest = moved(&here, 1.0);
            if here.at.iter().zip(rest).all(|(at, to)| (at - to).abs() < REST) {
                return Ok((here.at, true));
            }
            let highest = values.iter().rev().take(MEMORY).copied().fold(here.value, f64::max);
            let next = loop {
                let next = self.lagrangian(moved(&here, step), multiplier, weight)?;
                let by = next.at.iter().zip(&here.at).map(|(to, at)| (to - at).powi(2));
                // Below a share of what the slope promises; or no step is short enough, as sums are rounded.
                if next.value <= highest - 1e-4 / step * by.sum::<f64>() || step < 1e-12 {
                    break next;
                }
                step *= 0.5;
            };
            let (mut length, mut bend) = (0.0, 0.0);
            for unit in 0..next.at.len() {
                let by = next.at[unit] - here.at[unit];
                length += by * by;
                bend += by * (next.slope[unit] - here.slope[unit]);
            }
            values.push(next.value);
            here = next;
            // The length at which the last step would have met the slope (Barzilai, Borwein, 1988).
            step = if bend > 0.0 { (length / bend).clamp(1e-6, 1e9) } else { 1.0 };
        }
        Ok((here.at, false))
    }

    fn counts(&self, at: &[f64]) -> Vec<f64> {
        let count = |((at, low), span): ((&f64, &f64), &f64)| low + at * span;
        at.iter().zip(&self.low).zip(&self.span).map(count).collect()
    }

    /// The augmented Lagrangian.
    fn lagrangian(&self, at: Vec<f64>, multiplier: f64, weight: f64) -> Result<Point> {
        let counts = self.counts(&at);
        let (loss, cost) = self.both(&counts)?;
        let pressed = (multiplier + weight * (cost - self.budget) / self.cost).max(0.0);
        let value =
            loss / self.loss + (pressed * pressed - multiplier * multiplier) / (2.0 * weight);
        let (down, up) = (self.problem.loss_slope(&counts)?, self.problem.cost_slope(&counts)?);
        if down.len() != at.len() || up.len() != at.len() {
            return Err(Error::shape("a slope has not one number a count"));
        }
        let slope = |unit: usize| {
            self.span[unit] * (down[unit] / self.loss + pressed * up[unit] / self.cost)
        };
        let slope: Vec<f64> = (0..at.len()).map(slope).collect();
        match slope.iter().all(|slope| slope.is_finite()) {
            true => Ok(Point { at, value, slope }),
            false => Err(Error::numerical(format!("a slope at {counts:?} is no number"))),
        }
    }
}
