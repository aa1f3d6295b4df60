//! PruneNet: distances of distributions, the search, and that the search is for something.

mod blocks;

use blocks::{Small, random};
use proptest::prelude::*;
use tensorpress_prune::structured::{Spectrum, kolmogorov_smirnov, log_gradient, prunenet};
use tensorpress_tensor::linalg::svd;
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::{ErrorKind, Method, Rewrite};

fn spectrum(w: &Array2<f32>) -> Vec<f64> {
    svd(w.mapv(f64::from).view()).unwrap().s.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// The largest difference of distribution functions, tried at every value.
    #[test]
    fn distances_are_those_of_distribution_functions(
        a in proptest::collection::vec(-3i8..4, 1..12),
        b in proptest::collection::vec(-3i8..4, 1..12),
    ) {
        let wide = |v: &[i8]| -> Vec<f64> { v.iter().map(|v| f64::from(*v)).collect() };
        let (a, b) = (wide(&a), wide(&b));
        let below = |v: &[f64], x: f64| v.iter().filter(|v| **v <= x).count() as f64 / v.len() as f64;
        let want = a.iter().chain(&b).map(|x| (below(&a, *x) - below(&b, *x)).abs()).fold(0.0, f64::max);
        prop_assert!((kolmogorov_smirnov(&a, &b) - want).abs() < 1e-12);
        prop_assert_eq!(kolmogorov_smirnov(&a, &a), 0.0);
    }

    /// What logits are moved along, by finite differences.
    #[test]
    fn the_gradient_is_that_of_the_draws(rows in 1usize..7, gone in 0usize..7, seed in any::<u64>()) {
        let gone = gone.min(rows);
        let logits: Vec<f64> = random(1, rows, seed).iter().map(|v| f64::from(*v)).collect();
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_by_key(|i| (i * 7 + seed as usize % 13) % 11);
        let log = |logits: &[f64]| -> f64 {
            (0..gone).map(|at| {
                let left: f64 = order[at..].iter().map(|i| logits[*i].exp()).sum();
                logits[order[at]] - left.ln()
            }).sum()
        };
        for (row, got) in log_gradient(&logits, &order, gone).into_iter().enumerate() {
            let at = |d: f64| { let mut l = logits.clone(); l[row] += d; log(&l) };
            let want = (at(1e-5) - at(-1e-5)) / 2e-5;
            prop_assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    /// The distance it says is that of the rows it keeps, by a full decomposition; the same seed, the same rows.
    #[test]
    fn the_search_says_what_it_finds(rows in 2usize..14, cols in 1usize..8, share in 0.0f64..0.9, seed in any::<u64>()) {
        let w = random(rows, cols, seed);
        let gone = (rows as f64 * share) as usize;
        let search = Spectrum::default().with_seed(seed % 100);
        let (order, distance) = search.order(w.view(), gone).unwrap();
        prop_assert_eq!(search.order(w.view(), gone).unwrap(), (order.clone(), distance));
        let mut kept = order[gone..].to_vec();
        kept.sort_unstable();
        kept.dedup();
        prop_assert_eq!(kept.len(), rows - gone);
        // Rounding turns ties over: a step of the distribution function.
        let want = kolmogorov_smirnov(&spectrum(&w), &spectrum(&w.select(Axis(0), &kept)));
        let step = 1.0 / cols.min(rows) as f64 + 1.0 / cols.min(kept.len()) as f64;
        prop_assert!((want - distance).abs() <= step * f64::from(u8::from(gone == 0)) + 1e-9, "{want} {distance}");
    }
}

/// It finds nearer spectra than chance, and comes near the best of all sets. Fails where the distance is not looked at.
#[test]
fn the_search_is_better_than_chance() {
    let (mut searched, mut chance, mut best) = (0.0, 0.0, 0.0);
    for seed in 0..6 {
        // Rows of very unequal lengths.
        let mut w = random(10, 5, seed);
        for (i, mut row) in w.rows_mut().into_iter().enumerate() {
            row.mapv_inplace(|v| v * (0.1 + i as f32));
        }
        let whole = spectrum(&w);
        let distance =
            |kept: &[usize]| kolmogorov_smirnov(&whole, &spectrum(&w.select(Axis(0), kept)));
        searched += Spectrum::default().with_rounds(12).order(w.view(), 4).unwrap().1;
        let mut all = Vec::new();
        for mask in 0u32..1 << 10 {
            if mask.count_ones() == 6 {
                let kept: Vec<usize> = (0..10).filter(|i| mask >> i & 1 == 1).collect();
                all.push(distance(&kept));
            }
        }
        chance += all.iter().sum::<f64>() / all.len() as f64;
        best += all.iter().copied().fold(1.0, f64::min);
    }
    println!("searched {searched:.3}, by chance {chance:.3}, best of all {best:.3}");
    assert!(searched < 0.5 * (chance + best), "{searched} {chance} {best}");
}

#[test]
fn channels_go_everywhere_alike() {
    let small = Small::new(2, (2, 2), 2, 12, 5, 3);
    let (decisions, edits) = small.run(&prunenet().with_sparsity(0.2)).unwrap();
    let kept: Vec<usize> = decisions.iter().map(|d| d.kept("channels").unwrap().len()).collect();
    assert!(kept[0] == kept[1] && kept[0] < 12, "{kept:?}");
    for (block, (decision, edit)) in decisions.iter().zip(&edits).enumerate() {
        let units = decision.kept("channels").unwrap();
        for (part, axis) in [("gate", 0), ("up", 0), ("down", 1)] {
            let name = format!("layers.{block}.{part}.weight");
            assert_eq!(small.edited(edit, &name), small.matrix(&name).select(Axis(axis), units));
        }
        // What goes is what the search of this very number let go.
        let up = small.matrix(&format!("layers.{block}.up.weight"));
        let (order, _) = Spectrum::default().order(up.view(), 12 - kept[0]).unwrap();
        assert!(units.iter().all(|unit| order[12 - kept[0]..].contains(unit)));
    }
    let method = prunenet();
    assert!(method.needs().is_none() && method.keeps_blocks_alike() && !method.needs_states());
}

#[test]
fn what_is_absurd_is_refused() {
    let w = random(3, 4, 1);
    assert_eq!(
        Spectrum::default().order(w.view(), 3).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    let mut method = prunenet();
    method.score.rate = f64::INFINITY;
    assert!(method.check().unwrap_err().message().contains("rate = inf"));
    method.score = Spectrum::default().with_draws(0);
    assert!(method.check().unwrap_err().message().contains("draws = 0"));
    method.score = Spectrum::default().with_rounds(0);
    assert!(method.check().unwrap_err().message().contains("rounds = 0"));
    let nan = Array2::from_elem((3, 4), f32::NAN);
    assert_eq!(Spectrum::default().order(nan.view(), 1).unwrap_err().kind(), ErrorKind::Numerical);
    assert!(Spectrum::default().order(Array2::zeros((3, 4)).view(), 1).is_ok());
    assert_eq!(kolmogorov_smirnov(&[], &[1.0]), 1.0);
    assert_eq!(kolmogorov_smirnov(&[], &[]), 0.0);
}
