//! What tests of solvers share.

use proptest::prelude::*;
use tensorpress_allocate::{Choice, Table, Unit};

/// Tables of few units, with levels that cost or lose the same, or are of no use, and errors below 0.
pub fn tables() -> impl Strategy<Value = Table> {
    let choice =
        (0u64..40, -3i32..30).prop_map(|(cost, error)| Choice::new(cost, f64::from(error)));
    let unit = prop::collection::vec(choice, 1..5);
    prop::collection::vec(unit, 0..6).prop_map(|units| {
        let named = |(at, choices): (usize, Vec<Choice>)| Unit::new(at.to_string(), choices);
        Table::new(units.into_iter().enumerate().map(named).collect::<Vec<_>>()).unwrap()
    })
}

/// All that can be chosen.
pub fn all(table: &Table) -> Vec<Vec<usize>> {
    table.units().iter().fold(vec![Vec::new()], |so_far, unit| {
        let with = |before: &Vec<usize>, choice| [before.as_slice(), &[choice]].concat();
        so_far
            .iter()
            .flat_map(|before| (0..unit.choices().len()).map(move |choice| with(before, choice)))
            .collect()
    })
}
