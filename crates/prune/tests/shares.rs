//! CFSP and MoDeGPT: what they score and how they share out, by the formulas; and the decompositions of heads.

mod blocks;

use blocks::{HIDDEN, Small, correlated, random, refit, solve};
use proptest::prelude::*;
use tensorpress_prune::structured::{
    Activated, Allocation, Module, Normalised, Repair, Score, Track, cfsp, leverages, modegpt,
    query_key, sigmoid_shares, softmax_shares, value_output,
};
use tensorpress_tensor::linalg::{Par, svd};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, concatenate};
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{ErrorKind, Method, Rewrite, Usable};

fn yes<T>(usable: Usable<T>) -> T {
    match usable {
        Usable::Yes(value) => value,
        Usable::No(reason) => panic!("{reason}"),
    }
}

/// The score of neuron j by the formula, entry by entry.
fn cfsp_score(small: &Small, j: usize, normalised: Normalised) -> f64 {
    let x = small.inputs[0][&SharedInput::MlpOutput].samples().unwrap();
    let norm = |j: usize| x.column(j).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let name = |part: &str| format!("layers.0.{part}.weight");
    let down = small.matrix(&name("down"));
    let [up, gate] = ["up", "gate"].map(|part| small.matrix(&name(part)).t().to_owned());
    let mut score = 0.0;
    for (weight, active) in [(down, true), (up, false), (gate, false)] {
        let value = |i: usize, j: usize| {
            f64::from(weight[[i, j]].abs()) * if active { norm(j) } else { 1.0 }
        };
        let mean = (0..weight.nrows()).map(|i| {
            let over: f64 = match normalised {
                Normalised::Neuron => (0..weight.nrows()).map(|i| value(i, j)).sum(),
                Normalised::Outputs => (0..weight.ncols()).map(|j| value(i, j)).sum(),
            };
            value(i, j) / over
        });
        score += mean.sum::<f64>() / weight.nrows() as f64;
    }
    score * norm(j)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn cfsp_scores_neurons_by_the_formula(inner in 1usize..12, tokens in 1usize..30, seed in any::<u64>()) {
        let small = Small::new(1, (2, 1), 2, inner, tokens, seed);
        for normalised in [Normalised::Neuron, Normalised::Outputs] {
            let score = Activated::default().with_normalised(normalised);
            let track = yes(small.part(0, Module::Channels, |part| score.track(part)).unwrap());
            for (j, score) in track.by_unit().into_iter().enumerate() {
                let want = cfsp_score(&small, j, normalised);
                prop_assert!((score - want).abs() < 1e-6 * want, "{score} {want}");
            }
        }
    }

    /// As in the released code, step by step. Fails where all blocks keep the same.
    #[test]
    fn blocks_that_turn_more_keep_more(
        distances in proptest::collection::vec(0.0f64..0.5, 1..9),
        kept in 0.1f64..0.95,
        steepness in 0.0f64..30.0,
    ) {
        let n = distances.len() as f64;
        let mid = distances.iter().sum::<f64>() / n;
        let mut want: Vec<f64> =
            distances.iter().map(|d| 1.0 / (1.0 + (-(d - mid) * steepness).exp())).collect();
        let mut avg = want.iter().sum::<f64>() / n;
        let top = want.iter().copied().fold(0.0, f64::max);
        if top > avg && top / avg * kept >= 1.0 {
            let factor = avg * (1.0 / kept - 1.0) / (top - avg) / 1.05;
            for share in &mut want {
                *share = if *share > avg { avg + (*share - avg) * factor } else { avg - (avg - *share) * factor };
            }
            avg = want.iter().sum::<f64>() / n;
        }
        let got = sigmoid_shares(&distances, steepness, kept);
        for (got, want) in got.iter().zip(&want) {
            prop_assert!((got - (want / avg * kept).min(1.0)).abs() < 1e-12);
        }
        prop_assert!((got.iter().sum::<f64>() / n - kept).abs() < 1e-9);
        for (a, da) in got.iter().zip(&distances) {
            for (b, db) in got.iter().zip(&distances) {
                prop_assert!(da < db || a >= b || steepness == 0.0);
            }
        }
    }

    /// L x mean x softmax(-s / epsilon), and what does not fit in proportion to the others.
    #[test]
    fn blocks_of_less_influence_lose_more(
        influences in proptest::collection::vec(0.0f64..1.0, 1..9),
        epsilon in 0.02f64..10.0,
        mean in 0.0f64..0.9,
    ) {
        let n = influences.len() as f64;
        let got = softmax_shares(&influences, epsilon, mean);
        prop_assert!((got.iter().sum::<f64>() / n - mean).abs() < 1e-9, "{got:?}");
        prop_assert!(got.iter().all(|share| (0.0..=1.0).contains(share)));
        let weights: Vec<f64> = influences.iter().map(|s| (-s / epsilon).exp()).collect();
        let sum: f64 = weights.iter().sum();
        if weights.iter().all(|w| n * mean * w / sum < 1.0) {
            for (got, w) in got.iter().zip(&weights) {
                prop_assert!((got - n * mean * w / sum).abs() < 1e-9);
            }
        }
        // One factor for all that are not full.
        let open: Vec<f64> = got.iter().zip(&weights).filter(|(s, _)| **s < 1.0).map(|(s, w)| s / w).collect();
        prop_assert!(open.windows(2).all(|p| (p[0] - p[1]).abs() <= 1e-6 * p[0].abs()), "{open:?}");
    }

    #[test]
    fn leverages_are_those_of_the_formula(channels in 1usize..10, damp in 1e-3f64..1.0, seed in any::<u64>()) {
        let x = correlated(30, channels, seed);
        let gram = x.t().dot(&x);
        let got = yes(leverages(gram.view(), damp, Par::Seq).unwrap());
        let c = gram.mapv(f64::from);
        let ridge = damp * c.diag().sum() / channels as f64;
        let mut sum = c.clone();
        sum.diag_mut().mapv_inplace(|v| v + ridge);
        let whole = solve(sum, c);
        for (got, want) in got.iter().zip(whole.diag()) {
            prop_assert!((got - want).abs() < 1e-8, "{got} {want}");
        }
    }

    /// ‖(M W_V - P V) C^½‖² is the sum of the squares of the singular values left out: no factors of this width lose less.
    #[test]
    fn values_and_outputs_lose_least(
        width in 1usize..5,
        heads in 1usize..4,
        rank in 1usize..5,
        tokens in 2usize..20,
        seed in any::<u64>(),
    ) {
        let x = correlated(tokens, 7, seed);
        let gram = x.t().dot(&x);
        let value = random(width, 7, seed ^ 3);
        let outputs: Vec<Array2<f32>> = (0..heads).map(|h| random(HIDDEN, width, seed ^ (50 + h as u64))).collect();
        let views: Vec<ArrayView2<'_, f32>> = outputs.iter().map(|o| o.view()).collect();
        let made = value_output(gram.view(), value.view(), &views, rank).unwrap();
        prop_assert_eq!((made.value.nrows(), made.outputs.len()), (rank.min(width), heads));
        let new: Vec<ArrayView2<'_, f32>> = made.outputs.iter().map(|o| o.view()).collect();
        let product = |outputs: &[ArrayView2<'_, f32>], value: &Array2<f32>| {
            concatenate(Axis(0), outputs).unwrap().mapv(f64::from).dot(&value.mapv(f64::from))
        };
        let exact = product(&views, &value).dot(&x.t().mapv(f64::from));
        let lost = &exact - &product(&new, &made.value).dot(&x.t().mapv(f64::from));
        let spectrum = svd(exact.view()).unwrap().s;
        let least: f64 = spectrum.iter().skip(rank).map(|s| s * s).sum();
        let whole: f64 = spectrum.iter().map(|s| s * s).sum();
        let lost: f64 = lost.iter().map(|v| v * v).sum();
        prop_assert!((lost - least).abs() < 1e-5 * whole, "{lost} {least}");
    }

    /// Scores by outputs of queries and keys, token by token; pairs that turn together stay together.
    #[test]
    fn queries_and_keys_keep_their_strongest(
        half in 1usize..5,
        heads in 1usize..3,
        rotary in any::<bool>(),
        share in 0.1f64..1.0,
        seed in any::<u64>(),
    ) {
        let width = 2 * half;
        let x = correlated(25, 7, seed);
        let queries: Vec<Array2<f32>> = (0..heads).map(|h| random(width, 7, seed ^ (9 + h as u64))).collect();
        let key = random(width, 7, seed ^ 77);
        let kept = ((width as f64 * share) as usize).max(1);
        let views: Vec<ArrayView2<'_, f32>> = queries.iter().map(|q| q.view()).collect();
        let stay = query_key(x.t().dot(&x).view(), &views, key.view(), kept, rotary).unwrap();
        let energy = |w: &Array2<f32>, i: usize| -> f64 {
            x.dot(&w.row(i)).iter().map(|v| f64::from(*v).powi(2)).sum()
        };
        let score = |i: usize| {
            (queries.iter().map(|q| energy(q, i)).sum::<f64>() * energy(&key, i)).sqrt()
        };
        let gone: Vec<usize> = (0..width).filter(|i| !stay.contains(i)).collect();
        if rotary {
            prop_assert_eq!(stay.len(), 2 * (kept / 2).max(1));
            let pair = |i: usize| score(i % half) + score(i % half + half);
            prop_assert!(stay.iter().all(|i| stay.contains(&((i + half) % width))));
            prop_assert!(stay.iter().all(|i| gone.iter().all(|j| pair(*i) >= pair(*j) * (1.0 - 1e-4))));
        } else {
            prop_assert_eq!(stay.len(), kept);
            prop_assert!(stay.iter().all(|i| gone.iter().all(|j| score(*i) >= score(*j) * (1.0 - 1e-4))));
        }
    }
}

/// The blocks' shares reach the blocks: fails where allocations do not look at states.
#[test]
fn a_block_that_turns_its_states_keeps_its_channels() {
    let mut small = Small::new(3, (2, 1), 2, 40, 50, 4);
    // Block 1 leaves its states as they are.
    small.states[1][1] = small.states[1][0].clone();
    let left = |method: &dyn Rewrite| -> Vec<usize> {
        let (decisions, _) = small.run(method).unwrap();
        assert!(decisions.iter().all(|d| d.kept("attention").unwrap().len() == 1));
        decisions.iter().map(|d| d.kept("channels").unwrap().len()).collect()
    };
    for left in [left(&cfsp().with_multiple(1)), left(&modegpt().with_sparsity(0.1))] {
        assert!(left[1] < left[0] && left[1] < left[2], "{left:?}");
    }
    let uniform = left(&cfsp().with_multiple(1).with_allocation(Allocation::Uniform));
    assert!(uniform.iter().all(|kept| *kept == uniform[0]));
    let multiples = left(&cfsp().with_multiple(8));
    assert!(multiples.iter().all(|kept| kept % 8 == 0), "{multiples:?}");
    // A fifth of all weights, from channels alone.
    let (_, edits) = small.run(&cfsp().with_multiple(1)).unwrap();
    let [all, left] = small.weights(&edits);
    assert!((left as f64 / all as f64 - 0.8).abs() < 0.02, "{left} of {all}");
}

/// Nyström's W_D' = (Sᵀ C S)⁻¹ Sᵀ C W_D, and it loses less than the same channels without it: fails without the repair.
#[test]
fn modegpt_approximates_by_nystrom() {
    let small = Small::new(2, (2, 1), 2, 20, 80, 9);
    let method = modegpt().with_sparsity(0.2).with_damp(1e-6);
    let (decisions, edits) = small.run(&method).unwrap();
    for (block, (decision, edit)) in decisions.iter().zip(&edits).enumerate() {
        let kept = decision.kept("channels").unwrap();
        let name = format!("layers.{block}.down.weight");
        let h = small.inputs[block][&SharedInput::MlpOutput].gram().unwrap().clone();
        let (want, error) = refit(&small.matrix(&name), &h, kept, 1e-6);
        let got = small.edited(edit, &name);
        assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3));
        let plain = method.clone().with_repair(Repair::None);
        let cut = small.edited(&small.run(&plain).unwrap().1[block], &name);
        let mut lost = small.matrix(&name).mapv(f64::from);
        for (column, unit) in cut.columns().into_iter().zip(kept) {
            let mut from = lost.column_mut(*unit);
            from -= &column.mapv(f64::from);
        }
        let without = (&lost.dot(&h.mapv(f64::from)) * &lost).sum();
        assert!(error < 0.5 * without, "{error} {without}");
    }
}

#[test]
fn what_is_absurd_is_refused() {
    for (error, part) in [
        (cfsp().with_allocation(Allocation::Sigmoid { steepness: -1.0 }).check(), "steepness = -1"),
        (modegpt().with_allocation(Allocation::Softmax { epsilon: 0.0 }).check(), "epsilon = 0"),
    ] {
        assert!(error.unwrap_err().message().contains(part));
    }
    let small = Small::new(2, (2, 1), 2, 20, 80, 9);
    let error = small.run(&modegpt().with_sparsity(0.9)).unwrap_err();
    assert!(error.message().contains("the share of the weights that units have"), "{error}");
    let (x, key) = (correlated(9, 7, 1), random(3, 7, 2));
    let gram = x.t().dot(&x);
    assert!(
        query_key(gram.view(), &[], key.view(), 2, true)
            .unwrap_err()
            .message()
            .contains("kept = 2")
    );
    assert!(
        query_key(gram.view(), &[], key.view(), 4, false).unwrap_err().message().contains("1 to 3")
    );
    let error = value_output(gram.view(), key.view(), &[random(4, 2, 1).view()], 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    assert!(value_output(gram.view(), key.view(), &[random(4, 3, 1).view()], 0).is_err());
    let error = leverages(gram.view(), 0.0, Par::Seq).unwrap_err();
    assert!(error.message().contains("damp = 0"), "{error}");
    assert!(
        Track::by_scores(&[1.0, f64::NAN]).is_err()
            && Track::new(vec![0, 0], vec![1.0; 2]).is_err()
    );
    // States that are no numbers: blocks count alike, and it is said.
    let mut small = small;
    small.states[0][1].fill(f32::NAN);
    let judged = small.judge(&cfsp()).unwrap();
    assert!(judged[0].notes()["layers.0.q.weight"].contains("no token with finite hidden states"));
    assert!(small.run(&cfsp()).is_ok() && cfsp().needs_states() && modegpt().needs_states());
    assert!(cfsp().id() == "cfsp" && modegpt().inputs().len() == 1);
}
