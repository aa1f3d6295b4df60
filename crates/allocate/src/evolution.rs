use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{Error, Result};

use crate::{Allocation, Solver, Table};

/// One round of a selection: candidates are judged with this effort, and so many go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Round {
    /// How many go on.
    pub survivors: usize,
    /// What the objective is told: tokens, as a rule.
    pub effort: usize,
}

impl Round {
    /// So many survivors of a judgement with this effort.
    #[must_use]
    pub fn new(survivors: usize, effort: usize) -> Self {
        Self { survivors, effort }
    }
}

/// Evolutionary search for the least of any objective (EvoPress: Sieberling et al., *EvoPress: Towards Optimal Dynamic Model
/// Compression via Evolutionary Search*, 2024): a (1 + λ) search whose children differ from their parent
/// by few switches of level, one unit up and others down until the budget is kept, and are chosen among in several rounds,
/// the fewer are left the more carefully. In the last round the parent stands beside them, so that nothing gets worse.
///
/// Levels are ordered by cost: the table's errors matter only to [`Solver::solve`], which searches for their least sum.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Evolution {
    generations: usize,
    offspring: usize,
    switches: usize,
    rounds: Vec<Round>,
    seed: u64,
    start: Option<Vec<usize>>,
}

impl Default for Evolution {
    fn default() -> Self {
        let rounds = vec![Round::new(16, 2048), Round::new(4, 16_384), Round::new(1, 131_072)];
        Self { generations: 150, offspring: 128, switches: 3, rounds, seed: 0, start: None }
    }
}

impl Evolution {
    /// The search with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of generations. Default 150.
    #[must_use]
    pub fn with_generations(mut self, generations: usize) -> Self {
        self.generations = generations;
        self
    }

    /// Sets the children of a generation. Default 128.
    #[must_use]
    pub fn with_offspring(mut self, offspring: usize) -> Self {
        self.offspring = offspring.max(1);
        self
    }

    /// Sets by how many switches a child differs at most; it is the lesser of two numbers drawn up to there. Default 3.
    #[must_use]
    pub fn with_switches(mut self, switches: usize) -> Self {
        self.switches = switches.max(1);
        self
    }

    /// Sets the rounds of a selection; one is left after the last, whatever it says. Default 16 of a judgement on 2,048
    /// tokens, 4 of 16,384, and 1 of 131,072.
    #[must_use]
    pub fn with_rounds(mut self, rounds: impl Into<Vec<Round>>) -> Self {
        self.rounds = rounds.into();
        self
    }

    /// Sets the seed. Default 0.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets where to begin: a level a unit, within the budget. Default: each unit at the dearest level of a number that all
    /// can have (a uniform allocation, where all units have the same levels).
    #[must_use]
    pub fn with_start(mut self, start: impl Into<Vec<usize>>) -> Self {
        self.start = Some(start.into());
        self
    }

    /// The best allocation found, by an objective that is told a level a unit, and the effort of the round.
    ///
    /// # Errors
    /// `InvalidArgument` if even the cheapest levels cost more than the budget, or the start does not fit, there are no
    /// rounds, or the start is none of this table; `Numerical` if the objective says NaN; those of the objective.
    pub fn search(
        &self,
        table: &Table,
        budget: u64,
        objective: &mut dyn FnMut(&[usize], usize) -> Result<f64>,
    ) -> Result<Allocation> {
        table.check_budget(budget)?;
        let Some(last) = self.rounds.last() else {
            return Err(Error::invalid("a selection needs a round"));
        };
        let mut judge = |choices: &[usize], effort: usize| {
            let error = objective(choices, effort)?;
            if error.is_nan() { Err(Error::numerical("the objective is NaN")) } else { Ok(error) }
        };
        let ladder = Ladder::new(table);
        let mut parent = self.start(table, &ladder, budget)?;
        let mut error = judge(&ladder.choices(&parent), last.effort)?;
        let mut random = SplitMix::new(self.seed);
        for _ in 0..self.generations {
            let child = || self.child(table, &ladder, budget, &parent, &mut random);
            let mut candidates: Vec<Vec<usize>> = std::iter::repeat_with(child)
                .take(self.offspring)
                .filter(|child| *child != parent)
                .collect();
            candidates.sort_unstable();
            candidates.dedup();
            let mut best = None;
            for (at, round) in self.rounds.iter().enumerate() {
                let judged = candidates
                    .into_iter()
                    .map(|child| Ok((judge(&ladder.choices(&child), round.effort)?, child)));
                let mut judged = judged.collect::<Result<Vec<_>>>()?;
                judged.sort_by(|a, b| a.0.total_cmp(&b.0));
                if at + 1 == self.rounds.len() {
                    best = judged.first().cloned();
                }
                judged.truncate(round.survivors.max(1));
                candidates = judged.into_iter().map(|(_, child)| child).collect();
            }
            if let Some((least, child)) = best.filter(|(least, _)| *least < error) {
                (error, parent) = (least, child);
            }
        }
        let mut found = Allocation::new(table, ladder.choices(&parent));
        found.error = error;
        Ok(found)
    }

    fn start(&self, table: &Table, ladder: &Ladder, budget: u64) -> Result<Vec<usize>> {
        let Some(start) = &self.start else {
            let uniform = |level: usize| -> Vec<usize> {
                ladder.0.iter().map(|rungs| level.min(rungs.len() - 1)).collect()
            };
            let levels = ladder.0.iter().map(Vec::len).max().unwrap_or(1);
            let fits = |level: &usize| table.cost(&ladder.choices(&uniform(*level))) <= budget;
            return Ok(uniform((0..levels).rev().find(fits).unwrap_or_default()));
        };
        let place =
            |(rungs, choice): (&Vec<usize>, &usize)| rungs.iter().position(|at| at == choice);
        let places: Option<Vec<usize>> = match start.len() == ladder.0.len() {
            true => ladder.0.iter().zip(start).map(place).collect(),
            false => None,
        };
        let places =
            places.ok_or_else(|| Error::invalid("the start is no allocation of this table"))?;
        match table.cost(start) {
            cost if cost <= budget => Ok(places),
            cost => Err(Error::invalid(format!(
                "the start costs {cost}, more than the budget of {budget}"
            ))),
        }
    }

    fn child(
        &self,
        table: &Table,
        ladder: &Ladder,
        budget: u64,
        parent: &[usize],
        random: &mut SplitMix,
    ) -> Vec<usize> {
        let mut below = |n: usize| (random.next_u64() % n.max(1) as u64) as usize;
        let mut child = parent.to_vec();
        let mut cost = table.cost(&ladder.choices(parent));
        let price = |child: &[usize], unit: usize| ladder.cost(table, unit, child[unit]);
        // A unit goes up or down; what all then cost.
        let step = |child: &mut [usize], unit: usize, up: bool, cost: u64| {
            let cost = cost - price(child, unit);
            child[unit] = if up { child[unit] + 1 } else { child[unit] - 1 };
            cost + price(child, unit)
        };
        let switches = 1 + below(self.switches).min(below(self.switches));
        for _ in 0..switches {
            let mut lowered = Vec::new();
            let rises = |child: &[usize], unit: usize| child[unit] + 1 < ladder.0[unit].len();
            let up: Vec<usize> = (0..child.len()).filter(|unit| rises(&child, *unit)).collect();
            if up.is_empty() {
                break;
            }
            let raised = up[below(up.len())];
            cost = step(&mut child, raised, true, cost);
            while cost > budget {
                let down: Vec<usize> =
                    (0..child.len()).filter(|unit| *unit != raised && child[*unit] > 0).collect();
                if down.is_empty() {
                    return parent.to_vec();
                }
                let unit = down[below(down.len())];
                cost = step(&mut child, unit, false, cost);
                lowered.push(unit);
            }
            // What a large unit has left may do for small ones.
            loop {
                let fits = |unit: &usize| {
                    rises(&child, *unit)
                        && !lowered.contains(unit)
                        && cost - price(&child, *unit) + ladder.cost(table, *unit, child[*unit] + 1)
                            <= budget
                };
                let up: Vec<usize> = (0..child.len()).filter(fits).collect();
                if up.is_empty() {
                    break;
                }
                let unit = up[below(up.len())];
                cost = step(&mut child, unit, true, cost);
            }
        }
        child
    }
}

impl Solver for Evolution {
    fn solve(&self, table: &Table, budget: u64) -> Result<Allocation> {
        self.search(table, budget, &mut |choices, _| Ok(table.error(choices)))
    }
}

/// Levels of each unit by rising cost.
struct Ladder(Vec<Vec<usize>>);

impl Ladder {
    fn new(table: &Table) -> Self {
        let rungs = |unit: &crate::Unit| {
            let mut rungs: Vec<usize> = (0..unit.choices().len()).collect();
            rungs.sort_by_key(|at| unit.choices()[*at].cost);
            rungs
        };
        Self(table.units().iter().map(rungs).collect())
    }

    fn choices(&self, places: &[usize]) -> Vec<usize> {
        self.0.iter().zip(places).map(|(rungs, place)| rungs[*place]).collect()
    }

    fn cost(&self, table: &Table, unit: usize, place: usize) -> u64 {
        table.units()[unit].choices()[self.0[unit][place]].cost
    }
}
