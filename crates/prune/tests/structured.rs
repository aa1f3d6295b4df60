//! The axes of structured pruning, and ZipLM as their composition, against slow references.

mod blocks;

use blocks::{HIDDEN, Small, correlated, random, refit};
use proptest::prelude::*;
use tensorpress_allocate::Stopwatch;
use tensorpress_prune::ChannelMetric;
use tensorpress_prune::structured::{
    Allocation, Judged, Latency, Module, Repair, Structured, Track, Units, least_squares,
    search_coefficients, surgeon, ziplm,
};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{ErrorKind, Method, Rewrite, Usable};

fn gram(x: &Array2<f32>) -> Array2<f32> {
    x.t().dot(x)
}

fn yes<T>(usable: Usable<T>) -> T {
    match usable {
        Usable::Yes(value) => value,
        Usable::No(reason) => panic!("{reason}"),
    }
}

fn columns(units: &[usize], width: usize) -> Vec<usize> {
    units.iter().flat_map(|u| u * width..(u + 1) * width).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    /// Each step is the unit whose loss raises the error of a direct refit least, and costs just that. Fails if weights or
    /// the inverse are not brought up to date after a step, or if the pivot of a unit is taken for its diagonal.
    #[test]
    fn the_surgeon_takes_what_a_direct_refit_misses_least(
        units in 1usize..8,
        width in 1usize..4,
        outputs in 1usize..6,
        seed in any::<u64>(),
    ) {
        let inputs = units * width;
        let (w, h) = (random(outputs, inputs, seed), gram(&correlated(40, inputs, seed ^ 9)));
        let track = yes(surgeon(w.view(), h.view(), width, 0.01, Par::Seq).unwrap());
        let again = yes(surgeon(w.view(), h.view(), width, 0.01, Par::Threads(3)).unwrap());
        prop_assert_eq!(&track, &again);
        let mut left: Vec<usize> = (0..units).collect();
        let mut before = 0.0;
        let (_, whole) = refit(&w, &h, &[], 0.01);
        for (unit, step) in track.order.iter().zip(&track.steps) {
            let without = |gone: usize| {
                let kept: Vec<usize> = left.iter().copied().filter(|u| *u != gone).collect();
                refit(&w, &h, &columns(&kept, width), 0.01).1
            };
            let here = without(*unit);
            let best = left.iter().map(|u| without(*u)).fold(f64::INFINITY, f64::min);
            prop_assert!(here <= best + 1e-7 * whole, "{here} {best}");
            prop_assert!((here - before - step).abs() <= 1e-7 * whole, "{here} {before} {step}");
            before = here;
            left.retain(|u| u != unit);
        }
        prop_assert!((track.lost()[units] - whole).abs() <= 1e-7 * whole);
    }

    #[test]
    fn least_squares_are_the_normal_equations(
        inputs in 2usize..12,
        outputs in 1usize..6,
        kept in proptest::collection::btree_set(0usize..12, 1..12),
        seed in any::<u64>(),
    ) {
        let kept: Vec<usize> = kept.into_iter().filter(|k| *k < inputs).collect();
        prop_assume!(!kept.is_empty());
        let (w, h) = (random(outputs, inputs, seed), gram(&correlated(40, inputs, seed ^ 9)));
        let made = yes(least_squares(w.view(), h.view(), &kept, 0.02, Par::Seq).unwrap());
        let (want, _) = refit(&w, &h, &kept, 0.02);
        let size = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        for (a, b) in made.iter().zip(&want) {
            prop_assert!((f64::from(*a) - b).abs() < 1e-5 * size, "{a} {b}");
        }
    }

    /// No other choice of levels within the budget loses less: fails if levels are chosen block by block.
    #[test]
    fn levels_are_the_best_of_all(
        steps in proptest::collection::vec(proptest::collection::vec(0.01f64..9.0, 2..5), 1..5),
        sparsity in 0.05f64..0.6,
        coefficients in any::<bool>(),
    ) {
        let track = |steps: &Vec<f64>| Track::new((0..steps.len()).collect(), steps.clone()).unwrap();
        let blocks: Vec<Judged> = steps
            .iter()
            .enumerate()
            .map(|(i, steps)| {
                let units = Units::new(track(steps), 3 + i as u64);
                let weights = units.weights * steps.len() as u64 + 2;
                Judged::new(weights).with_units(Module::Channels, units)
            })
            .collect();
        let counts: Vec<f64> = match coefficients {
            true => (0..steps.len()).map(|i| 1.0 / (1 + i * i) as f64).collect(),
            false => Vec::new(),
        };
        let levels = Allocation::Levels { latency: None, coefficients: counts.clone() };
        let all: u64 = blocks.iter().map(|b| b.weights).sum();
        let cost = |gone: &[usize]| -> u64 {
            all - gone.iter().enumerate().map(|(i, g)| (3 + i as u64) * *g as u64).sum::<u64>()
        };
        let loss = |gone: &[usize]| -> f64 {
            let each = gone.iter().zip(&steps).enumerate().map(|(i, (gone, steps))| {
                let count = counts.get(i).copied().unwrap_or(1.0);
                count * steps[..*gone].iter().sum::<f64>() / steps.iter().sum::<f64>()
            });
            each.sum()
        };
        let mut choices: Vec<Vec<usize>> = vec![Vec::new()];
        for steps in &steps {
            let more = |c: &Vec<usize>| (0..steps.len()).map(|g| [c.clone(), vec![g]].concat()).collect::<Vec<_>>();
            choices = choices.iter().flat_map(more).collect();
        }
        let fits = |gone: &&Vec<usize>| cost(gone) as f64 <= all as f64 * (1.0 - sparsity) + 1e-9;
        let best = choices.iter().filter(fits).map(|gone| loss(gone)).fold(f64::INFINITY, f64::min);
        match levels.settle(sparsity, &blocks) {
            Ok(gone) => {
                let gone: Vec<usize> = gone.iter().map(|g| g[1]).collect();
                prop_assert!(fits(&&gone));
                prop_assert!((loss(&gone) - best).abs() < 1e-9, "{} {best}", loss(&gone));
            }
            Err(e) => {
                prop_assert!(best.is_infinite() && e.message().contains("sparsity = "), "{e}");
            }
        }
    }

    /// The whole way: within the budget, what stays is the refit of the original, whatever the shapes.
    #[test]
    fn ziplm_leaves_the_best_fit_of_what_stays(
        heads in prop_oneof![Just((1, 1)), Just((2, 2)), Just((4, 2)), Just((3, 3))],
        dim in 1usize..4,
        inner in 1usize..14,
        sparsity in 0.0f64..0.5,
        seed in any::<u64>(),
    ) {
        let small = Small::new(2, heads, dim, inner, 50, seed);
        let method = ziplm().with_sparsity(sparsity);
        let (decisions, edits) = match small.run(&method) {
            Ok(done) => done,
            Err(e) => {
                prop_assert_eq!(e.kind(), ErrorKind::InvalidArgument);
                prop_assert!(e.message().contains("sparsity = "), "{}", e);
                return Ok(());
            }
        };
        let [all, left] = small.weights(&edits);
        prop_assert!(left as f64 <= all as f64 * (1.0 - sparsity) + 1e-6);
        for (block, (decision, edit)) in decisions.iter().zip(&edits).enumerate() {
            for (module, name, input) in [
                (Module::Attention, "o", SharedInput::AttentionOutput),
                (Module::Channels, "down", SharedInput::MlpOutput),
            ] {
                let name = format!("layers.{block}.{name}.weight");
                let units = decision.kept(module.name()).unwrap();
                prop_assert!(!units.is_empty());
                let w = small.matrix(&name);
                let width = if module == Module::Channels { 1 } else { w.ncols() / heads.1 };
                let h = small.inputs[block][&input].gram().unwrap().clone();
                let (want, _) = refit(&w, &h, &columns(units, width), method.damp);
                let got = small.edited(edit, &name);
                prop_assert_eq!(got.dim(), want.dim());
                let size = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                prop_assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4 * size));
                let gate = small.edited(edit, &format!("layers.{block}.gate.weight"));
                prop_assert!(module != Module::Channels || gate.nrows() == units.len());
            }
        }
    }
}

/// Outputs move less with the repair than without, and less by the surgeon's order than by norms: fails if either is taken
/// out.
#[test]
fn repair_and_order_both_help() {
    let small = Small::new(1, (2, 2), 2, 24, 200, 5);
    let error = |method: &dyn Rewrite| {
        let (decisions, edits) = small.run(method).unwrap();
        let kept = decisions[0].kept("channels").unwrap();
        let name = "layers.0.down.weight";
        let (w, mut lost) = (small.matrix(name), small.matrix(name));
        for (column, unit) in small.edited(&edits[0], name).columns().into_iter().zip(kept) {
            let mut from = lost.column_mut(*unit);
            from -= &column;
        }
        for unit in (0..w.ncols()).filter(|unit| !kept.contains(unit)) {
            lost.column_mut(unit).assign(&w.column(unit));
        }
        let h = small.inputs[0][&SharedInput::MlpOutput].gram().unwrap();
        (&lost.dot(h) * &lost).sum()
    };
    let uniform =
        || ziplm().with_allocation(Allocation::Uniform).with_sparsity(0.4).with_damp(1e-4);
    let whole = error(&uniform());
    let plain = error(&uniform().with_repair(Repair::None));
    let norms =
        Structured::new("test", ChannelMetric::Wifn, Allocation::Uniform, Repair::LeastSquares);
    let norms = error(&norms.with_sparsity(0.4).with_damp(1e-4));
    println!("surgeon {whole:.3}, without repair {plain:.3}, by norms and repaired {norms:.3}");
    assert!(whole < 0.5 * plain && whole < norms);
}

/// Costs that the caller measured decide: where channels cost no time, heads go.
#[test]
fn levels_follow_a_latency_table() {
    let small = Small::new(2, (4, 4), 2, 12, 60, 3);
    let heads_matter = Latency::new(vec![100, 200, 300, 400], vec![0; 12]);
    let channels_matter = Latency::new(vec![0; 4], (1..=12).map(|n| n * 100).collect());
    let gone = |latency: Latency| {
        let levels = Allocation::Levels { latency: Some(latency), coefficients: Vec::new() };
        let (decisions, _) =
            small.run(&ziplm().with_sparsity(0.5).with_allocation(levels)).unwrap();
        let left = |name| -> usize { decisions.iter().map(|d| d.kept(name).unwrap().len()).sum() };
        [8 - left("attention"), 24 - left("channels")]
    };
    assert_eq!(gone(heads_matter), [4, 0]);
    assert_eq!(gone(channels_matter), [0, 12]);
    let short =
        Allocation::Levels { latency: Some(Latency::new(vec![1], vec![1])), coefficients: vec![] };
    let error = small.run(&ziplm().with_allocation(short)).unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidArgument
            && error.message().contains("latency: 1 entries")
    );
    let wrong = Allocation::Levels { latency: None, coefficients: vec![1.0, f64::NAN] };
    let error = small.run(&ziplm().with_allocation(wrong)).unwrap_err();
    assert!(error.message().contains("coefficients"), "{error}");
    let mut runs = Vec::new();
    let stopwatch = Stopwatch::new().with_repeats(1).with_warm_up(0);
    let table = Latency::measured(&stopwatch, [2, 3], &mut |module, kept| {
        runs.push((module, kept));
        Ok(())
    });
    let table = table.unwrap();
    assert_eq!((table.attention.len(), table.channels.len(), runs.len()), (2, 3, 5));
    assert_eq!(runs[4], (Module::Channels, 3));
}

/// The search comes nearer to coefficients that only it does not know, and repeats itself.
#[test]
fn coefficients_are_found_by_search() {
    let hidden = [0.9, 0.1, 0.4, 0.7];
    let mut calls = 0;
    let mut loss = |c: &[f64]| {
        calls += 1;
        Ok(c.iter().zip(&hidden).map(|(a, b)| (a - b) * (a - b)).sum::<f64>())
    };
    let (found, least) = search_coefficients(4, 400, 3, &mut loss).unwrap();
    assert!(least < 0.01 && least == loss(&found).unwrap());
    let again = search_coefficients(4, 400, 3, &mut loss).unwrap();
    assert_eq!((found, least), again);
    assert_eq!(calls, 803);
    assert!(search_coefficients(2, 3, 0, &mut |_| Ok(f64::NAN)).is_err());
    assert_eq!(search_coefficients(0, 3, 0, &mut |_| Ok(2.0)).unwrap(), (Vec::new(), 2.0));
}

/// Nothing known, nothing moving, no number: a defined result, and said.
#[test]
fn statistics_that_cannot_be_used_are_said() {
    let mut small = Small::new(2, (2, 2), 2, 10, 40, 8);
    small.inputs[0].insert(SharedInput::MlpOutput, Calibration::none(10));
    small.inputs[1].insert(
        SharedInput::MlpOutput,
        Calibration::from_samples(Array2::zeros((30, 10)), Par::Seq),
    );
    let mut x = correlated(30, 4, 1);
    x[[3, 1]] = f32::NAN;
    small.inputs[1].insert(SharedInput::AttentionOutput, Calibration::from_samples(x, Par::Seq));
    let judgements = small.judge(&ziplm()).unwrap();
    let notes = |block: usize, name: &str| {
        judgements[block]
            .notes()
            .get(&format!("layers.{block}.{name}.weight"))
            .cloned()
            .unwrap_or_default()
    };
    assert!(
        notes(0, "down").contains("no calibration token: judged by norms"),
        "{}",
        notes(0, "down")
    );
    assert!(notes(1, "down").contains("all its inputs were zero"), "{}", notes(1, "down"));
    assert!(notes(1, "o").contains("judged by norms"), "{}", notes(1, "o"));
    assert!(notes(0, "o").is_empty());
    let (_, edits) = small.run(&ziplm().with_sparsity(0.4)).unwrap();
    for (block, edit) in edits.iter().enumerate() {
        let down = small.edited(edit, &format!("layers.{block}.down.weight"));
        assert!(down.iter().all(|w| w.is_finite()));
    }
    // A channel that never moves goes first.
    let mut x = correlated(40, 10, 4);
    x.column_mut(6).fill(0.0);
    small.inputs[0].insert(SharedInput::MlpOutput, Calibration::from_samples(x, Par::Seq));
    let first = small.judge(&ziplm()).unwrap()[0].values("channels.order").unwrap()[0];
    assert_eq!(first, 6.0);
    let mut weight = small.matrix("layers.1.down.weight");
    weight[[2, 3]] = f32::INFINITY;
    small.set("layers.1.down.weight", &weight);
    let error = small.judge(&ziplm()).unwrap_err();
    assert_eq!(
        (error.kind(), error.tensor()),
        (ErrorKind::Numerical, Some("layers.1.down.weight"))
    );
    assert!(error.message().contains("weight [2, 3] is inf"), "{error}");
}

#[test]
fn absurd_parameters_are_refused() {
    for (method, part) in [
        (ziplm().with_sparsity(1.0), "sparsity = 1: allowed are 0 to below 1"),
        (ziplm().with_sparsity(f64::NAN), "sparsity = NaN"),
        (ziplm().with_damp(-1.0), "damp = -1: allowed are 0 and more"),
        (ziplm().with_multiple(0), "multiple = 0: allowed are 1 and more"),
    ] {
        let error = method.check().unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidArgument && error.message().contains(part),
            "{error}"
        );
    }
    let small = Small::new(2, (2, 2), 2, 10, 40, 8);
    let error = small.run(&ziplm().with_sparsity(0.95)).unwrap_err();
    assert!(error.message().contains("a unit of each module stays"), "{error}");
    let (x, w) = (correlated(20, 6, 1), random(HIDDEN, 6, 2));
    let h = gram(&x);
    assert_eq!(
        surgeon(w.view(), h.view(), 4, 0.0, Par::Seq).unwrap_err().kind(),
        ErrorKind::ShapeMismatch
    );
    for kept in [&[][..], &[2, 1], &[6]] {
        let error = least_squares(w.view(), h.view(), kept, 0.0, Par::Seq).unwrap_err();
        assert!(error.message().contains("ascending numbers below 6"), "{error}");
    }
    let method = ziplm();
    assert_eq!((method.id(), method.keeps_blocks_alike()), ("ziplm", false));
    // Nothing asked for, nothing changed.
    let (_, edits) = small.run(&ziplm().with_sparsity(0.0)).unwrap();
    assert!(edits.iter().all(|edit| edit.changes().is_empty()));
}
