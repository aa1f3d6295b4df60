//! What is gathered of the gradients of a backward pass: against slow sums, finite differences and automatic differentiation.

use std::collections::BTreeMap;

use tensorpress_model::Source;
use tensorpress_model::backward::{Backward, Collector, Gradients, Labels, SecondMoment, Wanted};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, s};
use tensorpress_tensor::stats::Supply;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, Registry, Tensor};

use crate::backward::{Seen, collect, length, llama, product, run, windows};
use crate::common::{Tiny, open};
use crate::slow::{Kind, Nudge, Slow};

/// Matrices weighted by gradients against those of an independent forward pass in f64: every input is that pass's, every
/// gradient of a single output of a single token a central difference of its loss.
fn check_guided(source: &Source, kind: Kind, layers: &[&str], lengths: &[usize]) {
    const STEP: f64 = 1e-5;
    let decoder = source.decoder().unwrap().materialise().unwrap();
    let windows = windows(decoder.config().vocab, lengths);
    let mut found = BTreeMap::new();
    let wanted = |name: &str| match layers.contains(&name) {
        true => Wanted::NONE.with_guided_grams(3),
        false => Wanted::NONE,
    };
    let mut collector = Collector::new(wanted, |name, gradients: Gradients| {
        found.insert(name.to_owned(), gradients.guided_grams.unwrap());
        Ok(())
    });
    let passed = run(Backward::default(), &decoder, &windows, &mut collector).unwrap();
    drop(collector);
    assert_eq!(found.len(), layers.len());
    let mut slow = Slow::new(source, kind);
    for layer in layers {
        slow.watch = Some((*layer).to_owned());
        slow.loss(&windows, &passed.labels);
        slow.watch = None;
        let inputs = std::mem::take(&mut *slow.inputs.borrow_mut());
        let [outputs, n] = slow.tensors[*layer].dim().into();
        let groups = [0, outputs / 3, 2 * outputs / 3, outputs];
        let (mut sums, mut weights) = (Array2::<f64>::zeros((3 * n, n)), [0.0; 3]);
        for (window, x) in &inputs {
            for (t, x) in x.rows().into_iter().enumerate() {
                let mut g = |output: usize| {
                    let sides = [STEP, -STEP].map(|step| {
                        let mut by = Array2::zeros((inputs[window].nrows(), outputs));
                        by[[t, output]] = step;
                        slow.nudge =
                            Some(Nudge { layer: (*layer).to_owned(), window: *window, by });
                        slow.loss(&windows, &passed.labels)
                    });
                    (sides[0] - sides[1]) / (2.0 * STEP)
                };
                for (k, cut) in groups.windows(2).enumerate() {
                    let squares = (cut[0]..cut[1]).map(|output| g(output).powi(2)).sum::<f64>();
                    let s = squares / (cut[1] - cut[0]) as f64;
                    weights[k] += s;
                    for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        sums[[k * n + i, j]] += s * x[i] * x[j];
                    }
                }
            }
        }
        slow.nudge = None;
        for ((row, _), sum) in sums.indexed_iter_mut() {
            *sum /= weights[row / n];
        }
        let apart = length(&(found[*layer].mapv(f64::from) - &sums)) / length(&sums);
        println!("checked: {layer}, {} windows, {apart:.1e}", inputs.len());
        assert!(!inputs.is_empty() && apart < 1e-4, "{layer}: {apart}");
    }
}

#[test]
fn weighted_gram_matrices_are_those_of_finite_differences() {
    let (_folder, source) = Tiny::new(4, 2, 6).source();
    let of = |block: usize, part: &str| format!("model.layers.{block}.{part}.weight");
    let layers = [of(0, "self_attn.k_proj"), of(0, "mlp.gate_proj"), of(1, "mlp.down_proj")];
    check_guided(&source.unwrap(), llama(4, 2, 6), &layers.each_ref().map(|l| &**l), &[6, 1, 4]);
    if let Some(folder) = data::find("golden/models/gemma2") {
        let kind = Kind {
            gemma: true,
            eps: 1e-6,
            scale: 20f64.powf(-0.5),
            caps: Some([2.0, 3.0]),
            window: Some((8, 2)),
            ..llama(4, 2, 12)
        };
        check_guided(&open(folder).unwrap(), kind, &[&of(1, "self_attn.v_proj")], &[5]);
    }
    let Some(folder) = data::find("golden/models/mixtral") else { return };
    let plain = llama(4, 2, 12);
    let kind = Kind { theta: 1e6, window: Some((8, 1)), experts: Some((2, true)), ..plain };
    let layers = [of(1, "block_sparse_moe.experts.1.w2"), of(0, "block_sparse_moe.gate")];
    check_guided(&open(folder).unwrap(), kind, &layers.each_ref().map(|l| &**l), &[5, 3]);
}

#[test]
fn a_collector_gives_the_means_of_what_is_seen() {
    let mut sources = vec![Source::demo(&Registry::default()).unwrap()];
    sources.extend(data::find("golden/models/mixtral").map(|folder| open(folder).unwrap()));
    for source in sources {
        let windows = windows(source.config().vocab, &[30, 300, 2]);
        let windows: Vec<Vec<u32>> = windows
            .into_iter()
            .map(|w| w.into_iter().take(source.config().context.min(100)).collect())
            .collect();
        let mut seen = Seen::default();
        let passed = run(Backward::default(), &source, &windows, &mut seen).unwrap();
        let tokens = passed.tokens as f64;
        let found = collect(Backward::default(), &source, &windows);
        assert_eq!(found.len(), seen.finished.len());
        for (name, gradients) in &found {
            let none = Vec::new();
            let pieces = seen.pieces.get(name).unwrap_or(&none);
            let rows: usize = pieces.iter().map(|(_, g)| g.nrows()).sum();
            assert_eq!((gradients.tokens, gradients.seen), (passed.tokens, rows as u64));
            let (fisher, mean) =
                (gradients.fisher.as_ref().unwrap(), gradients.mean.as_ref().unwrap());
            let (out, inp) = fisher.dim();
            let mut expected = [(out, out), (out, inp), (out, inp)].map(Array2::<f64>::zeros);
            for (x, g) in pieces {
                expected[0] += &product(g, g);
                expected[1] +=
                    &g.mapv(|v| f64::from(v).powi(2)).t().dot(&x.mapv(|v| f64::from(v).powi(2)));
                expected[2] += &product(g, x);
            }
            let close = |got: ArrayView2<'_, f32>, expected: &Array2<f64>| {
                let apart = got.mapv(f64::from) - expected / tokens;
                length(&apart) <= 2e-6 * length(expected) / tokens
            };
            assert!(close(fisher.view(), &expected[1]), "{name}: fisher");
            // Gradients of opposite signs cancel: the mean is rounded as their sizes are.
            let apart = mean.mapv(f64::from) - &expected[2] / tokens;
            assert!(length(&apart) <= 1e-5 * expected[1].sum().sqrt(), "{name}: mean");
            let grams = gradients.guided_grams.as_ref().unwrap();
            let groups: Vec<_> = Supply::guided_gram(3).rows(out).collect();
            assert_eq!(grams.dim(), (groups.len() * inp, inp));
            for (k, rows) in groups.into_iter().enumerate() {
                let (mut sum, mut weight) = (Array2::<f64>::zeros((inp, inp)), 0.0);
                for (x, g) in pieces {
                    let g = g.slice(s![.., rows.clone()]).mapv(|g| f64::from(g).powi(2));
                    let weights = g.sum_axis(Axis(1)) / rows.len() as f64;
                    let x = x.mapv(f64::from);
                    let weighted = &x * &weights.view().insert_axis(Axis(1));
                    sum += &x.t().dot(&weighted);
                    weight += weights.sum();
                }
                // Where no gradient is but 0, or no token went.
                let expected = if weight > 0.0 { sum / weight } else { sum };
                let got = grams.slice(s![k * inp..(k + 1) * inp, ..]).mapv(f64::from);
                let apart = length(&(got - &expected));
                assert!(apart <= 2e-6 * length(&expected), "{name}: group {k}, {apart}");
            }
            match gradients.second_moment.as_ref().unwrap() {
                SecondMoment::Full(all) => {
                    assert!(out <= 100 && close(all.view(), &expected[0]), "{name}");
                    assert_eq!(all, all.t());
                }
                SecondMoment::Diagonal(diagonal) => {
                    assert!(out > 100);
                    for (i, got) in diagonal.iter().enumerate() {
                        let exact = expected[0][[i, i]] / tokens;
                        assert!((f64::from(*got) - exact).abs() <= 1e-6 * exact, "{name}");
                    }
                }
            }
        }
    }
}

/// Fisher statistics of stories260k beside those of automatic differentiation in f64 (PyTorch, the prototype's blocks), for
/// the labels that were drawn here.
#[test]
fn fisher_statistics_are_those_of_automatic_differentiation() {
    let Some(folder) = data::find("data/models/stories260k") else { return };
    let source = open(folder).unwrap();
    let windows = windows(512, &[60, 33]);
    let mut found = BTreeMap::new();
    let wanted = |_: &str| Wanted::NONE.with_second_moments(1024).with_fisher();
    let mut collector = Collector::new(wanted, |name, gradients| {
        found.insert(name.to_owned(), gradients);
        Ok(())
    });
    let how = Backward::default().with_labels(Labels::Sampled { seed: 14 });
    let passed = run(how, &source, &windows, &mut collector).unwrap();
    drop(collector);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/fisher_stories260k.safetensors");
    let vectors = Checkpoint::open(path).unwrap();
    let labels = vectors.tensor("labels").unwrap();
    let drawn: Vec<i32> = passed.labels.iter().flatten().map(|l| l.unwrap() as i32).collect();
    let bytes: Vec<u8> = drawn.iter().flat_map(|label| label.to_le_bytes()).collect();
    assert!(labels.bytes()[..] == bytes[..], "labels {drawn:?}");
    let matrices = found.iter().filter(|(name, _)| name.contains("layers."));
    let mut worst = 0.0f64;
    for (name, gradients) in matrices.clone() {
        let all = gradients.second_moment.as_ref().unwrap();
        let SecondMoment::Full(all) = all else { panic!("{name}: a diagonal") };
        let fisher = gradients.fisher.as_ref().unwrap();
        // Of the large ones the diagonal is kept, and sums of rows.
        let key = |what: &str| format!("{what}.{name}");
        let parts = [
            (key("diagonal"), all.diag().mapv(f64::from)),
            (key("first"), all.row(0).mapv(f64::from)),
            (key("rows"), fisher.mapv(f64::from).sum_axis(Axis(1))),
            (key("columns"), fisher.mapv(f64::from).sum_axis(Axis(0))),
        ];
        for (key, ours) in parts {
            let theirs = vectors.tensor(&key).unwrap().to_matrix().unwrap();
            let theirs = theirs.row(0).mapv(f64::from);
            let far = (&ours - &theirs).mapv(|v| v * v).sum().sqrt();
            worst = worst.max(far / theirs.mapv(|v| v * v).sum().sqrt());
        }
    }
    println!("{} matrices, worst {worst:.1e}", matrices.clone().count());
    assert_eq!(matrices.count(), 35);
    assert!(worst < 1e-4, "{worst}");
}
