mod model;
mod prices;
mod rule;

use microlp::{ComparisonOp, SolveOptions, SolveOutcome, Variable};
use tensorpress_tensor::{Error, ErrorKind, Result};

use crate::{Allocation, Exact, Solver, Table};
use model::Model;
pub use rule::Rule;

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
        // Where the optimum without rules keeps them, only its proof is left.
        let free = Exact::new().solve(table, budget)?;
        let known = match self.keeps(table, &free.choices, budget) {
            true => Some(free.choices),
            false => prices::search(self, table, budget)?,
        };
        match (self.branch(table, budget, &model, known.as_deref()), known) {
            // Whatever became of the branches, this keeps the rules.
            (Err(_), Some(known)) => {
                let bound = free.bound.unwrap_or(f64::NEG_INFINITY);
                Ok(Allocation::new(table, known).with_bound(bound))
            }
            // Few nodes may end with less than was known.
            (Ok(found), Some(known)) if table.error(&known) < found.error => {
                let bound = found.bound.unwrap_or(f64::NEG_INFINITY);
                Ok(Allocation::new(table, known).with_bound(bound))
            }
            (found, _) => found,
        }
    }
}

impl Programme {
    fn branch(
        &self,
        table: &Table,
        budget: u64,
        model: &Model,
        known: Option<&[usize]>,
    ) -> Result<Allocation> {
        let mut options = SolveOptions::default();
        options.node_limit = Some(self.nodes);
        options.int_tol = 1e-9;
        options.warm_start = known.map(|choices| model.hint(choices));
        let mut outcome = model.problem.solve_with(options).map_err(explain)?;
        for _ in 0..CUTS {
            let SolveOutcome::Solution(solution) = outcome else {
                let message = format!("nothing was found in {} nodes", self.nodes);
                return Err(Error::new(ErrorKind::Interrupted, message));
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

fn infeasible() -> Error {
    Error::invalid("no allocation within the budget keeps all the rules")
}

fn explain(error: microlp::Error) -> Error {
    match error {
        microlp::Error::Infeasible => infeasible(),
        error => Error::numerical(format!("the integer programme: {error}")),
    }
}
