mod relax;
mod rounding;

use tensorpress_tensor::{Error, Result};

use crate::table::MOST;
use relax::Scaled;

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
        let scaled = Scaled::new(problem, &bounds, budget)?;
        let (relaxed, multiplier) = scaled.relax(self.rounds, self.steps)?;
        let (counts, loss, cost) =
            rounding::within(budget, &bounds, &relaxed, &|at| scaled.both(at))?;
        Ok(Counts { counts, loss, cost, relaxed, price: scaled.price(multiplier) })
    }
}
