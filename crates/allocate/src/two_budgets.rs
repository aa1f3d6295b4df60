use tensorpress_tensor::{Error, Result};

use crate::{Allocation, Choice, Exact, Lagrange, Solver, Table, Unit};

/// The least sum of errors where choices cost in a second unit too, such as nanoseconds beside bytes, with a budget of its
/// own.
///
/// Lagrange's multiplier turns the second cost into errors: it is halved and doubled to the least that keeps the second
/// budget; what is then left of both is spent on the changes of one unit or two that gain most. So the result is the
/// optimum but for a few units, and the optimum itself where the second budget binds nothing. (An integer
/// [`Programme`](crate::Programme) proves optima of small tables.)
///
/// ```
/// use tensorpress_allocate::{Choice, Solver, Table, TwoBudgets, Unit};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// // A small level that is slow, a large one that is fast, both as good; and one that is small and fast, and bad.
/// let levels = [Choice::new(10, 0.1), Choice::new(30, 0.1), Choice::new(10, 0.5)];
/// let table = Table::new([Unit::new("q", levels), Unit::new("k", levels)])?;
/// let nanoseconds = vec![vec![9, 1, 1]; 2];
/// let found = TwoBudgets::new(nanoseconds, 10).solve(&table, 40)?;
/// assert_eq!((found.cost, found.error), (40, 0.2), "one of either");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TwoBudgets {
    costs: Vec<Vec<u64>>,
    budget: u64,
}

/// How often the multiplier is halved between what is too small and what is large enough.
const HALVINGS: usize = 48;

/// Changes of single units beyond which they are not tried in pairs.
const PAIRED: usize = 6000;

/// Of two changes that gain no more than this part of what each does, it is rounding.
const ROUNDING: f64 = 1e-12;

impl TwoBudgets {
    /// The second cost of each level of each unit, and what they may come to.
    #[must_use]
    pub fn new(costs: impl Into<Vec<Vec<u64>>>, budget: u64) -> Self {
        Self { costs: costs.into(), budget }
    }

    /// The second cost of one level a unit.
    ///
    /// # Panics
    /// If there is not one number a unit, of a level that it has.
    #[must_use]
    pub fn cost(&self, choices: &[usize]) -> u64 {
        assert_eq!(choices.len(), self.costs.len(), "one level a unit");
        let each = self.costs.iter().zip(choices).map(|(costs, choice)| costs[*choice]);
        each.fold(0, u64::saturating_add)
    }

    /// What costs least in the second unit within the first budget, whatever it loses.
    ///
    /// # Errors
    /// As [`Solver::solve`].
    pub fn least(&self, table: &Table, budget: u64) -> Result<Allocation> {
        self.check(table)?;
        let found = Exact::new().solve(&self.priced(table, 0.0, 1.0)?, budget)?;
        Ok(Allocation::new(table, found.choices))
    }

    fn check(&self, table: &Table) -> Result<()> {
        if self.costs.len() != table.units().len() {
            let (has, needs) = (self.costs.len(), table.units().len());
            return Err(Error::shape(format!("second costs of {has} units: needed are {needs}")));
        }
        for (unit, costs) in table.units().iter().zip(&self.costs) {
            let (has, needs) = (costs.len(), unit.choices().len());
            if has != needs {
                let message = format!("second costs of {has} levels: needed are {needs}");
                return Err(Error::shape(message).in_tensor(unit.name()));
            }
        }
        Ok(())
    }

    /// The table with what a unit of the second cost is worth as errors; where errors count nothing, the second cost alone.
    fn priced(&self, table: &Table, error: f64, price: f64) -> Result<Table> {
        let units = table.units().iter().zip(&self.costs).map(|(unit, costs)| {
            let priced = |(choice, cost): (&Choice, &u64)| {
                Choice::new(choice.cost, error * choice.error + price * *cost as f64)
            };
            let choices = unit.choices().iter().zip(costs).map(priced);
            Unit::new(unit.name(), choices.collect::<Vec<_>>())
        });
        Table::new(units.collect::<Vec<_>>())
    }

    /// All changes of single units: by what each raises both costs, and what it gains.
    fn changes(&self, table: &Table, choices: &[usize]) -> Vec<Change> {
        let mut changes = Vec::new();
        for (unit, (of, costs)) in table.units().iter().zip(&self.costs).enumerate() {
            let now = choices[unit];
            for (level, choice) in of.choices().iter().enumerate().filter(|(at, _)| *at != now) {
                let from = of.choices()[now];
                changes.push(Change {
                    unit,
                    level,
                    cost: i128::from(choice.cost) - i128::from(from.cost),
                    second: i128::from(costs[level]) - i128::from(costs[now]),
                    gain: from.error - choice.error,
                });
            }
        }
        changes
    }

    /// Makes changes of single units that fit and gain, the one that gains most first.
    fn fill(&self, table: &Table, budget: u64, choices: &mut [usize]) {
        loop {
            let left = self.left(table, budget, choices);
            let fits = |change: &Change| change.gain > 0.0 && change.fits(left);
            let changes = self.changes(table, choices).into_iter().filter(fits);
            let Some(best) = changes.max_by(|a, b| a.gain.total_cmp(&b.gain)) else { return };
            choices[best.unit] = best.level;
        }
    }

    /// Changes two units at once, one of which makes room for the other, as long as any two gain. Not in tables of very many
    /// changes, where single ones come as near.
    fn exchange(&self, table: &Table, budget: u64, choices: &mut [usize]) {
        loop {
            let left = self.left(table, budget, choices);
            let changes = self.changes(table, choices);
            if changes.len() > PAIRED {
                return;
            }
            let mut best: Option<(f64, &Change, &Change)> = None;
            for (at, one) in changes.iter().enumerate() {
                for other in changes[at + 1..].iter().filter(|other| other.unit != one.unit) {
                    let gain = one.gain + other.gain;
                    let least = ROUNDING * (one.gain.abs() + other.gain.abs());
                    let most = best.map_or(least, |(most, ..)| most);
                    if gain > most && gain > least && one.with(other).fits(left) {
                        best = Some((gain, one, other));
                    }
                }
            }
            let Some((_, one, other)) = best else { return };
            choices[one.unit] = one.level;
            choices[other.unit] = other.level;
            self.fill(table, budget, choices);
        }
    }

    fn left(&self, table: &Table, budget: u64, choices: &[usize]) -> (i128, i128) {
        let left = |budget: u64, cost: u64| i128::from(budget) - i128::from(cost);
        (left(budget, table.cost(choices)), left(self.budget, self.cost(choices)))
    }
}

/// What another level of a unit costs more and gains.
#[derive(Clone, Copy)]
struct Change {
    unit: usize,
    level: usize,
    cost: i128,
    second: i128,
    gain: f64,
}

impl Change {
    fn fits(&self, (left, second): (i128, i128)) -> bool {
        self.cost <= left && self.second <= second
    }

    fn with(&self, other: &Self) -> Self {
        Self { cost: self.cost + other.cost, second: self.second + other.second, ..*self }
    }
}

impl Solver for TwoBudgets {
    /// # Errors
    /// `InvalidArgument` if nothing within the first budget keeps the second, saying about what the least is; `ShapeMismatch`
    /// unless there is a second cost for each level of each unit.
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation> {
        self.check(table)?;
        let free = Exact::new().solve(table, budget)?;
        if self.cost(&free.choices) <= self.budget {
            return Ok(free);
        }
        let at = |price: f64| -> Result<Vec<usize>> {
            Ok(Lagrange::new().solve(&self.priced(table, 1.0, price)?, budget)?.choices)
        };
        let fastest = self.least(table, budget)?.choices;
        let least = self.cost(&fastest);
        if least > self.budget {
            return Err(Error::invalid(format!(
                "a second budget of {}: the least within the first is about {least}",
                self.budget
            )));
        }
        let spread = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) =
                values.fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
            (high - low).max(f64::MIN_POSITIVE)
        };
        let choices = table.units().iter().flat_map(Unit::choices);
        let errors = spread(&mut choices.map(|choice| choice.error));
        let seconds = spread(&mut self.costs.iter().flatten().map(|cost| *cost as f64));
        let mut best = (table.error(&fastest), fastest);
        // From far below what tells to far above: in between lies the least price that keeps the budget.
        let (mut low, mut high) =
            ((errors / seconds).log2() - 64.0, (errors / seconds).log2() + 64.0);
        for _ in 0..HALVINGS {
            let middle = low.midpoint(high);
            let mut choices = at(middle.exp2())?;
            if self.cost(&choices) > self.budget {
                low = middle;
                continue;
            }
            high = middle;
            self.fill(table, budget, &mut choices);
            let error = table.error(&choices);
            if error < best.0 {
                best = (error, choices);
            }
        }
        let mut choices = best.1;
        self.fill(table, budget, &mut choices);
        self.exchange(table, budget, &mut choices);
        Ok(Allocation::new(table, choices))
    }
}
