//! Primal-dual counts beside closed forms, and beside the exact solver.

use proptest::prelude::*;
use tensorpress_allocate::{Choice, Counted, Exact, PrimalDual, Solver, Table, Unit};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{Error, ErrorKind, Result};

/// Σ a (s - t)² / 2 with Σ c s within a budget.
#[derive(Debug)]
struct Quadratic {
    bounds: Vec<(u64, u64)>,
    weight: Vec<f64>,
    target: Vec<f64>,
    price: Vec<f64>,
}

impl Counted for Quadratic {
    fn bounds(&self) -> Vec<(u64, u64)> {
        self.bounds.clone()
    }

    fn loss(&self, counts: &[f64]) -> Result<f64> {
        let part = |at: usize| 0.5 * self.weight[at] * (counts[at] - self.target[at]).powi(2);
        Ok((0..counts.len()).map(part).sum())
    }

    fn cost(&self, counts: &[f64]) -> Result<f64> {
        Ok(counts.iter().zip(&self.price).map(|(s, c)| s * c).sum())
    }
}

impl Quadratic {
    /// The optimum by the conditions of Karush, Kuhn and Tucker: s = t - λ c / a within the bounds, at the λ that spends the
    /// budget.
    fn optimum(&self, budget: f64) -> (Vec<f64>, f64) {
        let at = |price: f64| -> Vec<f64> {
            let one = |unit: usize| {
                let (low, high) = self.bounds[unit];
                let free = self.target[unit] - price * self.price[unit] / self.weight[unit];
                free.clamp(low as f64, high as f64)
            };
            (0..self.bounds.len()).map(one).collect()
        };
        if self.cost(&at(0.0)).unwrap() <= budget {
            return (at(0.0), 0.0);
        }
        let (mut low, mut high) = (0.0, 1e9);
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if self.cost(&at(middle)).unwrap() > budget { low = middle } else { high = middle }
        }
        (at(high), high)
    }
}

fn quadratics() -> impl Strategy<Value = Quadratic> {
    let unit = (0u64..3, 1u64..12, 0.1..10.0f64, -2.0..14.0f64, 0.2..5.0f64);
    prop::collection::vec(unit, 1..7).prop_map(|units| Quadratic {
        bounds: units.iter().map(|unit| (unit.0, unit.0 + unit.1)).collect(),
        weight: units.iter().map(|unit| unit.2).collect(),
        target: units.iter().map(|unit| unit.3).collect(),
        price: units.iter().map(|unit| unit.4).collect(),
    })
}

/// Cost at the ends of the bounds, and a budget in between.
fn budget(problem: &dyn Counted, share: f64) -> f64 {
    let end = |of: fn(&(u64, u64)) -> u64| {
        let counts: Vec<f64> = problem.bounds().iter().map(|bounds| of(bounds) as f64).collect();
        problem.cost(&counts).unwrap()
    };
    let (least, most) = (end(|bounds| bounds.0), end(|bounds| bounds.1));
    least + share * (most - least)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn relaxed_counts_are_those_of_the_closed_form(problem in quadratics(), share in 0.02..1.1f64) {
        let budget = budget(&problem, share);
        let (optimum, price) = problem.optimum(budget);
        let found = PrimalDual::new().solve(&problem, budget).unwrap();
        for (found, optimum) in found.relaxed.iter().zip(&optimum) {
            prop_assert!((found - optimum).abs() < 1e-5, "{found} for {optimum} at {price}");
        }
        // Where all lie at their ends, a range of prices is right.
        let inner = optimum.iter().zip(&problem.bounds).any(|(s, (low, high))| {
            *s > *low as f64 + 1e-3 && *s < *high as f64 - 1e-3
        });
        let scale = 1.0 + price;
        prop_assert!(!inner || (found.price - price).abs() < 1e-4 * scale, "{} for {price}", found.price);
        prop_assert!(found.cost <= budget);
        prop_assert!(found.loss >= problem.loss(&optimum).unwrap() - 1e-6);
    }

    #[test]
    fn whole_counts_fit_and_improve_by_no_exchange(problem in quadratics(), share in 0.0..1.1f64) {
        let budget = budget(&problem, share);
        let found = PrimalDual::new().solve(&problem, budget).unwrap();
        let judge = |counts: &[i64]| {
            let counts: Vec<f64> = counts.iter().map(|count| *count as f64).collect();
            (problem.loss(&counts).unwrap(), problem.cost(&counts).unwrap())
        };
        let counts: Vec<i64> = found.counts.iter().map(|count| *count as i64).collect();
        prop_assert_eq!((found.loss, found.cost), judge(&counts));
        let allowed = |counts: &[i64]| {
            counts.iter().zip(&problem.bounds).all(|(n, (low, high))| (*low as i64..=*high as i64).contains(n))
        };
        prop_assert!(allowed(&counts) && found.cost <= budget);
        for a in 0..counts.len() {
            for b in 0..counts.len() {
                let mut other = counts.clone();
                other[a] += 1;
                other[b] -= i64::from(a != b);
                let (loss, cost) = judge(&other);
                prop_assert!(!allowed(&other) || cost > budget || loss >= found.loss);
            }
        }
    }
}

/// How often rounding finds the optimum of whole counts, and by how much it misses.
#[test]
fn whole_counts_are_near_the_exact_ones() {
    let mut random = SplitMix::new(11);
    let (mut same, mut worst, mut sum) = (0, 1.0f64, 0.0);
    let all = 300;
    for _ in 0..all {
        let units = 2 + (random.next_u64() % 7) as usize;
        let mut draw = |low: f64, high: f64| low + (high - low) * random.next_f64();
        let problem = Quadratic {
            bounds: vec![(0, 4); units],
            weight: (0..units).map(|_| draw(0.5, 8.0)).collect(),
            target: (0..units).map(|_| draw(3.0, 6.0)).collect(),
            price: (0..units).map(|_| draw(1.0, 9.0).round()).collect(),
        };
        let budget = budget(&problem, draw(0.2, 0.9)).floor();
        let unit = |at: usize| {
            let choice = |count: u64| {
                let loss = 0.5 * problem.weight[at] * (count as f64 - problem.target[at]).powi(2);
                Choice::new(count * problem.price[at] as u64, loss)
            };
            Unit::new(at.to_string(), (0..=4).map(choice).collect::<Vec<_>>())
        };
        let table = Table::new((0..units).map(unit).collect::<Vec<_>>()).unwrap();
        let exact = Exact::new().solve(&table, budget as u64).unwrap();
        let found = PrimalDual::new().solve(&problem, budget).unwrap();
        let ratio = found.loss / exact.error;
        assert!(ratio > 1.0 - 1e-9 && found.cost <= budget);
        same += usize::from(ratio < 1.0 + 1e-9);
        worst = worst.max(ratio);
        sum += ratio;
    }
    println!(
        "the optimum in {same} of {all}; {worst:.4} of it at worst, {:.5} on average",
        sum / f64::from(all)
    );
    assert!(same > 200 && worst < 1.2);
}

/// A block of heads with a gate: their product is what it costs, and each block's loss is convex in what is left of it.
struct Gated {
    matters: Vec<f64>,
}

impl Counted for Gated {
    fn bounds(&self) -> Vec<(u64, u64)> {
        self.matters.iter().flat_map(|_| [(1, 8), (0, 1)]).collect()
    }

    fn loss(&self, counts: &[f64]) -> Result<f64> {
        let block =
            |(pair, matters): (&[f64], &f64)| matters * (1.0 - pair[0] * pair[1] / 8.0).powi(2);
        Ok(counts.chunks(2).zip(&self.matters).map(block).sum())
    }

    fn cost(&self, counts: &[f64]) -> Result<f64> {
        Ok(counts.chunks(2).map(|pair| pair[0] * pair[1]).sum())
    }
}

#[test]
fn gates_and_heads_share_a_budget() {
    let problem = Gated { matters: vec![4.0, 1.0, 0.01] };
    for budget in 1..=24 {
        let found = PrimalDual::new().solve(&problem, f64::from(budget)).unwrap();
        assert!(found.cost <= f64::from(budget) && found.counts.len() == 6);
        // All of 9³ counts of heads that are left.
        let loss = |heads: &[u32]| -> f64 {
            let block =
                |(heads, matters): (&u32, &f64)| matters * (1.0 - f64::from(*heads) / 8.0).powi(2);
            heads.iter().zip(&problem.matters).map(block).sum()
        };
        let mut best = f64::INFINITY;
        for at in 0..729u32 {
            let heads = [at / 81, at / 9 % 9, at % 9];
            if heads.iter().sum::<u32>() <= budget {
                best = best.min(loss(&heads));
            }
        }
        println!("{budget}: {:?} loses {:.5}, the best {best:.5}", found.counts, found.loss);
        assert!(found.loss >= best - 1e-12 && found.loss <= 1.05 * best + 1e-9);
    }
}

#[test]
fn bad_input_is_refused() {
    struct Broken(f64, f64, (u64, u64));
    impl Counted for Broken {
        fn bounds(&self) -> Vec<(u64, u64)> {
            vec![self.2]
        }
        fn loss(&self, _: &[f64]) -> Result<f64> {
            match self.0 {
                0.0 => Err(Error::insufficient("no tokens")),
                loss => Ok(loss),
            }
        }
        fn cost(&self, counts: &[f64]) -> Result<f64> {
            Ok(self.1 * counts[0])
        }
    }
    let kind = |loss, cost, bounds, budget| {
        PrimalDual::new().solve(&Broken(loss, cost, bounds), budget).unwrap_err().kind()
    };
    assert_eq!(kind(f64::NAN, 1.0, (0, 1), 1.0), ErrorKind::Numerical);
    assert_eq!(kind(1.0, f64::INFINITY, (1, 1), 1.0), ErrorKind::Numerical);
    assert_eq!(kind(1.0, 1.0, (0, 1), f64::NAN), ErrorKind::Numerical);
    assert_eq!(kind(0.0, 1.0, (0, 1), 1.0), ErrorKind::InsufficientData);
    assert_eq!(kind(1.0, 1.0, (2, 1), 1.0), ErrorKind::InvalidArgument);
    assert_eq!(kind(1.0, 1.0, (0, u64::MAX), 1.0), ErrorKind::InvalidArgument);
    assert_eq!(kind(1.0, 1.0, (2, 3), 0.0), ErrorKind::InvalidArgument);
    assert_eq!(PrimalDual::new().solve(&Broken(1.0, 1.0, (3, 3)), 3.0).unwrap().counts, [3]);
    let none = Quadratic { bounds: vec![], weight: vec![], target: vec![], price: vec![] };
    assert!(PrimalDual::new().solve(&none, 0.0).unwrap().counts.is_empty());
    let idle = PrimalDual::new().with_rounds(0).with_steps(0);
    assert!(idle.solve(&Broken(1.0, 1.0, (0, 4)), 2.0).unwrap().cost <= 2.0);
}
