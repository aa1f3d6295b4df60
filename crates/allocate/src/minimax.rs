use tensorpress_tensor::Result;

use crate::{Allocation, Solver, Table};

/// The least largest error of any unit (ALDS: Liebenwein et al., *Compressing Neural Networks: Towards Determining the
/// Optimal Layer-wise Decomposition*, NeurIPS 2021), by bisection over the errors that there are. Of the levels that
/// keep to it each unit gets the cheapest; so that what is left of the budget is not spent.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Minimax;

impl Minimax {
    /// The solver.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Solver for Minimax {
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation> {
        table.check_budget(budget)?;
        let choices = table.units().iter().flat_map(|unit| unit.choices());
        let mut limits: Vec<f64> = choices.map(|choice| choice.error).collect();
        limits.sort_by(f64::total_cmp);
        limits.dedup();
        let within = |limit: f64| -> Option<Vec<usize>> {
            let mut chosen = Vec::with_capacity(table.units().len());
            for unit in table.units() {
                let allowed = unit.choices().iter().enumerate().filter(|(_, c)| c.error <= limit);
                let best = allowed
                    .min_by(|a, b| a.1.cost.cmp(&b.1.cost).then(a.1.error.total_cmp(&b.1.error)));
                chosen.push(best?.0);
            }
            Some(chosen).filter(|chosen| table.cost(chosen) <= budget)
        };
        // The largest error allows the cheapest levels, which fit.
        let at = limits.partition_point(|limit| within(*limit).is_none());
        let choices = limits.get(at).and_then(|limit| within(*limit)).unwrap_or_default();
        Ok(Allocation::new(table, choices))
    }
}
