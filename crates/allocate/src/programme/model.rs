use microlp::{ComparisonOp, OptimizationDirection, Problem, Variable};
use tensorpress_tensor::{Error, Result};

use super::rule::Relation;
use super::{Programme, infeasible};
use crate::Table;

/// The programme in small numbers: errors above each unit's least, as shares of the largest; costs above each unit's
/// least, without their common divisor.
pub(super) struct Model {
    pub(super) problem: Problem,
    variables: Vec<Vec<Variable>>,
    pub(super) offset: f64,
    pub(super) scale: f64,
}

impl Model {
    pub(super) fn new(table: &Table, budget: u64, programme: &Programme) -> Result<Self> {
        let units = table.units();
        let best = |unit: &crate::Unit| {
            unit.choices().iter().map(|choice| choice.error).fold(f64::INFINITY, f64::min)
        };
        let offset: f64 = units.iter().map(best).sum();
        let above = |unit: &crate::Unit| {
            let best = best(unit);
            unit.choices().iter().map(|choice| choice.error - best).collect::<Vec<f64>>()
        };
        let most = units.iter().flat_map(above).fold(0.0, f64::max);
        if !most.is_finite() {
            return Err(Error::numerical("errors are too far apart"));
        }
        let scale = if most > 0.0 { most } else { 1.0 };
        let mut problem = Problem::new(OptimizationDirection::Minimize);
        let mut variables: Vec<Vec<Variable>> = Vec::with_capacity(units.len());
        for unit in units {
            let levels: Vec<Variable> =
                above(unit).iter().map(|error| problem.add_binary_var(error / scale)).collect();
            let one: Vec<(Variable, f64)> = levels.iter().map(|level| (*level, 1.0)).collect();
            problem.add_constraint(one, ComparisonOp::Eq, 1.0);
            variables.push(levels);
        }
        let extra = |unit: &crate::Unit| {
            let least = unit.least_cost();
            unit.choices().iter().map(|choice| choice.cost - least).collect::<Vec<u64>>()
        };
        let divisor = units.iter().flat_map(extra).fold(0, gcd).max(1);
        let left = budget - table.least_cost();
        let mut costs = Vec::new();
        for (unit, levels) in units.iter().zip(&variables) {
            let terms = levels.iter().zip(extra(unit));
            costs.extend(
                terms
                    .filter(|(_, extra)| *extra > 0)
                    .map(|(level, extra)| (*level, (extra / divisor) as f64)),
            );
        }
        // A remainder can not be spent on multiples of the divisor.
        let relation = match programme.exact_cost {
            true if !left.is_multiple_of(divisor) => {
                return Err(infeasible());
            }
            true => ComparisonOp::Eq,
            false => ComparisonOp::Le,
        };
        problem.add_constraint(costs, relation, (left / divisor) as f64);
        for rule in &programme.rules {
            let mut terms = std::collections::BTreeMap::new();
            for (unit, level, weight) in &rule.terms {
                *terms.entry((*unit, *level)).or_insert(0.0) += *weight as f64;
            }
            let terms: Vec<(Variable, f64)> = terms
                .into_iter()
                .map(|((unit, level), weight)| (variables[unit][level], weight))
                .collect();
            let relation = match rule.relation {
                Relation::AtLeast => ComparisonOp::Ge,
                Relation::AtMost => ComparisonOp::Le,
                Relation::Exactly => ComparisonOp::Eq,
            };
            problem.add_constraint(terms, relation, rule.limit as f64);
        }
        Ok(Self { problem, variables, offset, scale })
    }

    pub(super) fn choices(&self, value: impl Fn(&Variable) -> f64) -> Vec<usize> {
        let largest = |levels: &Vec<Variable>| {
            (0..levels.len()).max_by(|a, b| value(&levels[*a]).total_cmp(&value(&levels[*b])))
        };
        self.variables.iter().map(|levels| largest(levels).unwrap_or_default()).collect()
    }

    pub(super) fn hint(&self, choices: &[usize]) -> Vec<(Variable, f64)> {
        let unit = |(levels, choice): (&Vec<Variable>, &usize)| {
            let set = |(at, level): (usize, &Variable)| (*level, f64::from(at == *choice));
            levels.iter().enumerate().map(set).collect::<Vec<_>>()
        };
        self.variables.iter().zip(choices).flat_map(unit).collect()
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
