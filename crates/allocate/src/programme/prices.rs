//! An allocation that keeps the rules, for the programme to begin with.

use tensorpress_tensor::Result;

use super::Programme;
use super::rule::Relation;
use crate::{Choice, Lagrange, Solver, Table, Unit};

/// How often all prices change.
const TURNS: usize = 80;

/// What breaking a rule costs, to be found: larger while it is broken, smaller while it holds, ever less so.
struct Price {
    price: f64,
    factor: f64,
    /// Whether it rose the last time.
    rose: bool,
    /// What a count is worth in errors: -1 where there may be more, 1 where there may be fewer.
    sign: f64,
}

/// The best of the allocations that keep all rules among those that a price for each rule finds; nothing where none does.
pub(super) fn search(
    programme: &Programme,
    table: &Table,
    budget: u64,
) -> Result<Option<Vec<usize>>> {
    // From far below the least difference of errors.
    let errors = || table.units().iter().flat_map(Unit::choices).map(|choice| choice.error.abs());
    let least = errors().filter(|error| *error > 0.0).fold(f64::MAX, f64::min);
    let start = 1e-3 * if least < f64::MAX { least } else { 1.0 };
    let price = |_: &super::Rule| Price { price: start, factor: 4.0, rose: true, sign: 0.0 };
    let mut prices: Vec<Price> = programme.rules.iter().map(price).collect();
    let mut choices = Lagrange::new().solve(table, budget)?.choices;
    let mut best: Option<(f64, Vec<usize>)> = None;
    for _ in 0..TURNS {
        for (rule, price) in programme.rules.iter().zip(&mut prices) {
            let above = rule.above(&choices);
            let sign = match rule.relation {
                Relation::AtLeast => -1.0,
                Relation::AtMost => 1.0,
                // To the side of it where the free optimum is.
                Relation::Exactly if price.sign == 0.0 => 1.0f64.copysign(above as f64),
                Relation::Exactly => price.sign,
            };
            price.sign = sign;
            let rises = above as f64 * sign > 0.0;
            if rises != price.rose {
                price.factor = price.factor.sqrt();
            }
            price.rose = rises;
            price.price =
                (price.price * if rises { price.factor } else { 1.0 / price.factor }).min(1e200);
        }
        let Some(priced) = priced(programme, table, &prices) else { break };
        choices = Lagrange::new().solve(&priced, budget)?.choices;
        let error = table.error(&choices);
        let better = best.as_ref().is_none_or(|(least, _)| error < *least);
        if better && programme.keeps(table, &choices, budget) {
            best = Some((error, choices.clone()));
        }
    }
    Ok(best.map(|(_, choices)| choices))
}

/// The table with prices in its errors; nothing where they are beyond any number.
fn priced(programme: &Programme, table: &Table, prices: &[Price]) -> Option<Table> {
    let mut units: Vec<Vec<Choice>> =
        table.units().iter().map(|unit| unit.choices().to_vec()).collect();
    for (rule, price) in programme.rules.iter().zip(prices) {
        for (unit, level, weight) in &rule.terms {
            units[*unit][*level].error += price.sign * price.price * *weight as f64;
        }
    }
    let units = units.into_iter().map(|choices| Unit::new("", choices)).collect::<Vec<_>>();
    Table::new(units).ok()
}
