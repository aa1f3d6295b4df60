//! What each unit costs and loses at each level.

use serde::{Deserialize, Serialize};
use tensorpress_tensor::{Error, Result};

use crate::Allocation;
use crate::knapsack::{Item, undominated};

/// One level of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Choice {
    /// What it takes of the budget: bytes, as a rule; or nanoseconds, operations, any whole number that adds up.
    pub cost: u64,
    /// What it loses. Errors of different units add up, so they are in one unit of measure; one below 0 is a gain.
    pub error: f64,
}

impl Choice {
    /// A level of this cost and error.
    #[must_use]
    pub fn new(cost: u64, error: f64) -> Self {
        Self { cost, error }
    }
}

/// What is given one level: a matrix, a group of matrices that share an input, a head, an expert, a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    name: String,
    choices: Vec<Choice>,
}

impl Unit {
    /// A unit with its levels, in any order.
    #[must_use]
    pub fn new(name: impl Into<String>, choices: impl Into<Vec<Choice>>) -> Self {
        Self { name: name.into(), choices: choices.into() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its levels.
    #[must_use]
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// The levels that no other beats in both cost and error, by rising cost, as their places among all: the Pareto front. Of
    /// equals the first.
    #[must_use]
    pub fn pareto(&self) -> Vec<usize> {
        let item = |(index, choice): (usize, &Choice)| Item {
            weight: choice.cost as f64,
            value: choice.error,
            index,
        };
        let front = undominated(self.choices.iter().enumerate().map(item).collect());
        front.iter().map(|item| item.index).collect()
    }

    /// Cost of the cheapest level.
    #[must_use]
    pub fn least_cost(&self) -> u64 {
        self.choices.iter().map(|choice| choice.cost).min().unwrap_or_default()
    }
}

/// Units and their levels; every one has at least one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Unit>", into = "Vec<Unit>")]
pub struct Table {
    units: Vec<Unit>,
}

/// Costs are added in f64, which holds whole numbers up to here.
pub(crate) const MOST: u64 = 1 << 53;

impl Table {
    /// A table of these units.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the unit, where it has no level, or where the dearest levels cost more than 2⁵³ together;
    /// `Numerical` for an error that is no finite number.
    pub fn new(units: impl Into<Vec<Unit>>) -> Result<Self> {
        let units = units.into();
        let mut sum = 0u64;
        for unit in &units {
            let Some(dearest) = unit.choices.iter().map(|choice| choice.cost).max() else {
                return Err(Error::invalid("has no level to choose").in_tensor(&unit.name));
            };
            if let Some(at) = unit.choices.iter().position(|choice| !choice.error.is_finite()) {
                let message = format!("the error of level {at} is {}", unit.choices[at].error);
                return Err(Error::numerical(message).in_tensor(&unit.name));
            }
            sum = sum.saturating_add(dearest);
            if sum > MOST {
                return Err(Error::invalid("costs add up to more than 2^53").in_tensor(&unit.name));
            }
        }
        Ok(Self { units })
    }

    /// The units.
    #[must_use]
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The least that anything can cost.
    #[must_use]
    pub fn least_cost(&self) -> u64 {
        self.units.iter().map(Unit::least_cost).sum()
    }

    /// Cost of one level a unit.
    ///
    /// # Panics
    /// If there is not one number a unit, of a level that it has.
    #[must_use]
    pub fn cost(&self, choices: &[usize]) -> u64 {
        self.chosen(choices).map(|choice| choice.cost).sum()
    }

    /// Sum of the errors of one level a unit.
    ///
    /// # Panics
    /// If there is not one number a unit, of a level that it has.
    #[must_use]
    pub fn error(&self, choices: &[usize]) -> f64 {
        self.chosen(choices).map(|choice| choice.error).sum()
    }

    fn chosen<'a>(&'a self, choices: &'a [usize]) -> impl Iterator<Item = Choice> + 'a {
        assert_eq!(choices.len(), self.units.len(), "one level a unit");
        self.units.iter().zip(choices).map(|(unit, choice)| unit.choices[*choice])
    }

    /// `InvalidArgument`, with what is possible, if nothing fits into a budget.
    pub(crate) fn check_budget(&self, budget: u64) -> Result<()> {
        check_least(self.least_cost(), budget)
    }

    /// The same level for every unit, as its place among the levels: the setting without any sharing out, which others are
    /// measured by.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the unit, where one has no such level.
    pub fn uniform(&self, level: usize) -> Result<Allocation> {
        match self.units.iter().find(|unit| unit.choices.len() <= level) {
            Some(unit) => {
                Err(Error::invalid(format!("has no level {level}")).in_tensor(&unit.name))
            }
            None => Ok(Allocation::new(self, vec![level; self.units.len()])),
        }
    }
}

/// `InvalidArgument`, with what is possible, if even the least costs more than a budget.
pub(crate) fn check_least(least: u64, budget: u64) -> Result<()> {
    if budget >= least {
        return Ok(());
    }
    Err(Error::invalid(format!("a budget of {budget} is too small: the least is {least}")))
}

impl TryFrom<Vec<Unit>> for Table {
    type Error = Error;

    fn try_from(units: Vec<Unit>) -> Result<Self> {
        Self::new(units)
    }
}

impl From<Table> for Vec<Unit> {
    fn from(table: Table) -> Self {
        table.units
    }
}
