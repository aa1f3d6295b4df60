//! Solvers beside trying everything, and on tables that are hard.

mod common;

use common::{all, tables};
use proptest::prelude::*;
use tensorpress_allocate::{
    Choice, Evolution, Exact, Lagrange, Minimax, Ordered, Round, Solver, Table, Unit, closed,
};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::SplitMix;

/// The least of `of` over all that costs no more than `budget`.
fn least(table: &Table, budget: u64, of: impl Fn(&[usize]) -> f64) -> Option<f64> {
    let within = all(table).into_iter().filter(|choices| table.cost(choices) <= budget);
    within.map(|choices| of(&choices)).min_by(f64::total_cmp)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn exact_is_the_best_of_all(table in tables(), budget in 0u64..160) {
        let best = least(&table, budget, |choices| table.error(choices));
        let found = Exact::new().solve(&table, budget);
        let Some(best) = best else {
            let error = found.unwrap_err();
            prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            prop_assert!(error.to_string().contains(&table.least_cost().to_string()));
            return Ok(());
        };
        let found = found.unwrap();
        prop_assert!(found.cost <= budget && found.cost == table.cost(&found.choices));
        prop_assert_eq!((found.error, found.bound), (best, Some(best)));
        // However few partial choices it may keep, what it finds fits, and what it claims holds.
        for states in [2, 3, 8] {
            let rough = Exact::new().with_states(states).solve(&table, budget).unwrap();
            prop_assert!(rough.cost <= budget && rough.error >= best && rough.bound.unwrap() <= best);
        }
        let quick = Lagrange::new().solve(&table, budget).unwrap();
        prop_assert!(quick.cost <= budget && quick.error >= best && quick.bound.unwrap() <= best + 1e-9);
        let searched = Evolution::new().with_generations(4).solve(&table, budget).unwrap();
        prop_assert!(searched.cost <= budget && searched.error >= best);
    }

    #[test]
    fn the_least_cost_is_the_least_of_all(table in tables(), error in -10i32..90) {
        let error = f64::from(error);
        let kept = all(&table).into_iter().filter(|choices| table.error(choices) <= error);
        let best = kept.map(|choices| table.cost(&choices)).min();
        match Exact::new().least_cost(&table, error) {
            Ok(found) => {
                prop_assert!(found.error <= error);
                prop_assert_eq!(Some(found.cost), best);
            }
            Err(refused) => {
                prop_assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
                prop_assert_eq!(best, None);
            }
        }
    }

    /// Costs so large that what they differ in is beyond the digits of a price times a cost, and errors close together.
    #[test]
    fn large_costs_hide_no_optimum(
        units in prop::collection::vec(prop::collection::vec((0u64..40, 0u32..4000), 2..5), 1..6),
        budget in 0u64..160,
    ) {
        let made = |base: u64| {
            let choice = |(cost, error): &(u64, u32)| Choice::new(base + cost, 1.0 + f64::from(*error) / 4096.0);
            let unit = |of: &Vec<(u64, u32)>| Unit::new("", of.iter().map(choice).collect::<Vec<_>>());
            Table::new(units.iter().map(unit).collect::<Vec<_>>()).unwrap()
        };
        let (small, base) = (made(0), 1u64 << 49);
        let best = least(&small, budget, |choices| small.error(choices));
        let found = Exact::new().solve(&made(base), budget + base * units.len() as u64);
        prop_assert_eq!(found.ok().map(|found| found.error), best);
    }

    #[test]
    fn minimax_is_the_least_largest_error(table in tables(), budget in 0u64..160) {
        let largest = |choices: &[usize]| {
            let error = |(unit, choice): (&Unit, &usize)| unit.choices()[*choice].error;
            table.units().iter().zip(choices).map(error).fold(f64::NEG_INFINITY, f64::max)
        };
        let Some(best) = least(&table, budget, largest) else { return Ok(()) };
        let found = Minimax::new().solve(&table, budget).unwrap();
        prop_assert!(found.cost <= budget);
        prop_assert_eq!(largest(&found.choices), best);
    }

    #[test]
    fn whole_bits_are_the_best_of_all(
        sensitivity in prop::collection::vec(prop_oneof![Just(0.0), 1e-3..1e3f64], 1..5),
        total in 0u64..16,
    ) {
        let levels = |c: f64| (1..=4).map(|bits| Choice::new(bits, c * (-2.0 * bits as f64).exp2())).collect::<Vec<_>>();
        let units: Vec<Unit> = sensitivity.iter().map(|c| Unit::new("", levels(*c))).collect();
        let table = Table::new(units).unwrap();
        match closed::whole_bits(&sensitivity, total, 1..=4) {
            Ok(bits) => {
                let choices: Vec<usize> = bits.iter().map(|bits| *bits as usize - 1).collect();
                let best = least(&table, total, |choices| table.error(choices)).unwrap();
                let spent = total.min(4 * sensitivity.len() as u64);
                prop_assert_eq!(table.cost(&choices), spent);
                prop_assert!(table.error(&choices) <= best * (1.0 + 1e-9));
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                prop_assert!(total < sensitivity.len() as u64);
            }
        }
    }

    #[test]
    fn bits_keep_their_mean_and_their_range(
        sensitivity in prop::collection::vec(prop_oneof![Just(0.0), 1e-12..1e12f64], 1..20),
        mean in 1.0..6.0f64,
    ) {
        let bits = closed::bits(&sensitivity, mean, 1.0..=6.0).unwrap();
        prop_assert!(bits.iter().all(|bits| (1.0..=6.0).contains(bits)));
        let is = bits.iter().sum::<f64>() / bits.len() as f64;
        let most = sensitivity.iter().filter(|c| **c > 0.0).count();
        let reachable = (6 * most + sensitivity.len() - most) as f64 / sensitivity.len() as f64;
        prop_assert!((is - mean).abs() < 1e-6 || most == 0 || (mean > reachable && (is - reachable).abs() < 1e-6));
        // Those between the ends lose the same, and those at an end would gain by no exchange.
        let loss = |at: usize| sensitivity[at] * (-2.0 * bits[at]).exp2();
        let inner: Vec<usize> = (0..bits.len()).filter(|at| bits[*at] > 1.0 + 1e-9 && bits[*at] < 6.0 - 1e-9).collect();
        for pair in inner.windows(2) {
            prop_assert!(most == 0 || (loss(pair[0]) / loss(pair[1]) - 1.0).abs() < 1e-6);
        }
    }
}

/// A model of 300 matrices with costs that have no measure in common, and errors as coded grids have them: the budget is
/// spent to the last few bytes, and the optimum is proven or known to a hundredth of a percent.
#[test]
fn models_of_many_matrices_are_solved() {
    let mut random = SplitMix::new(7);
    let mut unit = |at: usize| {
        let size = [147_456, 442_368, 884_736, 1_327_104][at % 4] as f64;
        let scale = (8.0 * random.next_f64()).exp2();
        let choices = (4..=20).map(|quarter| {
            let bits = f64::from(quarter) / 4.0 + 0.02 * random.next_f64();
            let error = scale * size * (-2.0 * bits).exp2() * (1.0 + 0.1 * random.next_f64());
            Choice::new((size * bits / 8.0) as u64, error)
        });
        Unit::new(at.to_string(), choices.collect::<Vec<_>>())
    };
    let table = Table::new((0..300).map(&mut unit).collect::<Vec<_>>()).unwrap();
    let most: u64 =
        table.units().iter().map(|unit| unit.choices().iter().map(|c| c.cost).max().unwrap()).sum();
    for share in [0.21, 0.3, 0.55, 0.8, 0.99, 1.0, 2.0] {
        let budget = (most as f64 * share) as u64;
        let found = Exact::new().solve(&table, budget).unwrap();
        let bound = found.bound.unwrap();
        println!(
            "{share}: {} of {budget}, error within {:.2e} of the bound",
            found.cost,
            found.error / bound - 1.0
        );
        assert!(found.cost <= budget && found.error <= bound * (1.0 + 1e-4));
        assert!(
            share >= 1.0 || found.cost as f64 > 0.9999 * budget as f64,
            "{} of {budget}",
            found.cost
        );
    }
}

#[test]
fn orders_are_kept() {
    let unit = |name: &str| {
        Unit::new(name, [Choice::new(20, 1.0), Choice::new(40, 0.1), Choice::new(40, 0.2)])
    };
    let table = Table::new(["a", "b", "c", "d"].map(unit)).unwrap();
    let ordered = Ordered::new([0.3, 0.9, 0.1, 0.5]).unwrap();
    assert_eq!(ordered.solve(&table, 80).unwrap().choices, [0, 0, 0, 0]);
    assert_eq!(ordered.solve(&table, 125).unwrap().choices, [0, 1, 0, 1]);
    assert_eq!(ordered.solve(&table, 1000).unwrap().choices, [1; 4]);
    assert_eq!(ordered.solve(&table, 79).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        Ordered::new([1.0]).unwrap().solve(&table, 100).unwrap_err().kind(),
        ErrorKind::ShapeMismatch
    );
    assert_eq!(Ordered::new([f64::NAN]).unwrap_err().kind(), ErrorKind::Numerical);
}

/// An objective that no sum of errors tells: units that hurt only together.
#[test]
fn evolution_sees_what_a_table_does_not() {
    let unit = |at: usize| Unit::new(at.to_string(), [Choice::new(1, 1.0), Choice::new(2, 0.0)]);
    let table = Table::new((0..12).map(unit).collect::<Vec<_>>()).unwrap();
    let mut asked = Vec::new();
    let mut pairs = |choices: &[usize], effort: usize| {
        asked.push(effort);
        let low = |at: &usize| choices[*at] == 0;
        Ok((0..11).filter(|at| low(at) && low(&(at + 1))).count() as f64)
    };
    let search =
        Evolution::new().with_rounds([Round::new(4, 1), Round::new(1, 9)]).with_generations(60);
    let found = search.search(&table, 18, &mut pairs).unwrap();
    assert_eq!((found.cost, found.error), (18, 0.0), "{:?}", found.choices);
    // From an allocation of the caller's.
    let begun = search.clone().with_start([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(begun.search(&table, 18, &mut pairs).unwrap().error, 0.0);
    assert!(asked.contains(&1) && asked[0] == 9);
    let refused = |search: Evolution, budget| {
        search.search(&table, budget, &mut |_, _| Ok(0.0)).unwrap_err().kind()
    };
    assert_eq!(refused(search.clone().with_start([1; 12]), 18), ErrorKind::InvalidArgument);
    assert_eq!(refused(search.clone().with_start([2; 12]), 99), ErrorKind::InvalidArgument);
    assert_eq!(refused(search.clone().with_start([0; 3]), 99), ErrorKind::InvalidArgument);
    assert_eq!(refused(search.clone().with_rounds([]), 18), ErrorKind::InvalidArgument);
    assert_eq!(refused(search.clone(), 11), ErrorKind::InvalidArgument);
    let nan = search.search(&table, 18, &mut |_, _| Ok(f64::NAN)).unwrap_err();
    assert_eq!(nan.kind(), ErrorKind::Numerical);
}

#[test]
fn tables_are_checked_and_kept() {
    let fine = Table::new([Unit::new("a", [Choice::new(1, 0.5)])]).unwrap();
    let text = serde_json::to_string(&fine).unwrap();
    assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), fine);
    let bad = [
        (Unit::new("b", []), ErrorKind::InvalidArgument),
        (Unit::new("b", [Choice::new(1, 0.0), Choice::new(1, f64::NAN)]), ErrorKind::Numerical),
        (Unit::new("b", [Choice::new(u64::MAX, 0.0)]), ErrorKind::InvalidArgument),
    ];
    for (unit, kind) in bad {
        let error = Table::new([fine.units()[0].clone(), unit]).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (kind, Some("b")), "{error}");
    }
    assert!(serde_json::from_str::<Table>(r#"[{"name": "a", "choices": []}]"#).is_err());
    let empty = Table::new([]).unwrap();
    assert_eq!(Exact::new().solve(&empty, 0).unwrap().choices, [0usize; 0]);
    assert_eq!(Minimax::new().solve(&empty, 0).unwrap().choices, [0usize; 0]);
    assert_eq!(Evolution::new().solve(&empty, 0).unwrap().choices, [0usize; 0]);
}
