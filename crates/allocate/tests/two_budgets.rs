//! Two budgets at once, beside trying everything and beside an integer programme.

mod common;

use common::{all, tables};
use proptest::prelude::*;
use tensorpress_allocate::{Choice, Programme, Rule, Solver, Table, TwoBudgets, Unit};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::SplitMix;

/// Second costs of any table, from a seed.
fn seconds(table: &Table, seed: u64) -> Vec<Vec<u64>> {
    let mut random = SplitMix::new(seed);
    let mut of = |unit: &Unit| unit.choices().iter().map(|_| random.next_u64() % 40).collect();
    table.units().iter().map(&mut of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn both_are_kept_wherever_anything_keeps_both(
        table in tables(),
        seed in 0u64..1000,
        budget in 0u64..120,
        second in 0u64..120,
    ) {
        let solver = TwoBudgets::new(seconds(&table, seed), second);
        let within = |choices: &Vec<usize>| table.cost(choices) <= budget && solver.cost(choices) <= second;
        let kept: Vec<Vec<usize>> = all(&table).into_iter().filter(within).collect();
        let best = kept.iter().map(|choices| table.error(choices)).min_by(f64::total_cmp);
        match (solver.solve(&table, budget), best) {
            (Ok(found), Some(best)) => {
                prop_assert!(within(&found.choices) && found.error >= best);
                prop_assert_eq!(found.cost, table.cost(&found.choices));
                // Nothing that a single unit could change keeps both and loses less.
                for at in 0..found.choices.len() {
                    for level in 0..table.units()[at].choices().len() {
                        let mut other = found.choices.clone();
                        other[at] = level;
                        prop_assert!(!within(&other) || table.error(&other) >= found.error);
                    }
                }
            }
            (Err(refused), None) => prop_assert_eq!(refused.kind(), ErrorKind::InvalidArgument),
            (found, best) => prop_assert!(false, "{:?} where the best is {:?}", found, best),
        }
    }
}

/// Of 24 units with six levels, fast ones larger than slow ones: within 1% of what an integer programme finds.
#[test]
fn large_tables_are_near_the_optimum() {
    let mut random = SplitMix::new(7);
    let units = 24;
    let made: Vec<(Unit, Vec<u64>)> = (0..units)
        .map(|at| {
            let scale = (4.0 * random.next_f64()).exp();
            let level = |bits: u64, fast: bool| {
                let (bytes, time) = if fast { (130 * bits, 10 * bits) } else { (100 * bits, 60) };
                (Choice::new(bytes, scale * 0.25_f64.powi(bits as i32)), time)
            };
            let levels = [2, 3, 4].map(|bits| [level(bits, false), level(bits, true)]).concat();
            let (choices, times): (Vec<_>, Vec<_>) = levels.into_iter().unzip();
            (Unit::new(at.to_string(), choices), times)
        })
        .collect();
    let (units, times): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    let table = Table::new(units).expect("a table");
    for (budget, second) in [(8000, 1000), (9000, 800), (7600, 1200), (10_000, 900)] {
        let found = TwoBudgets::new(times.clone(), second).solve(&table, budget).expect("fits");
        let terms = times.iter().enumerate().flat_map(|(unit, times)| {
            times.iter().enumerate().map(move |(level, time)| (unit, level, *time as i64))
        });
        let rule = Rule::at_most(second as i64, terms.collect::<Vec<_>>());
        let best = Programme::new().with_rule(rule).solve(&table, budget).expect("fits");
        println!("{budget}, {second}: {:.6}, the best {:.6}", found.error, best.error);
        assert!(found.error <= 1.01 * best.error, "{} of {}", found.error, best.error);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let levels = [Choice::new(10, 1.0), Choice::new(20, 0.1)];
    let table = Table::new([Unit::new("q", levels), Unit::new("k", levels)]).expect("a table");
    let refused = |costs: Vec<Vec<u64>>, second: u64, says: &str| {
        let error = TwoBudgets::new(costs, second).solve(&table, 40).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(vec![vec![5, 4]; 2], 7, "about 8");
    refused(vec![vec![5, 4]], 9, "needed are 2");
    refused(vec![vec![5, 4], vec![5]], 9, "k");
    let free = TwoBudgets::new(vec![vec![5, 4]; 2], u64::MAX).solve(&table, 40).expect("fits");
    assert_eq!((free.cost, free.bound), (40, Some(0.2)), "an optimum that is proven");
}
