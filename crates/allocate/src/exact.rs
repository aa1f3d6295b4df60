//! The least sum of errors: by dynamic programming, or by Lagrange's multiplier alone.

use tensorpress_tensor::{Error, Result};

use crate::knapsack::{self, Item, Relaxed, relax, undominated};
use crate::{Allocation, Choice, Solver, Table};

/// The least sum of errors within the budget, exactly.
///
/// Dynamic programming over partial choices that no other beats (Nemhauser and Ullmann, 1969), cut by the bound of Lagrange's
/// multiplier, so that costs need no common measure and a budget of gigabytes takes no more than one of a hundred. Up to so
/// many partial choices are kept ([`Exact::with_states`]); where that did not do, [`Allocation::bound`] says how near it is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Exact {
    states: usize,
}

impl Default for Exact {
    fn default() -> Self {
        Self { states: 1 << 16 }
    }
}

impl Exact {
    /// The solver with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many partial choices are kept at most. Memory is 8 bytes times that a unit. Default 65,536; at least 2.
    #[must_use]
    pub fn with_states(mut self, states: usize) -> Self {
        self.states = states.clamp(2, u32::MAX as usize);
        self
    }

    /// The least cost at which the sum of errors is no more than `error`: the same problem, seen from the other side, as
    /// L-GreCo asks it (Markov et al., *L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep
    /// Learning*, MLSys 2024), without its bins of errors.
    ///
    /// # Errors
    /// `InvalidArgument` if even the best levels lose more, saying how much; `Numerical` for NaN.
    pub fn least_cost(&self, table: &Table, error: f64) -> Result<Allocation> {
        if error.is_nan() {
            return Err(Error::numerical("the error to keep is NaN"));
        }
        let units = items(table, |choice| (choice.error, choice.cost as f64));
        let least: f64 = units.iter().map(|items| items[0].weight).sum();
        // Sums of errors are rounded: what is as good as a reference may be a hair above it.
        let limit = error + 1e-12 * error.abs();
        if least > limit {
            return Err(Error::invalid(format!(
                "an error of {error} is out of reach: the least is {least}"
            )));
        }
        let relaxed = relax(&units, limit);
        let (chosen, _) = knapsack::solve(&units, limit, &relaxed, self.states);
        Ok(allocation(table, &units, &chosen))
    }

    /// The least cost at which nothing more is lost than by a reference, [`Table::uniform`] as a rule: L-GreCo's question. It
    /// never costs more than the reference.
    ///
    /// # Errors
    /// `ShapeMismatch` unless the reference has one level a unit of this table.
    pub fn least_cost_of(&self, table: &Table, reference: &Allocation) -> Result<Allocation> {
        let choices = &reference.choices;
        let known = |(unit, choice): (&crate::Unit, &usize)| *choice < unit.choices().len();
        let units = table.units();
        if choices.len() != units.len() || !units.iter().zip(choices).all(known) {
            return Err(Error::shape("the reference is no allocation of this table"));
        }
        // With few partial choices kept the search may end above the reference.
        let reference = Allocation::new(table, choices.clone());
        let found = self.least_cost(table, reference.error)?;
        Ok(if found.cost > reference.cost { reference } else { found })
    }
}

impl Solver for Exact {
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation> {
        let (units, limit, relaxed) = relaxed(table, budget)?;
        let (chosen, proven) = knapsack::solve(&units, limit, &relaxed, self.states);
        let found = allocation(table, &units, &chosen);
        let bound = if proven { found.error } else { relaxed.bound };
        Ok(found.with_bound(bound))
    }
}

/// The sum of errors by Lagrange's multiplier (Shoham and Gersho, *Efficient Bit Allocation for an Arbitrary Set of
/// Quantizers*, 1988): the levels of the lower convex hulls that one price of a byte buys, and what then still fits. It loses
/// against [`Exact`] by a step of one unit or two.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Lagrange;

impl Lagrange {
    /// The solver.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Solver for Lagrange {
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation> {
        let (units, _, relaxed) = relaxed(table, budget)?;
        Ok(allocation(table, &units, &relaxed.chosen).with_bound(relaxed.bound))
    }
}

/// What each unit may be, the limit, and what the multiplier finds.
fn relaxed(table: &Table, budget: u64) -> Result<(Vec<Vec<Item>>, f64, Relaxed)> {
    table.check_budget(budget)?;
    let units = items(table, |choice| (choice.cost as f64, choice.error));
    let relaxed = relax(&units, budget as f64);
    Ok((units, budget as f64, relaxed))
}

pub(crate) fn items(table: &Table, of: impl Fn(&Choice) -> (f64, f64)) -> Vec<Vec<Item>> {
    let item = |(index, choice): (usize, &Choice)| {
        let (weight, value) = of(choice);
        Item { weight, value, index }
    };
    let items =
        |unit: &crate::Unit| undominated(unit.choices().iter().enumerate().map(item).collect());
    table.units().iter().map(items).collect()
}

fn allocation(table: &Table, units: &[Vec<Item>], chosen: &[usize]) -> Allocation {
    let choices = units.iter().zip(chosen).map(|(items, at)| items[*at].index).collect();
    Allocation::new(table, choices)
}
