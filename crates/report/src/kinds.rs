//! Units by kind.

use std::collections::BTreeMap;

use crate::unit::Unit;

/// All matrices of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// What they are in every block.
    pub name: &'a str,
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u128,
}

/// The kinds of these units, those of the most bytes first.
pub fn of<'a>(units: impl IntoIterator<Item = &'a Unit>) -> Vec<Kind<'a>> {
    let mut by_name = BTreeMap::<&str, Kind<'a>>::new();
    for unit in units {
        let name = unit.kind.as_str();
        let kind = by_name.entry(name).or_insert(Kind { name, count: 0, bytes: 0 });
        kind.count += 1;
        kind.bytes += u128::from(unit.bytes);
    }
    let mut kinds: Vec<Kind<'a>> = by_name.into_values().collect();
    // Stable: kinds of as many bytes stay in the order of their names.
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.bytes));
    kinds
}

/// A short name of each kind: without what all that are of blocks begin or end with.
pub fn short_names(units: &[Unit]) -> BTreeMap<&str, String> {
    let kinds = of(units.iter().filter(|unit| unit.block.is_some()));
    kinds.iter().map(|kind| kind.name).zip(short(&kinds)).collect()
}

/// Their names without the parts that all begin or end with.
pub fn short(kinds: &[Kind<'_>]) -> Vec<String> {
    let parts: Vec<Vec<&str>> = kinds.iter().map(|kind| kind.name.split('.').collect()).collect();
    // Every name keeps a part.
    let spare = parts.iter().map(|parts| parts.len() - 1).min().unwrap_or(0);
    let same =
        |at: &dyn Fn(&[&str]) -> String| parts.windows(2).all(|pair| at(&pair[0]) == at(&pair[1]));
    let alone = kinds.len() < 2;
    let mut head = 0;
    while !alone && head < spare && same(&|parts| parts[head].to_owned()) {
        head += 1;
    }
    let mut tail = 0;
    while !alone && head + tail < spare && same(&|parts| parts[parts.len() - 1 - tail].to_owned()) {
        tail += 1;
    }
    parts.iter().map(|parts| parts[head..parts.len() - tail].join(".")).collect()
}
