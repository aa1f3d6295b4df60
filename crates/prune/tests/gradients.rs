//! Criteria made of gradients and relevance: NIRVANA, AMP and LRP by their formulas.

mod blocks;

use std::hash::Hasher;
use std::sync::Arc;

use blocks::{Small, random};
use proptest::prelude::*;
use tensorpress_prune::structured::{
    Allocation, Judged, Module, Relevance, Track, Units, adaptive_widths, least_divergent, nirvana,
    remove_lowest, similarity_entropy, target_relevance, taylor_importance,
};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::stats::{Calibration, Supplied, Supply};
use tensorpress_tensor::{ErrorKind, Method, Result, Rewrite};

/// A gradient for every matrix, by its name's length and its shape.
#[derive(Debug)]
struct ByName(Small);

fn gradient(name: &str, dim: (usize, usize)) -> Array2<f32> {
    let seed = name.bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    random(dim.0, dim.1, seed)
}

impl Supplied for ByName {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        let known = supply == Supply::GRADIENT && self.0.tensors.contains_key(tensor);
        Ok(known.then(|| gradient(tensor, self.0.matrix(tensor).dim())))
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        hash.write(b"by name");
        Ok(())
    }
}

fn views(all: &[Array2<f32>]) -> Vec<ArrayView2<'_, f32>> {
    all.iter().map(|one| one.view()).collect()
}

fn with_gradients(mut small: Small) -> Small {
    let by = Arc::new(ByName(small.clone()));
    for inputs in &mut small.inputs {
        for (input, width) in [
            (SharedInput::AttentionOutput, small.model.blocks[0].linears[3].shape[1]),
            (SharedInput::MlpOutput, small.model.blocks[0].linears[6].shape[1]),
        ] {
            inputs.insert(input, Calibration::none(width).with_supplied(by.clone()));
        }
    }
    small
}

/// Σ |w g| over all that a unit is made of, entry by entry. Fails if gradients are left out, or absolute values taken of
/// sums.
#[test]
fn nirvana_sums_weights_times_gradients() {
    let small = with_gradients(Small::new(2, (4, 2), 3, 16, 5, 2));
    let judged = small.judge(&nirvana()).unwrap();
    for (block, judgement) in judged.iter().enumerate() {
        assert!(judgement.notes().is_empty(), "{:?}", judgement.notes());
        let product = |part: &str| {
            let name = format!("layers.{block}.{part}.weight");
            let weight = small.matrix(&name);
            (&weight * &gradient(&name, weight.dim())).mapv(|v| f64::from(v.abs()))
        };
        let unit = |unit: usize, units: usize, writers: &[&str], reader: &str| {
            let mut sum = 0.0;
            for part in writers {
                let product = product(part);
                let rows = product.nrows() / units;
                sum += (unit * rows..(unit + 1) * rows).map(|i| product.row(i).sum()).sum::<f64>();
            }
            let product = product(reader);
            let columns = product.ncols() / units;
            sum + (unit * columns..(unit + 1) * columns)
                .map(|j| product.column(j).sum())
                .sum::<f64>()
        };
        for (module, units, writers, reader) in [
            (Module::Attention, 2, &["q", "k", "v"][..], "o"),
            (Module::Channels, 16, &["gate", "up"], "down"),
        ] {
            let [order, steps] = ["order", "steps"]
                .map(|what| judgement.values(&format!("{}.{what}", module.name())).unwrap());
            for (at, step) in order.iter().zip(&steps) {
                let want = unit(*at as usize, units, writers, reader);
                assert!((step - want).abs() < 1e-5 * want, "{step} {want}");
            }
            assert!(steps.is_sorted());
        }
    }
    let (decisions, edits) = small.run(&nirvana().with_sparsity(0.3)).unwrap();
    assert!(decisions.iter().all(|d| d.kept("channels").unwrap().len() % 8 == 0));
    let [all, left] = small.weights(&edits);
    assert!(left < all);
    // Without: by norms, and said.
    let without = Small::new(2, (4, 2), 3, 16, 5, 2);
    let judged = without.judge(&nirvana()).unwrap();
    assert!(
        judged[0].notes()["layers.0.down.weight"]
            .contains("no gradient was supplied: judged by norms")
    );
    assert!(
        without.run(&nirvana()).is_ok() && !nirvana().needs_states() && nirvana().needs().is_none()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// What goes of a module costs no more than what stays, over all blocks; heads and channels as the balance says. Fails
    /// where every block has a threshold of its own.
    #[test]
    fn one_threshold_for_the_whole_model(
        scores in proptest::collection::vec(proptest::collection::vec(0.0f64..9.0, 3..12), 1..6),
        balance in prop_oneof![Just(0.0), Just(1.0), 0.2f64..3.0],
        sparsity in 0.01f64..0.5,
    ) {
        let blocks: Vec<Judged> = scores.iter().map(|scores| {
            let channels = Units::new(Track::by_scores(scores).unwrap(), 2);
            let heads = Units::new(Track::by_scores(&scores[..3]).unwrap(), 5);
            let weights = 2 * scores.len() as u64 + 15;
            Judged::new(weights).with_units(Module::Channels, channels).with_units(Module::Attention, heads)
        }).collect();
        let gone = Allocation::Threshold { balance }.settle(sparsity, &blocks).unwrap();
        let totals = [0, 1].map(|module| -> u64 { blocks.iter().map(|b| {
            let units = b.modules[module].as_ref().unwrap();
            units.weights * units.track.order.len() as u64
        }).sum() });
        let removed = [0, 1].map(|module| -> u64 {
            gone.iter().map(|gone| gone[module] as u64 * [5, 2][module]).sum()
        });
        let all: u64 = blocks.iter().map(|b| b.weights).sum();
        prop_assert!((removed[0] + removed[1]) as f64 <= sparsity * all as f64 + 1e-9);
        let share = sparsity * all as f64 / (totals[1] as f64 + balance * totals[0] as f64);
        if share < 0.6 && balance * share < 0.3 {
            let [heads, channels] = [balance * share * totals[0] as f64, share * totals[1] as f64];
            prop_assert!(removed[0] as f64 <= heads + 1e-9 && removed[1] as f64 <= channels + 1e-9);
            prop_assert!(removed[0] as f64 > heads - 5.0 && removed[1] as f64 > channels - 2.0);
        }
        for module in 0..2 {
            let step = |block: usize, at: usize| blocks[block].modules[module].as_ref().unwrap().track.steps[at];
            let most = gone.iter().enumerate().filter(|(_, g)| g[module] > 0).map(|(b, g)| step(b, g[module] - 1));
            let most = most.fold(0.0, f64::max);
            for (block, gone) in gone.iter().enumerate() {
                let units = blocks[block].modules[module].as_ref().unwrap().track.order.len();
                prop_assert!(gone[module] < units);
                // The last unit stays whatever it costs.
                prop_assert!(gone[module] == units - 1 || step(block, gone[module]) >= most);
            }
        }
    }

    #[test]
    fn divergences_choose_samples(samples in 1usize..6, number in 0usize..6, seed in any::<u64>()) {
        let logits = |shift: u64| -> Vec<Array2<f32>> {
            (0..samples).map(|s| random(3, 5, seed ^ (shift + s as u64))).collect()
        };
        let (a, b) = (logits(1), logits(100));
        let chosen = least_divergent(&views(&a), &views(&b), number).unwrap();
        let softmax = |row: &[f32]| -> Vec<f64> {
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            row.iter().map(|v| f64::from(*v).exp() / sum).collect()
        };
        let divergence = |s: usize| -> f64 {
            (0..3).map(|t| {
                let (p, q) = (softmax(a[s].row(t).as_slice().unwrap()), softmax(b[s].row(t).as_slice().unwrap()));
                p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
            }).sum()
        };
        prop_assert_eq!(chosen.len(), number.min(samples));
        for s in 0..samples {
            let inside = chosen.contains(&s);
            prop_assert!(inside || chosen.iter().all(|c| divergence(*c) <= divergence(s) + 1e-9));
        }
    }

    /// By finite differences; the entropy by its definition. Fails if the gradient does not go through the lengths, or
    /// through both samples of a pair.
    #[test]
    fn entropies_have_the_gradient_they_say(
        samples in 1usize..5,
        channels in 1usize..5,
        temperature in 0.2f64..8.0,
        seed in any::<u64>(),
    ) {
        let features = Array2::from_shape_fn((samples, channels), |(i, j)| {
            (gaussian(seed, (i * channels + j) as u64) + if j == 0 { 0.5 } else { 0.0 }) as f32
        });
        prop_assume!(features.rows().into_iter().all(|r| r.dot(&r) > 0.05));
        let entropy = |f: &Array2<f64>| -> f64 {
            let unit = |i: usize| { let r = f.row(i).to_owned(); let n = r.dot(&r).sqrt(); r / n };
            let of = |i: usize| {
                let p: Vec<f64> = (0..samples).filter(|j| *j != i).map(|j| (temperature * unit(i).dot(&unit(j))).exp()).collect();
                let sum: f64 = p.iter().sum();
                -p.iter().map(|p| p / sum * (p / sum).ln()).sum::<f64>()
            };
            if samples > 1 { (0..samples).map(of).sum::<f64>() / samples as f64 } else { 0.0 }
        };
        let (loss, gradient) = similarity_entropy(features.view(), temperature).unwrap();
        let wide = features.mapv(f64::from);
        prop_assert!((loss - entropy(&wide)).abs() < 1e-9, "{loss} {}", entropy(&wide));
        let step = 1e-5;
        for i in 0..samples {
            for j in 0..channels {
                let at = |d: f64| { let mut f = wide.clone(); f[[i, j]] += d; entropy(&f) };
                let slope = (at(step) - at(-step)) / (2.0 * step);
                prop_assert!((slope - gradient[[i, j]]).abs() < 1e-4 * (1.0 + slope.abs()), "{slope} {}", gradient[[i, j]]);
            }
        }
    }

    /// Relevance by the formulas, entry by entry; and none is lost where every output has contributors.
    #[test]
    fn relevance_is_handed_back_whole(samples in 1usize..4, inputs in 1usize..6, outputs in 1usize..5, seed in any::<u64>()) {
        let (a, w) = (random(samples, inputs, seed), random(outputs, inputs, seed ^ 1));
        let r = random(samples, outputs, seed ^ 2).mapv(f64::from);
        for rule in [Relevance::Positive, Relevance::Epsilon(0.25)] {
            let got = rule.propagate(a.view(), w.view(), r.view()).unwrap();
            for s in 0..samples {
                let mut handed = 0.0;
                for i in 0..inputs {
                    let mut want = 0.0;
                    for j in 0..outputs {
                        let z = |i: usize| {
                            let z = f64::from(a[[s, i]]) * f64::from(w[[j, i]]);
                            if rule == Relevance::Positive { z.max(0.0) } else { z }
                        };
                        let sum: f64 = (0..inputs).map(z).sum();
                        let over = match rule {
                            Relevance::Epsilon(e) => sum + e * sum.signum(),
                            _ => sum,
                        };
                        if over != 0.0 {
                            want += z(i) / over * r[[s, j]];
                            handed += if rule == Relevance::Positive && i == 0 { r[[s, j]] } else { 0.0 };
                        }
                    }
                    prop_assert!((got[[s, i]] - want).abs() < 1e-9 * (1.0 + want.abs()));
                }
                prop_assert!(rule != Relevance::Positive || (got.row(s).sum() - handed).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn importances_are_means_of_products(tokens in 1usize..6, neurons in 1usize..6, seed in any::<u64>()) {
        let (h, g) = (random(tokens, neurons, seed), random(tokens, neurons, seed ^ 1));
        for (j, got) in taylor_importance(h.view(), g.view()).unwrap().into_iter().enumerate() {
            let want: f64 = (0..tokens).map(|t| f64::from((h[[t, j]] * g[[t, j]]).abs())).sum::<f64>() / tokens as f64;
            prop_assert!((got - want).abs() < 1e-5 * (1.0 + want));
        }
    }

    /// The width found is the least whose loss is within the allowance, where losses fall with widths, by as many
    /// bisections as it takes; and the last block comes first.
    #[test]
    fn widths_are_the_least_allowed(
        neurons in proptest::collection::vec(1usize..60, 1..4),
        needed in proptest::collection::vec(1usize..60, 3),
    ) {
        let mut seen: Vec<Vec<usize>> = Vec::new();
        let allowance = 1.02f64.ln();
        let mut loss = |widths: &[usize]| {
            seen.push(widths.to_vec());
            Ok(widths.iter().zip(&needed).map(|(w, n)| if w < n { 1.0 } else { 0.0 }).sum::<f64>())
        };
        let found = adaptive_widths(&neurons, allowance, 6, &mut loss).unwrap();
        for ((found, needed), neurons) in found.iter().zip(&needed).zip(&neurons) {
            let least = if needed > neurons { 1 } else { *needed };
            prop_assert_eq!(*found, least);
        }
        if neurons.len() > 1 && neurons.iter().all(|n| *n > 2) {
            prop_assert!(seen[1][0] == neurons[0] && seen[1].last() < neurons.last());
        }
    }

    /// Against taking them one by one from a list; the last filter of a layer stays.
    #[test]
    fn the_lowest_filters_go(
        layers in proptest::collection::vec(proptest::collection::vec(-5i8..5, 1..7), 1..4),
        share in 0.0f64..1.0,
        each in 1usize..4,
    ) {
        let filters: Vec<usize> = layers.iter().map(Vec::len).collect();
        let most: usize = filters.iter().map(|n| n - 1).sum();
        let number = (most as f64 * share) as usize;
        let mut calls = 0;
        let mut judge = |kept: &[Vec<usize>]| {
            calls += 1;
            Ok(kept.iter().zip(&layers).map(|(kept, all)| kept.iter().map(|k| f64::from(all[*k])).collect()).collect())
        };
        let kept = remove_lowest(&filters, number, each, &mut judge).unwrap();
        prop_assert_eq!(calls, number.div_ceil(each));
        let mut want: Vec<Vec<usize>> = filters.iter().map(|n| (0..*n).collect()).collect();
        for _ in 0..number {
            let mut best: Option<(i8, usize, usize)> = None;
            for (layer, kept) in want.iter().enumerate().filter(|(_, kept)| kept.len() > 1) {
                for filter in kept {
                    let here = (layers[layer][*filter], layer, *filter);
                    best = Some(best.map_or(here, |best| best.min(here)));
                }
            }
            let (_, layer, filter) = best.unwrap();
            want[layer].retain(|k| *k != filter);
        }
        prop_assert_eq!(kept, want);
    }
}

#[test]
fn what_is_absurd_is_refused() {
    let (a, b) = (random(2, 3, 1), random(2, 2, 1));
    let kind = |e: tensorpress_tensor::Error| e.kind();
    assert_eq!(kind(taylor_importance(a.view(), b.view()).unwrap_err()), ErrorKind::ShapeMismatch);
    let nan = Array2::from_elem((2, 3), f32::NAN);
    assert!(taylor_importance(a.view(), nan.view()).unwrap_err().message().contains("neuron 0"));
    assert!(similarity_entropy(a.view(), 0.0).unwrap_err().message().contains("temperature = 0"));
    assert!(
        similarity_entropy(Array2::zeros((2, 3)).view(), 1.0)
            .unwrap_err()
            .message()
            .contains("sample 0")
    );
    assert!(
        adaptive_widths(&[3, 0], 0.1, 6, &mut |_| Ok(0.0))
            .unwrap_err()
            .message()
            .contains("block 1")
    );
    assert!(
        adaptive_widths(&[3], f64::NAN, 6, &mut |_| Ok(0.0))
            .unwrap_err()
            .message()
            .contains("allowance = NaN")
    );
    let r = Array2::zeros((2, 4));
    assert_eq!(
        kind(Relevance::Positive.propagate(a.view(), a.view(), r.view()).unwrap_err()),
        ErrorKind::ShapeMismatch
    );
    let r = Array2::ones((2, 2));
    let error = Relevance::Epsilon(-1.0).propagate(a.view(), a.view(), r.view()).unwrap_err();
    assert!(error.message().contains("epsilon = -1"));
    assert!(
        Relevance::Positive
            .propagate(nan.view(), a.view(), r.view())
            .is_ok_and(|r| r.iter().all(|v| v.is_finite()))
    );
    assert_eq!(
        kind(Relevance::Epsilon(0.0).propagate(nan.view(), a.view(), r.view()).unwrap_err()),
        ErrorKind::Numerical
    );
    let zeros = Array2::zeros((2, 3));
    assert!(
        Relevance::Epsilon(0.0)
            .propagate(zeros.view(), a.view(), r.view())
            .unwrap()
            .iter()
            .all(|v| *v == 0.0)
    );
    let top = target_relevance(a.view(), &[2, 0]).unwrap();
    assert_eq!(
        (top[[0, 2]], top[[1, 0]], top.iter().filter(|v| **v == 0.0).count()),
        (f64::from(a[[0, 2]]), f64::from(a[[1, 0]]), 4)
    );
    assert!(target_relevance(a.view(), &[3, 0]).unwrap_err().message().contains("numbers below 3"));
    let mut judge = |_: &[Vec<usize>]| Ok(vec![vec![1.0]]);
    assert!(remove_lowest(&[2, 1], 2, 1, &mut judge).unwrap_err().message().contains("number = 2"));
    assert_eq!(kind(remove_lowest(&[2], 1, 1, &mut judge).unwrap_err()), ErrorKind::ShapeMismatch);
    assert!(least_divergent(&[a.view()], &[b.view()], 1).is_err());
    assert!(
        nirvana().with_allocation(Allocation::Threshold { balance: f64::NAN }).check().is_err()
    );
}
