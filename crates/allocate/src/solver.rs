use tensorpress_tensor::Result;

use crate::Table;

/// One level a unit.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Allocation {
    /// The level of each unit, as its place among the unit's levels.
    pub choices: Vec<usize>,
    /// What it costs.
    pub cost: u64,
    /// What it loses: the sum of the table's errors, or what the objective said.
    pub error: f64,
    /// No allocation within the budget is known to lose less than this; nothing where the solver proves nothing.
    pub bound: Option<f64>,
}

impl Allocation {
    /// The allocation of these choices, by the table's costs and errors.
    ///
    /// # Panics
    /// If there is not one number a unit, of a level that it has.
    #[must_use]
    pub fn new(table: &Table, choices: Vec<usize>) -> Self {
        let (cost, error) = (table.cost(&choices), table.error(&choices));
        Self { choices, cost, error, bound: None }
    }

    pub(crate) fn with_bound(mut self, bound: f64) -> Self {
        self.bound = Some(bound.min(self.error));
        self
    }
}

/// Chooses a level for each unit within a budget.
pub trait Solver: Send + Sync {
    /// The choices, which cost no more than `budget`.
    ///
    /// # Errors
    /// `InvalidArgument` if even the cheapest levels cost more, saying what they do.
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation>;
}
