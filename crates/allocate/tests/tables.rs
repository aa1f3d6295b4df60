//! What stands around the solvers: one curve for every budget, the uniform reference, forms of a matrix, measured costs.

mod common;

use common::{all, tables};
use proptest::prelude::*;
use tensorpress_allocate::{Choice, Curve, Exact, Form, Solver, Stopwatch, Table, Unit, forms};
use tensorpress_tensor::{Error, ErrorKind};

/// L-GreCo's programme as the paper has it: errors in bins, the least cost of each sum of bins, layer by layer. Errors are
/// rounded up to a bin, so that the limit is kept whatever is rounded.
fn binned(table: &Table, limit: f64, bin: f64) -> Option<u64> {
    let bins = (limit / bin + 1e-9).floor() as usize;
    let mut best: Vec<Option<u64>> = vec![None; bins + 1];
    best[0] = Some(0);
    for unit in table.units() {
        let mut next = vec![None; bins + 1];
        for choice in unit.choices() {
            let width = (choice.error / bin - 1e-9).ceil() as usize;
            for at in width..=bins {
                if let Some(before) = best[at - width] {
                    let sum = before + choice.cost;
                    next[at] = Some(next[at].map_or(sum, |least: u64| least.min(sum)));
                }
            }
        }
        best = next;
    }
    best.into_iter().flatten().min()
}

/// Tables of levels that all units have.
fn uniform_tables() -> impl Strategy<Value = Table> {
    let levels = prop::collection::vec((0u64..40, 0u32..30), 4);
    prop::collection::vec(levels, 1..6).prop_map(|units| {
        let choice = |(cost, error): &(u64, u32)| Choice::new(*cost, f64::from(*error));
        let unit =
            |levels: &Vec<(u64, u32)>| Unit::new("", levels.iter().map(choice).collect::<Vec<_>>());
        Table::new(units.iter().map(unit).collect::<Vec<_>>()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_curve_is_nested_and_each_of_it_optimal(table in tables()) {
        let curve: Vec<_> = Curve::new(&table).collect();
        prop_assert_eq!(curve[0].cost, table.least_cost());
        let best = all(&table).iter().map(|choices| table.error(choices)).min_by(f64::total_cmp);
        prop_assert_eq!(Some(curve[curve.len() - 1].error), best);
        for pair in curve.windows(2) {
            prop_assert!(pair[1].cost > pair[0].cost && pair[1].error < pair[0].error);
            let changed = pair[0].choices.iter().zip(&pair[1].choices).filter(|(a, b)| a != b);
            prop_assert_eq!(changed.count(), 1);
        }
        for three in curve.windows(3) {
            let slope = |a: usize, b: usize| {
                (three[a].error - three[b].error) / (three[b].cost - three[a].cost) as f64
            };
            prop_assert!(slope(0, 1) >= slope(1, 2) - 1e-12, "convex");
        }
        for one in &curve {
            let exact = Exact::new().solve(&table, one.cost).unwrap();
            prop_assert_eq!((one.error, one.bound), (exact.error, Some(exact.error)));
        }
    }

    #[test]
    fn no_setting_that_loses_no_more_is_cheaper(table in uniform_tables(), level in 0usize..4) {
        let reference = table.uniform(level).unwrap();
        prop_assert_eq!(&reference.choices, &vec![level; table.units().len()]);
        let found = Exact::new().least_cost_of(&table, &reference).unwrap();
        prop_assert!(found.cost <= reference.cost && found.error <= reference.error);
        // Errors are whole: bins of 1 round none of them, wider ones some.
        prop_assert_eq!(Some(found.cost), binned(&table, reference.error, 1.0));
        prop_assert!(binned(&table, reference.error, 2.5).is_none_or(|cost| cost >= found.cost));
        let few = Exact::new().with_states(2).least_cost_of(&table, &reference).unwrap();
        prop_assert!(few.cost <= reference.cost && few.error <= reference.error);
    }

    #[test]
    fn fronts_hold_what_no_other_beats(table in tables()) {
        for unit in table.units() {
            let of = unit.choices();
            let front = unit.pareto();
            for (at, one) in of.iter().enumerate() {
                let beats = |(other, by): (usize, &Choice)| {
                    let as_good = by.cost <= one.cost && by.error <= one.error;
                    as_good && (by != one || other < at)
                };
                prop_assert_eq!(front.contains(&at), !of.iter().enumerate().any(beats));
            }
            prop_assert!(front.windows(2).all(|pair| of[pair[0]].cost < of[pair[1]].cost));
        }
    }

    /// Both stages of MLoRQ beside all pairs of bits and rank of all matrices.
    #[test]
    fn two_stages_find_the_best_of_all_forms(
        shapes in prop::collection::vec((2usize..6, 2usize..6), 1..4),
        errors in prop::collection::vec(0u32..50, 64),
        share in 0.0..1.0f64,
    ) {
        let (bits, ranks) = ([2, 4, 8], [1, 2]);
        let mut fronts = Vec::new();
        let mut everything = Vec::new();
        for (at, shape) in shapes.iter().enumerate() {
            let mut measured = Vec::new();
            let mut next = errors.iter().cycle().skip(17 * at);
            let (unit, forms) = forms("w", *shape, &bits, &ranks, &mut |form| {
                let error = f64::from(*next.next().unwrap());
                measured.push((form, error));
                Ok(error)
            }).unwrap();
            prop_assert_eq!(measured.len(), 9);
            for (form, choice) in forms.iter().zip(unit.choices()) {
                let cost = match form.rank {
                    None => shape.0 * shape.1,
                    Some(rank) => rank * (shape.0 + shape.1),
                };
                prop_assert_eq!(choice.cost, cost as u64 * u64::from(form.bits));
                prop_assert!(measured.contains(&(*form, choice.error)));
            }
            let all = measured.iter().map(|(form, error)| Choice::new(form.cost(*shape), *error));
            everything.push(Unit::new("w", all.collect::<Vec<_>>()));
            fronts.push(unit);
        }
        let (fronts, everything) = (Table::new(fronts).unwrap(), Table::new(everything).unwrap());
        prop_assert_eq!(fronts.least_cost(), everything.least_cost());
        let most: u64 = everything.units().iter().map(|u| u.choices().iter().map(|c| c.cost).max().unwrap()).sum();
        let budget = fronts.least_cost() + ((most - fronts.least_cost()) as f64 * share) as u64;
        let within = all(&everything).into_iter().filter(|choices| everything.cost(choices) <= budget);
        let best = within.map(|choices| everything.error(&choices)).min_by(f64::total_cmp);
        let found = Exact::new().solve(&fronts, budget).unwrap();
        prop_assert_eq!(Some(found.error), best);
        prop_assert!(found.cost <= budget);
    }
}

#[test]
fn references_and_forms_are_checked() {
    let table = Table::new([
        Unit::new("a", [Choice::new(1, 2.0), Choice::new(2, 1.0)]),
        Unit::new("b", [Choice::new(1, 2.0)]),
    ]);
    let table = table.unwrap();
    let refused = table.uniform(1).unwrap_err();
    assert_eq!((refused.kind(), refused.tensor()), (ErrorKind::InvalidArgument, Some("b")));
    let other = Table::new([Unit::new("a", [Choice::new(1, 2.0)])]).unwrap().uniform(0).unwrap();
    let refused = Exact::new().least_cost_of(&table, &other).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ShapeMismatch);
    let empty = Table::new([]).unwrap();
    assert_eq!(empty.uniform(7).unwrap().cost, 0);
    assert_eq!(Curve::new(&empty).map(|one| one.cost).collect::<Vec<_>>(), [0]);
    assert_eq!(Unit::new("none", []).pareto(), [0usize; 0]);

    let mut fine = |_: Form| Ok(1.0);
    let kind = |bits: &[u32],
                ranks: &[usize],
                error: &mut dyn FnMut(Form) -> tensorpress_tensor::Result<f64>| {
        let refused = forms("w", (3, 5), bits, ranks, error).unwrap_err();
        assert_eq!(refused.tensor(), Some("w"));
        refused.kind()
    };
    assert_eq!(kind(&[4], &[0], &mut fine), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[4], &[4], &mut fine), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[], &[1], &mut fine), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[4], &[1], &mut |_| Ok(f64::NAN)), ErrorKind::Numerical);
    assert_eq!(
        kind(&[4], &[1], &mut |_| Err(Error::insufficient("none"))),
        ErrorKind::InsufficientData
    );
    assert_eq!(Form::dense(u32::MAX).cost((usize::MAX, usize::MAX)), u64::MAX);
}

/// No time is asserted: what counts is that each level runs as often as said, in turns, and keeps its error.
#[test]
fn costs_are_measured_in_turns() {
    let table = Table::new([
        Unit::new("a", [Choice::new(7, 2.0), Choice::new(7, 1.0)]),
        Unit::new("b", [Choice::new(7, 0.5)]),
    ]);
    let table = table.unwrap();
    let mut asked = Vec::new();
    let watch = Stopwatch::new().with_repeats(3).with_warm_up(1);
    let timed = watch.costs(&table, &mut |unit, level| {
        asked.push((unit, level));
        Ok(())
    });
    let timed = timed.unwrap();
    assert_eq!(asked[..4], [(0, 0), (0, 1), (0, 0), (0, 1)]);
    assert_eq!(asked.len(), 4 * 3);
    for (before, after) in table.units().iter().zip(timed.units()) {
        assert_eq!(before.name(), after.name());
        for (before, after) in before.choices().iter().zip(after.choices()) {
            assert!(after.cost >= 1 && before.error == after.error);
        }
    }
    let mut runs = 0;
    let median = watch.with_median(true).with_repeats(0).with_warm_up(0);
    assert!(
        median
            .time(&mut || {
                runs += 1;
                Ok(())
            })
            .unwrap()
            >= 1
    );
    assert_eq!(runs, 1, "at least once");
    let refused = watch.costs(&table, &mut |unit, _| match unit {
        0 => Ok(()),
        _ => Err(Error::insufficient("no tokens")),
    });
    let refused = refused.unwrap_err();
    assert_eq!((refused.kind(), refused.tensor()), (ErrorKind::InsufficientData, Some("b")));
    assert!(watch.time(&mut || Err(Error::insufficient("no tokens"))).is_err());
}
