use tensorpress_tensor::{Error, Result};

use crate::rounding;
use crate::table::MOST;

/// What counts of things (heads, channels, gates of layers) lose and cost together.
///
/// Counts are real numbers while they are searched for, so that loss and cost are asked in between as well.
pub trait Counted: Send + Sync {
    /// The least and the most of each: 0 and 1 for a gate.
    fn bounds(&self) -> Vec<(u64, u64)>;

    /// What is lost.
    ///
    /// # Errors
    /// Whatever keeps it from being known.
    fn loss(&self, counts: &[f64]) -> Result<f64>;

    /// What it takes of the budget. Products of counts are fine, as heads times a gate cost them; fewer may not cost more.
    ///
    /// # Errors
    /// Whatever keeps it from being known.
    fn cost(&self, counts: &[f64]) -> Result<f64>;

    /// The loss's slope in each count. By differences, unless it is given.
    ///
    /// # Errors
    /// As [`Counted::loss`].
    fn loss_slope(&self, counts: &[f64]) -> Result<Vec<f64>> {
        slope(&self.bounds(), counts, &|counts| self.loss(counts))
    }

    /// The cost's slope in each count. By differences, unless it is given.
    ///
    /// # Errors
    /// As [`Counted::cost`].
    fn cost_slope(&self, counts: &[f64]) -> Result<Vec<f64>> {
        slope(&self.bounds(), counts, &|counts| self.cost(counts))
    }
}

/// Differences within the bounds, a millionth of the range to either side.
fn slope(
    bounds: &[(u64, u64)],
    counts: &[f64],
    of: &dyn Fn(&[f64]) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut at = counts.to_vec();
    let slope = |((low, high), unit): (&(u64, u64), usize)| {
        let (low, high, here) = (*low as f64, *high as f64, at[unit]);
        let step = 1e-6 * (high - low);
        let mut of = |count: f64| {
            at[unit] = count;
            of(&at)
        };
        let (below, above) = ((here - step).max(low), (here + step).min(high));
        let rise = of(above)? - of(below)?;
        at[unit] = here;
        Ok(if above > below { rise / (above - below) } else { 0.0 })
    };
    bounds.iter().zip(0..counts.len()).map(slope).collect()
}

/// What [`PrimalDual`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// Whole counts within the budget.
    pub counts: Vec<u64>,
    /// What they lose.
    pub loss: f64,
    /// What they cost.
    pub cost: f64,
    /// The counts before they were rounded.
    pub relaxed: Vec<f64>,
    /// The multiplier there: loss that a unit of the budget is worth.
    pub price: f64,
}

/// Least loss of counts within a budget, where loss and cost are no sums over units (UVC: Yu et al., *Unified Visual
/// Transformer Compression*, ICLR 2022): min loss(s) with cost(s) ≤ B, by turns of projected descent on relaxed counts and
/// ascent of the budget's multiplier, then rounded.
///
/// The Lagrangian is augmented (Hestenes, Powell, 1969), (max(0, λ + ρ g)² - λ²) / 2ρ for g = cost - B, so that it comes to
/// rest where the plain one swings. On convex problems the relaxed counts are the optimum; the whole ones are those that single
/// steps and exchanges of two improve no more. Descent on the weights themselves is the trainer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrimalDual {
    rounds: usize,
    steps: usize,
}

impl Default for PrimalDual {
    fn default() -> Self {
        Self { rounds: 60, steps: 300 }
    }
}

impl PrimalDual {
    /// The solver with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how often the multiplier ascends at most. Default 60.
    #[must_use]
    pub fn with_rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets the steps of descent between two of its ascents at most. Default 300.
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// The counts.
    ///
    /// # Errors
    /// `InvalidArgument` if even the least counts cost more than `budget`, saying what they do, or a range is empty;
    /// `Numerical` where budget, loss, cost or a slope is no finite number; those of the problem.
    pub fn solve(&self, problem: &dyn Counted, budget: f64) -> Result<Counts> {
        let bounds = problem.bounds();
        if let Some(at) = bounds.iter().position(|(low, high)| low > high || *high > MOST) {
            return Err(Error::invalid(format!("counts {at} from {:?}", bounds[at])));
        }
        if !budget.is_finite() {
            return Err(Error::numerical(format!("the budget is {budget}")));
        }
        let low: Vec<f64> = bounds.iter().map(|(low, _)| *low as f64).collect();
        let high: Vec<f64> = bounds.iter().map(|(_, high)| *high as f64).collect();
        let mut scaled = Scaled { problem, budget, loss: 1.0, cost: 1.0 };
        let ((loss_low, least), (loss_high, most)) = (scaled.both(&low)?, scaled.both(&high)?);
        if least > budget {
            return Err(Error::invalid(format!(
                "a budget of {budget} is too small: the least is {least}"
            )));
        }
        let unit = |range: f64| if range > 0.0 { range } else { 1.0 };
        (scaled.loss, scaled.cost) = (unit((loss_low - loss_high).abs()), unit(most - least));
        let (relaxed, multiplier) = self.relax(&scaled, &low, &high)?;
        let (counts, loss, cost) =
            rounding::within(budget, &bounds, &relaxed, &|at| scaled.both(at))?;
        let price = multiplier * scaled.loss / scaled.cost;
        Ok(Counts { counts, loss, cost, relaxed, price })
    }

    fn relax(&self, problem: &Scaled<'_>, low: &[f64], high: &[f64]) -> Result<(Vec<f64>, f64)> {
        let mut at: Vec<f64> = low.iter().zip(high).map(|(low, high)| 0.5 * (low + high)).collect();
        let span: Vec<f64> = low.iter().zip(high).map(|(low, high)| high - low).collect();
        let (mut multiplier, mut weight, mut before) = (0.0f64, 1.0f64, f64::INFINITY);
        for _ in 0..self.rounds {
            let mut step = 1.0;
            let (mut value, mut slope) = problem.lagrangian(&at, &span, multiplier, weight)?;
            for _ in 0..self.steps {
                let moved = |step: f64| -> Vec<f64> {
                    let to = |unit: usize| {
                        let to = at[unit] - step * slope[unit] * span[unit];
                        to.clamp(low[unit], high[unit])
                    };
                    (0..at.len()).map(to).collect()
                };
                let far = |to: &[f64]| {
                    let part = |unit: usize| match span[unit] > 0.0 {
                        true => (to[unit] - at[unit]) / span[unit],
                        false => 0.0,
                    };
                    (0..at.len()).map(part).collect::<Vec<f64>>()
                };
                let (mut to, mut by, mut next);
                loop {
                    to = moved(step);
                    by = far(&to);
                    next = problem.lagrangian(&to, &span, multiplier, weight)?;
                    let length: f64 = by.iter().map(|by| by * by).sum();
                    if next.0 <= value - 1e-4 / step * length || step < 1e-12 {
                        break;
                    }
                    step *= 0.5;
                }
                let turn: Vec<f64> = next.1.iter().zip(&slope).map(|(a, b)| a - b).collect();
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let (length, bend) = (dot(&by, &by), dot(&by, &turn));
                (at, value, slope) = (to, next.0, next.1);
                if length < 1e-24 || step < 1e-12 {
                    break;
                }
                // The length at which the last step would have met the slope (Barzilai, Borwein, 1988).
                step = if bend > 0.0 { (length / bend).clamp(1e-9, 1e9) } else { 2.0 * step };
            }
            let over = problem.over(&at)?;
            let ascended = (multiplier + weight * over).max(0.0);
            let still = (ascended - multiplier).abs() < 1e-10 * (1.0 + multiplier);
            multiplier = ascended;
            if still && over < 1e-9 {
                break;
            }
            if over.abs() > 0.25 * before && weight < 1e6 {
                weight *= 4.0;
            }
            before = over.abs();
        }
        Ok((at, multiplier))
    }
}

/// A problem whose loss and cost have ranges of about 1.
struct Scaled<'a> {
    problem: &'a dyn Counted,
    budget: f64,
    loss: f64,
    cost: f64,
}

impl Scaled<'_> {
    /// Loss and cost in the problem's own measure.
    fn both(&self, at: &[f64]) -> Result<(f64, f64)> {
        let (loss, cost) = (self.problem.loss(at)?, self.problem.cost(at)?);
        match loss.is_finite() && cost.is_finite() {
            true => Ok((loss, cost)),
            false => Err(Error::numerical(format!("loss {loss} and cost {cost} at {at:?}"))),
        }
    }

    /// What the cost is above the budget.
    fn over(&self, at: &[f64]) -> Result<f64> {
        Ok((self.both(at)?.1 - self.budget) / self.cost)
    }

    /// The augmented Lagrangian and its slope, for counts as shares of their ranges.
    fn lagrangian(
        &self,
        at: &[f64],
        span: &[f64],
        multiplier: f64,
        weight: f64,
    ) -> Result<(f64, Vec<f64>)> {
        let (loss, cost) = self.both(at)?;
        let pressed = (multiplier + weight * (cost - self.budget) / self.cost).max(0.0);
        let value =
            loss / self.loss + (pressed * pressed - multiplier * multiplier) / (2.0 * weight);
        let (down, up) = (self.problem.loss_slope(at)?, self.problem.cost_slope(at)?);
        if down.len() != span.len() || up.len() != span.len() {
            return Err(Error::shape("a slope has not one number a count"));
        }
        let slope =
            |unit: usize| span[unit] * (down[unit] / self.loss + pressed * up[unit] / self.cost);
        let slope: Vec<f64> = (0..span.len()).map(slope).collect();
        match slope.iter().all(|slope| slope.is_finite()) {
            true => Ok((value, slope)),
            false => Err(Error::numerical(format!("a slope at {at:?} is no number"))),
        }
    }
}
