//! The integer programme beside trying everything, and beside the exact solver.

mod common;

use std::time::Instant;

use common::{all, tables};
use proptest::prelude::*;
use tensorpress_allocate::{Choice, Exact, Programme, Rule, Solver, Table, Unit};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::SplitMix;

/// A relation, a limit, and units, levels and weights.
type Made = (usize, i64, Vec<(usize, usize, i64)>);

/// Rules on the first few units and levels: those of a table that has them not are left out.
fn rules() -> impl Strategy<Value = Vec<Made>> {
    let terms = prop::collection::vec((0usize..4, 0usize..3, -2i64..4), 1..6);
    prop::collection::vec((0usize..3, -2i64..6, terms), 0..3)
}

fn programme(table: &Table, rules: &[Made]) -> (Programme, Vec<Rule>) {
    let known = |term: &&(usize, usize, i64)| {
        table.units().get(term.0).is_some_and(|unit| term.1 < unit.choices().len())
    };
    let rule = |(relation, limit, terms): &Made| {
        let terms: Vec<(usize, usize, i64)> = terms.iter().filter(known).copied().collect();
        match relation {
            0 => Rule::at_least(*limit, terms),
            1 => Rule::at_most(*limit, terms),
            _ => Rule::exactly(*limit, terms),
        }
    };
    let rules: Vec<Rule> = rules.iter().map(rule).collect();
    (rules.iter().cloned().fold(Programme::new(), Programme::with_rule), rules)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn without_rules_it_is_the_exact_solver(table in tables(), budget in 0u64..160) {
        match (Programme::new().solve(&table, budget), Exact::new().solve(&table, budget)) {
            (Ok(found), Ok(exact)) => {
                prop_assert!(found.cost <= budget && found.cost == table.cost(&found.choices));
                prop_assert_eq!((found.error, found.bound), (exact.error, exact.bound));
            }
            (found, exact) => {
                prop_assert_eq!(found.unwrap_err().to_string(), exact.unwrap_err().to_string());
            }
        }
    }

    #[test]
    fn rules_and_an_exact_cost_are_kept(
        table in tables(),
        budget in 0u64..160,
        rules in rules(),
        exact in any::<bool>(),
    ) {
        let (programme, rules) = programme(&table, &rules);
        let keeps = |choices: &Vec<usize>| {
            let cost = table.cost(choices);
            (if exact { cost == budget } else { cost <= budget })
                && rules.iter().all(|rule| rule.holds(choices))
        };
        let kept = all(&table).into_iter().filter(keeps);
        let best = kept.map(|choices| table.error(&choices)).min_by(f64::total_cmp);
        match programme.with_exact_cost(exact).solve(&table, budget) {
            Ok(found) => {
                prop_assert!(keeps(&found.choices));
                prop_assert_eq!(Some(found.error), best);
            }
            Err(refused) => {
                prop_assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{}", refused);
                prop_assert_eq!(best, None, "{}", refused);
            }
        }
    }
}

/// Costs of 10¹² that differ in their last digits: what a tolerance of 10⁻⁹ would let pass is a thousand too much.
#[test]
fn no_tolerance_lets_a_budget_pass() {
    let mut random = SplitMix::new(9);
    let mut solved = 0;
    for _ in 0..300 {
        let units = 2 + random.next_u64() % 5;
        let mut choice = |level: u64| {
            let cost = 1_000_000_000_000 * (level + 1) + random.next_u64() % 50;
            Choice::new(cost, (random.next_u64() % 40) as f64)
        };
        let mut unit = |at: u64| Unit::new(at.to_string(), [0, 1, 2].map(&mut choice));
        let table = Table::new((0..units).map(&mut unit).collect::<Vec<_>>()).unwrap();
        // One below what an allocation costs.
        let aim: Vec<usize> = (0..units).map(|_| (random.next_u64() % 3) as usize).collect();
        let budget = table.cost(&aim) - 1;
        let Ok(exact) = Exact::new().solve(&table, budget) else { continue };
        // Anything but the exact solver's optimum, so that it is no hint.
        let cut = exact.choices.iter().enumerate().map(|(unit, level)| (unit, *level, 1));
        let rule = Rule::at_most(units as i64 - 1, cut.collect::<Vec<_>>());
        let within = |choices: &Vec<usize>| table.cost(choices) <= budget && rule.holds(choices);
        let kept = common::all(&table).into_iter().filter(within);
        let best = kept.map(|choices| table.error(&choices)).min_by(f64::total_cmp);
        match Programme::new().with_rule(rule.clone()).solve(&table, budget) {
            Ok(found) => {
                assert!(within(&found.choices));
                assert_eq!(Some(found.error), best);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
                assert_eq!(best, None, "{error}");
            }
        }
        solved += 1;
    }
    assert!(solved > 280);
}

fn model(units: usize, levels: u32, seed: u64) -> Table {
    let mut random = SplitMix::new(seed);
    let mut unit = |at: usize| {
        let size = [147_456, 442_368, 884_736, 1_327_104][at % 4] as f64;
        let scale = (8.0 * random.next_f64()).exp2();
        let choices = (0..levels).map(|level| {
            let bits = 1.0 + f64::from(level) + 0.02 * random.next_f64();
            let error = scale * size * (-2.0 * bits).exp2() * (1.0 + 0.1 * random.next_f64());
            Choice::new((size * bits / 8.0) as u64, error)
        });
        Unit::new(at.to_string(), choices.collect::<Vec<_>>())
    };
    Table::new((0..units).map(&mut unit).collect::<Vec<_>>()).unwrap()
}

/// Bytes without a common measure: what is found is within the budget to the byte, and within its own bound.
#[test]
fn models_are_solved_to_the_byte() {
    for (units, levels) in
        [(8, 3), (16, 3), (32, 3), (64, 3), (128, 3), (36, 6), (64, 8), (100, 17)]
    {
        let table = model(units, levels, 7);
        let most: u64 = table.units().iter().map(|u| u.choices().last().unwrap().cost).sum();
        let budget = most / 10 * 6;
        let exact = Exact::new().solve(&table, budget).unwrap();
        // More units at their least than the optimum has, so that the programme is on its own.
        let least = exact.choices.iter().filter(|choice| **choice == 0).count() + units / 8;
        let rule =
            Rule::at_least(least as i64, (0..units).map(|unit| (unit, 0, 1)).collect::<Vec<_>>());
        for programme in [Programme::new(), Programme::new().with_rule(rule)] {
            let start = Instant::now();
            let found = programme.solve(&table, budget).unwrap();
            println!(
                "{units} units of {levels}: {:?}, {:.1e} above the free optimum, bound {:.1e} below",
                start.elapsed(),
                found.error / exact.error - 1.0,
                1.0 - found.bound.unwrap() / found.error
            );
            assert!(found.cost <= budget && found.error >= exact.error * (1.0 - 1e-9));
            assert_eq!(found.bound, Some(found.error), "proven");
        }
    }
}

/// With few nodes something is found, and its bound holds.
#[test]
fn a_bound_says_how_near_it_is() {
    let table = model(300, 17, 7);
    let budget = table.least_cost() * 3;
    let exact = Exact::new().solve(&table, budget).unwrap();
    let found = Programme::new().with_nodes(20).solve(&table, budget).unwrap();
    let bound = found.bound.unwrap();
    println!("{} of {budget}, bound {:.1e} below", found.cost, 1.0 - bound / found.error);
    assert!(found.cost <= budget && found.error <= exact.error * (1.0 + 1e-9));
    assert!(bound < found.error && bound > 0.99 * exact.error);
    // Where the free optimum breaks a rule, prices of rules find what to begin with.
    let rule = |table: &Table| {
        let last = table.units()[0].choices().len() - 1;
        let places: Vec<_> = (0..table.units().len()).map(|unit| (unit, last, 1)).collect();
        Rule::at_least(places.len() as i64 / 4, places)
    };
    assert!(!rule(&table).holds(&exact.choices));
    let programme = Programme::new().with_rule(rule(&table)).with_nodes(1);
    let found = programme.solve(&table, budget).unwrap();
    let bound = found.bound.unwrap();
    println!("one node and a rule: bound {:.1e} below", 1.0 - bound / found.error);
    assert!(rule(&table).holds(&found.choices) && found.cost <= budget);
    assert!(found.error >= exact.error && bound <= found.error && bound > 0.9 * found.error);
    let table = model(64, 8, 7);
    let budget = table.least_cost() * 3;
    let exact = Exact::new().solve(&table, budget).unwrap();
    let mut before = f64::INFINITY;
    for nodes in [100, 1000, 20_000] {
        let programme = Programme::new().with_rule(rule(&table)).with_nodes(nodes);
        let found = programme.solve(&table, budget).unwrap();
        let bound = found.bound.unwrap();
        println!("{nodes} nodes: bound {:.1e} below", 1.0 - bound / found.error);
        assert!(rule(&table).holds(&found.choices) && found.cost <= budget);
        assert!(found.error >= exact.error && found.error <= before && bound <= found.error);
        before = found.error;
    }
    // No price finds a cost to the byte, and one node does not either.
    let hard = Programme::new().with_exact_cost(true).with_nodes(1);
    let refused = hard.solve(&table, budget + 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Interrupted, "{refused}");
}

#[test]
fn bad_input_is_refused() {
    let table = Table::new([Unit::new("a", [Choice::new(10, 1.0), Choice::new(30, 0.0)])]).unwrap();
    let kind = |programme: Programme, budget| programme.solve(&table, budget).unwrap_err().kind();
    let rule = |unit, level| Programme::new().with_rule(Rule::at_least(1, [(unit, level, 1)]));
    assert_eq!(kind(Programme::new(), 9), ErrorKind::InvalidArgument);
    assert_eq!(kind(Programme::new(), 0), ErrorKind::InvalidArgument);
    assert_eq!(kind(rule(1, 0), 99), ErrorKind::InvalidArgument);
    assert_eq!(kind(rule(0, 2), 99), ErrorKind::InvalidArgument);
    // A rule that only the dear level keeps, and a cost that no level has.
    assert_eq!(kind(rule(0, 1), 29), ErrorKind::InvalidArgument);
    assert_eq!(rule(0, 1).solve(&table, u64::MAX).unwrap().cost, 30);
    assert_eq!(kind(Programme::new().with_exact_cost(true), 20), ErrorKind::InvalidArgument);
    assert_eq!(kind(Programme::new().with_exact_cost(true), 31), ErrorKind::InvalidArgument);
    assert_eq!(
        kind(rule(0, 0).with_rule(Rule::at_least(i64::MAX, [(0, 0, i64::MIN)])), 99),
        ErrorKind::InvalidArgument
    );
    let empty = Table::new([]).unwrap();
    assert_eq!(Programme::new().solve(&empty, 0).unwrap().choices, [0usize; 0]);
    assert_eq!(Programme::new().with_exact_cost(true).solve(&empty, 0).unwrap().cost, 0);
    assert!(Programme::new().with_exact_cost(true).solve(&empty, 1).is_err());
    let far = Table::new([Unit::new("a", [Choice::new(1, f64::MAX), Choice::new(1, f64::MIN)])]);
    let refused = Programme::new().solve(&far.unwrap(), 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Numerical);
    // Costs a hair apart at the end of what can be added.
    let high = 1u64 << 52;
    let near = Table::new([
        Unit::new("a", [Choice::new(1, 1.0), Choice::new(high, 0.5), Choice::new(high + 1, 0.0)]),
        Unit::new("b", [Choice::new(1, 1.0), Choice::new(3, 0.0)]),
    ]);
    let near = near.unwrap();
    for budget in [high + 1, high + 2, high + 3, high + 4] {
        let exact = Exact::new().solve(&near, budget).unwrap();
        match Programme::new().solve(&near, budget) {
            Ok(found) => {
                assert!(found.cost <= budget && found.error >= exact.error);
                println!("at {budget}: {} for {}", found.error, exact.error);
            }
            Err(error) => println!("at {budget}: {error}"),
        }
    }
}
