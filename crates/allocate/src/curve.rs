use crate::exact::items;
use crate::knapsack::{Item, Step, steps};
use crate::{Allocation, Table};

/// One search for every budget: all allocations on the lower convex hull of cost and error, from the cheapest to the best.
///
/// Each loses the least that is possible for what it costs (Everett, *Generalized Lagrange Multiplier Method*, Operations
/// Research, 1963), and differs from the one before it by one unit at a dearer level: they are nested. The wish is CACP's
/// (Liu et al., *Conditional Automated Channel Pruning for Deep Neural Networks*, 2021), which learns a policy for it.
///
/// ```
/// use tensorpress_allocate::{Choice, Curve, Table, Unit};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let unit = |name: &str, scale: f64| {
///     Unit::new(name, [(2, 1.0), (3, 0.25)].map(|(cost, error)| Choice::new(cost, scale * error)))
/// };
/// let table = Table::new([unit("q", 1.0), unit("k", 10.0)])?;
/// let costs: Vec<u64> = Curve::new(&table).map(|allocation| allocation.cost).collect();
/// assert_eq!(costs, [4, 5, 6]);
/// # Ok(())
/// # }
/// ```
pub struct Curve<'a> {
    table: &'a Table,
    units: Vec<Vec<Item>>,
    steps: std::vec::IntoIter<Step>,
    /// The levels of the next allocation; nothing after the last.
    choices: Option<Vec<usize>>,
}

impl<'a> Curve<'a> {
    /// The curve of a table.
    #[must_use]
    pub fn new(table: &'a Table) -> Self {
        let units = items(table, |choice| (choice.cost as f64, choice.error));
        let steps = steps(&units).into_iter();
        let choices = Some(units.iter().map(|items| items[0].index).collect());
        Self { table, units, steps, choices }
    }
}

impl Iterator for Curve<'_> {
    type Item = Allocation;

    fn next(&mut self) -> Option<Allocation> {
        let choices = self.choices.take()?;
        let here = Allocation::new(self.table, choices);
        if let Some(step) = self.steps.next() {
            let mut choices = here.choices.clone();
            choices[step.unit] = self.units[step.unit][step.to].index;
            self.choices = Some(choices);
        }
        let error = here.error;
        Some(here.with_bound(error))
    }
}

impl std::fmt::Debug for Curve<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Curve").field("left", &self.steps.len()).finish_non_exhaustive()
    }
}
