use tensorpress_tensor::{Error, Result};

use crate::{Allocation, Solver, Table};

/// The best level for the units that come first in an order, the cheapest for the others (Dumitru et al., *Layer-Wise
/// Quantization: A Pragmatic and Effective Method for Quantizing LLMs Beyond Integer Bit-Levels*, 2024): as many
/// as fit, so that any mean number of bits between the two is reached.
///
/// The order is that of importances, [`crate::scores::change`] or [`crate::scores::outliers`], by falling importance.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Ordered {
    importance: Vec<f64>,
}

impl Ordered {
    /// Of these importances, one a unit.
    ///
    /// # Errors
    /// `Numerical` for NaN.
    pub fn new(importance: impl Into<Vec<f64>>) -> Result<Self> {
        let importance = importance.into();
        match importance.iter().position(|score| score.is_nan()) {
            Some(at) => Err(Error::numerical(format!("the importance of unit {at} is NaN"))),
            None => Ok(Self { importance }),
        }
    }
}

impl Solver for Ordered {
    /// As [`Solver::solve`]; `ShapeMismatch` unless there is one importance a unit.
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation> {
        table.check_budget(budget)?;
        let units = table.units();
        if self.importance.len() != units.len() {
            let have = self.importance.len();
            return Err(Error::shape(format!("{have} importances for {} units", units.len())));
        }
        let pick = |key: &dyn Fn(usize, usize) -> (f64, f64)| -> Vec<usize> {
            let best = |unit: usize| {
                (0..units[unit].choices().len()).min_by(|a, b| {
                    let (a, b) = (key(unit, *a), key(unit, *b));
                    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
                })
            };
            (0..units.len()).filter_map(best).collect()
        };
        let of = |unit: usize, choice: usize| {
            let choice = units[unit].choices()[choice];
            (choice.cost as f64, choice.error)
        };
        let mut choices = pick(&|unit, choice| of(unit, choice));
        let best = pick(&|unit, choice| {
            let (cost, error) = of(unit, choice);
            (error, cost)
        });
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.sort_by(|a, b| self.importance[*b].total_cmp(&self.importance[*a]));
        let mut left = budget - table.cost(&choices);
        for unit in order {
            let [low, high] = [choices[unit], best[unit]].map(|c| units[unit].choices()[c].cost);
            // The first that does not fit ends it: what is less important never comes before it.
            if high - low > left {
                break;
            }
            left -= high - low;
            choices[unit] = best[unit];
        }
        Ok(Allocation::new(table, choices))
    }
}
