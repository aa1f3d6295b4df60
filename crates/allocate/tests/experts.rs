//! MC-MoE's objective and programme.

use tensorpress_allocate::{Choice, Exact, Programme, Rule, Significance, Solver, Unit};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::SplitMix;

/// MC-MoE's programme: 64 experts of a layer at 1, 2 or 3 bits, 2.5 bits on average exactly, at least one at 3 and one at 2.
#[test]
fn experts_get_whole_bits_that_add_up() {
    let mut random = SplitMix::new(3);
    let experts: Vec<Unit> = (0..64)
        .map(|at| {
            let noise = 1.0 + random.next_f64();
            let level = |bits: u64| Choice::new(bits, noise * (-2.0 * bits as f64).exp2());
            Unit::new(format!("expert {at}"), [1, 2, 3].map(level))
        })
        .collect();
    let frequency: Vec<f64> = (0..64).map(|_| random.next_f64().powi(3)).collect();
    let weight: Vec<f64> = (0..64).map(|_| random.next_f64()).collect();
    let significance = Significance::new().with_frequency(1.0).with_weight(1.0).with_error(2.0);
    let table = significance.table(&experts, &frequency, &weight).unwrap();
    let expect = frequency[5] * weight[5] * experts[5].choices()[1].error.powi(2);
    assert!((table.units()[5].choices()[1].error / expect - 1.0).abs() < 1e-12);
    let at = |level: usize| (0..64).map(|unit| (unit, level, 1)).collect::<Vec<_>>();
    let programme = Programme::new()
        .with_exact_cost(true)
        .with_rule(Rule::at_least(1, at(1)))
        .with_rule(Rule::at_least(1, at(2)));
    let found = programme.solve(&table, 160).unwrap();
    assert_eq!((found.cost, found.bound), (160, Some(found.error)));
    assert_eq!(programme, programme.clone());
    let count = |level: usize| found.choices.iter().filter(|choice| **choice == level).count();
    println!("experts at 1, 2, 3 bits: {:?}", [count(0), count(1), count(2)]);
    assert!(count(1) >= 1 && count(2) >= 1);
    // The rules cost nothing here, so that it is the exact optimum of all that spend as much.
    let exact = Exact::new().solve(&table, 160).unwrap();
    assert!((found.error / exact.error - 1.0).abs() < 1e-8);
    // More at 1 bit than the optimum has: that costs.
    let many = programme.clone().with_rule(Rule::at_least(12, at(0)));
    let forced = many.solve(&table, 160).unwrap();
    assert!(forced.choices.iter().filter(|choice| **choice == 0).count() >= 12);
    assert!(forced.error > found.error && forced.cost == 160);
}

#[test]
fn experts_are_checked() {
    let experts = [Unit::new("e", [Choice::new(1, 0.5)])];
    let kind = |frequency: &[f64], weight: &[f64]| {
        Significance::new().table(&experts, frequency, weight).unwrap_err().kind()
    };
    assert_eq!(kind(&[], &[1.0]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[1.0], &[1.0, 2.0]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[f64::NAN], &[1.0]), ErrorKind::Numerical);
    assert_eq!(kind(&[1.0], &[-1.0]), ErrorKind::Numerical);
    let negative = [Unit::new("e", [Choice::new(1, -0.5)])];
    let refused = Significance::new().table(&negative, &[1.0], &[1.0]).unwrap_err();
    assert_eq!((refused.kind(), refused.tensor()), (ErrorKind::Numerical, Some("e")));
    assert!(Significance::new().table(&[], &[], &[]).unwrap().units().is_empty());
}
