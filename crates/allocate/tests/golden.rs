//! Vectors of the official implementations: EvoPress's dynamic programme, BAQ's levels.

use tensorpress_allocate::{Choice, Evolution, Exact, Lagrange, Solver, Table, Unit, closed};
use tensorpress_tensor::testing::golden::Golden;

/// Errors of 36 matrices of MiniLM by GPTQ at six widths, and the optimum at five budgets.
#[test]
fn optima_are_those_of_the_official_programme() {
    let Some(files) = Golden::all("dpalloc") else { return };
    for golden in &files {
        let bits: Vec<u64> =
            golden.param("bits").as_array().unwrap().iter().map(|b| b.as_u64().unwrap()).collect();
        let (errors, sizes) = (golden.floats("errors"), golden.floats("size_units"));
        let units: Vec<Unit> = (0..errors.nrows())
            .map(|unit| {
                let size = sizes.iter().nth(unit).copied().unwrap() as u64;
                let choices: Vec<Choice> = bits
                    .iter()
                    .zip(errors.row(unit))
                    .map(|(bits, error)| Choice::new(bits * size, f64::from(*error)))
                    .collect();
                Unit::new(unit.to_string(), choices)
            })
            .collect();
        let table = Table::new(units).unwrap();
        for average in ["2.5", "3", "3.5", "4", "5"] {
            let figure = |what: &str| golden.figure(&format!("avg{average}_{what}")).unwrap();
            let (budget, official) = (figure("budget") as u64, figure("total_error"));
            let theirs: Vec<usize> = golden
                .floats(&format!("bits_avg{average}"))
                .iter()
                .map(|b| bits.iter().position(|bits| *bits == *b as u64).unwrap())
                .collect();
            assert!(
                (table.error(&theirs) / official - 1.0).abs() < 1e-6,
                "the vector's own figure"
            );
            let found = Exact::new().solve(&table, budget).unwrap();
            println!(
                "{average} bits: {} of {budget}, error {:.9} (official {official:.9})",
                found.cost, found.error
            );
            assert!(found.cost <= budget && found.bound == Some(found.error), "proven");
            assert!((found.error / official - 1.0).abs() < 1e-6, "{} for {official}", found.error);
            // The same, from the other side.
            let cheapest = Exact::new().least_cost(&table, found.error).unwrap();
            assert!(cheapest.cost <= found.cost && cheapest.error <= found.error * (1.0 + 1e-9));
            let quick = Lagrange::new().solve(&table, budget).unwrap();
            assert!(quick.cost <= budget && quick.bound.unwrap() <= found.error + 1e-12);
            println!("  Lagrange {:.4} of it", quick.error / found.error);
            assert!(quick.error / found.error < 1.02);
            let search =
                Evolution::new().with_generations(600).with_offspring(128).with_switches(4);
            for seed in 0..4 {
                let search = search.clone().with_seed(seed);
                let searched = search.solve(&table, budget).unwrap();
                println!("  evolution, seed {seed}: {:.4} of it", searched.error / found.error);
                assert!(searched.cost <= budget && searched.error / found.error < 1.01);
                assert_eq!(
                    searched,
                    search.solve(&table, budget).unwrap(),
                    "the same seed, the same"
                );
            }
        }
    }
    println!("golden files checked: dpalloc {}", files.len());
    assert!(!files.is_empty(), "golden vectors are missing");
}

#[test]
fn levels_are_those_of_the_official_allocation() {
    let Some(files) = Golden::all("baq") else { return };
    for golden in &files {
        let bits = golden.param("wbits").as_f64().unwrap();
        let losses: Vec<f32> = golden.floats("loss_vec").iter().copied().collect();
        let ours = closed::column_levels(&losses, bits).unwrap();
        let official = golden.floats("levels_per_column");
        let differ = ours.iter().zip(&official).filter(|(a, b)| **a != **b as u32).count();
        let mean = ours.iter().map(|l| f64::from(*l).log2()).sum::<f64>() / ours.len() as f64;
        println!("{}: {differ} of {} levels differ, {mean:.5} bits", golden.name, ours.len());
        assert_eq!(differ, 0, "{}", golden.name);
        assert!((mean - golden.figure("mean_bits").unwrap()).abs() < 1e-4);
        let doubles: Vec<f64> = losses.iter().map(|l| f64::from(*l)).collect();
        let gain = 1.0 / closed::gain(&doubles);
        assert!((gain - golden.figure("gain_geo_over_arith").unwrap()).abs() < 1e-4, "{gain}");
    }
    println!("golden files checked: baq {}", files.len());
    assert!(files.len() >= 3, "golden vectors are missing");
}
