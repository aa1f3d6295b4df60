use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOptions, SolveOutcome, Variable};
use tensorpress_tensor::{Error, Result};

use crate::{Allocation, Exact, Solver, Table};

/// What a weighted count of chosen levels has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    terms: Vec<(usize, usize, i64)>,
    relation: Relation,
    limit: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    AtLeast,
    AtMost,
    Exactly,
}

impl Rule {
    /// At least `limit`, where each unit, level and weight counts the weight if the unit has that level. Those that are named
    /// more than once add up.
    #[must_use]
    pub fn at_least(limit: i64, terms: impl Into<Vec<(usize, usize, i64)>>) -> Self {
        Self { terms: terms.into(), relation: Relation::AtLeast, limit }
    }

    /// At most `limit`.
    #[must_use]
    pub fn at_most(limit: i64, terms: impl Into<Vec<(usize, usize, i64)>>) -> Self {
        Self { terms: terms.into(), relation: Relation::AtMost, limit }
    }

    /// `limit` exactly.
    #[must_use]
    pub fn exactly(limit: i64, terms: impl Into<Vec<(usize, usize, i64)>>) -> Self {
        Self { terms: terms.into(), relation: Relation::Exactly, limit }
    }

    /// Whether choices keep it.
    #[must_use]
    pub fn holds(&self, choices: &[usize]) -> bool {
        let counts = self.terms.iter().filter(|(unit, level, _)| choices.get(*unit) == Some(level));
        let sum: i128 = counts.map(|(_, _, weight)| i128::from(*weight)).sum();
        let limit = i128::from(self.limit);
        match self.relation {
            Relation::AtLeast => sum >= limit,
            Relation::AtMost => sum <= limit,
            Relation::Exactly => sum == limit,
        }
    }
}

/// The least sum of errors within the budget and under linear rules, as an integer programme solved by branch and bound: a
/// bit a unit and level, one of them set in each unit (MC-MoE: Huang et al., *Mixture Compressor for Mixture-of-Experts
/// LLMs Gains More*, 2024; its objective is [`crate::Significance`]'s).
///
/// Without rules [`crate::Exact`] finds the same, and in far larger tables. What is found keeps budget and rules in whole
/// numbers, not only within the solver's tolerance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Programme {
    rules: Vec<Rule>,
    exact_cost: bool,
    nodes: u64,
}

impl Default for Programme {
    fn default() -> Self {
        Self { rules: Vec::new(), exact_cost: false, nodes: 20_000 }
    }
}

impl Programme {
    /// The solver with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule. Default: none.
    #[must_use]
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Sets whether all of the budget has to be spent. Default no.
    #[must_use]
    pub fn with_exact_cost(mut self, exact: bool) -> Self {
        self.exact_cost = exact;
        self
    }

    /// Sets how many nodes are branched on at most; where they did not do, [`Allocation::bound`] says how near it is. Default
    /// 20,000.
    #[must_use]
    pub fn with_nodes(mut self, nodes: u64) -> Self {
        self.nodes = nodes.max(1);
        self
    }

    fn check(&self, table: &Table) -> Result<()> {
        let units = table.units();
        for (unit, level, _) in self.rules.iter().flat_map(|rule| &rule.terms) {
            if units.get(*unit).is_none_or(|unit| *level >= unit.choices().len()) {
                return Err(Error::invalid(format!(
                    "a rule names level {level} of unit {unit}, which the table has not"
                )));
            }
        }
        Ok(())
    }

    fn keeps(&self, table: &Table, choices: &[usize], budget: u64) -> bool {
        let cost = table.cost(choices);
        let spent = if self.exact_cost { cost == budget } else { cost <= budget };
        spent && self.rules.iter().all(|rule| rule.holds(choices))
    }
}

impl Solver for Programme {
    /// As [`Solver::solve`]; `InvalidArgument` also for a rule on what the table has not, or where nothing keeps them all;
    /// `Interrupted` where the nodes did not do to find anything; `Numerical` where the solver gave up.
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation> {
        table.check_budget(budget)?;
        self.check(table)?;
        let model = Model::new(table, budget, self)?;
        let mut options = SolveOptions::default();
        options.node_limit = Some(self.nodes);
        options.int_tol = 1e-9;
        // Where the optimum without rules keeps them, only its proof is left.
        let free = Exact::new().solve(table, budget)?.choices;
        if self.keeps(table, &free, budget) {
            options.warm_start = Some(model.hint(&free));
        }
        let mut outcome = model.problem.solve_with(options).map_err(explain)?;
        for _ in 0..CUTS {
            let SolveOutcome::Solution(solution) = outcome else {
                return Err(Error::new(
                    tensorpress_tensor::ErrorKind::Interrupted,
                    format!("nothing was found in {} nodes", self.nodes),
                ));
            };
            let value = |variable: &Variable| solution.var_value(*variable);
            let choices = model.choices(value);
            if self.keeps(table, &choices, budget) {
                let found = Allocation::new(table, choices);
                let bound = match solution.stats().best_bound {
                    _ if solution.status() == microlp::SolutionStatus::Optimal => found.error,
                    Some(bound) => model.offset + model.scale * bound,
                    None => f64::NEG_INFINITY,
                };
                return Ok(found.with_bound(bound));
            }
            // Within the tolerance, yet not in whole numbers: all but that.
            let cut: Vec<(Variable, f64)> =
                model.hint(&choices).into_iter().filter(|(_, set)| *set > 0.0).collect();
            let others = cut.len() as f64 - 1.0;
            outcome = solution.add_constraint(cut, ComparisonOp::Le, others).map_err(explain)?;
        }
        Err(Error::numerical("the integer programme finds only what breaks the budget or a rule"))
    }
}

/// So many allocations that hold within the solver's tolerance alone are cut off, one by one.
const CUTS: usize = 100;

fn explain(error: microlp::Error) -> Error {
    match error {
        microlp::Error::Infeasible => {
            Error::invalid("no allocation within the budget keeps all the rules")
        }
        error => Error::numerical(format!("the integer programme: {error}")),
    }
}

/// The programme in small numbers: errors above each unit's least, as shares of the largest; costs above each unit's
/// least, without their common divisor.
struct Model {
    problem: Problem,
    variables: Vec<Vec<Variable>>,
    offset: f64,
    scale: f64,
}

impl Model {
    fn new(table: &Table, budget: u64, programme: &Programme) -> Result<Self> {
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
                return Err(explain(microlp::Error::Infeasible));
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

    fn choices(&self, value: impl Fn(&Variable) -> f64) -> Vec<usize> {
        let largest = |levels: &Vec<Variable>| {
            (0..levels.len()).max_by(|a, b| value(&levels[*a]).total_cmp(&value(&levels[*b])))
        };
        self.variables.iter().map(|levels| largest(levels).unwrap_or_default()).collect()
    }

    fn hint(&self, choices: &[usize]) -> Vec<(Variable, f64)> {
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
