//! Factorisations that aim at another matrix (SAES-SVD) or by other directions (Dobi-SVD) than the weights' own, against
//! their formulas in f64.

mod common;

use common::{energy, inputs, random};
use tensorpress_lowrank::{
    DriftedGram, Factors, LowRank, Metric, OutputBatches, Rank, SoftTruncation, dobi_svd, lord,
    saes_svd, svd, svd_llm,
};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate, s};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::{Calibration, CrossGram, SampledRows};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, Compressed, DType, DynCompress, ErrorKind, Group, Node, Registry, Result, Storage,
    Target,
};

fn wide(m: &Array2<f32>) -> Array2<f64> {
    m.mapv(f64::from)
}

/// X̂ and X: what compressed layers make of tokens, and what the original ones made.
fn drifted(tokens: usize, channels: usize, seed: u64) -> (Array2<f32>, Array2<f32>) {
    let original = inputs(tokens, channels, seed);
    let mixed = original.dot(&random(channels, channels, seed + 7)) * 0.5;
    let noise = random(tokens, channels, seed + 8) * 0.2;
    (&original * 0.9 + mixed + noise, original)
}

fn seen(x: &Array2<f32>, original: &Array2<f32>) -> Calibration {
    let cross = wide(x).t().dot(&wide(original)).mapv(|v| v as f32);
    Calibration::from_samples(x.clone(), Par::Seq).with::<CrossGram>(cross)
}

fn decoded<M: Metric + Clone>(
    method: &LowRank<M>,
    weight: &Array2<f32>,
    c: &Calibration,
) -> Array2<f32> {
    let made = method.clone().with_always(true).compress(weight.view(), c).unwrap();
    assert_eq!(made.fallback, None);
    decode(&made.node).unwrap()
}

/// SAES-SVD at b without damping.
fn at(beta: f32, rank: usize) -> LowRank<DriftedGram> {
    let metric = DriftedGram::default().with_beta(Some(beta)).with_damp(0.0);
    LowRank::new(metric, Rank::Number(rank))
}

/// S = H^½ and its inverse, by eigenvalues.
fn roots(gram: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
    let eigen = linalg::symmetric_eigen(gram.view()).unwrap();
    let power =
        |p: f64| (&eigen.vectors * &eigen.values.mapv(|v| v.powf(p))).dot(&eigen.vectors.t());
    (power(0.5), power(-0.5))
}

/// G(b) = W (H + b D) H^-½ with D = (X - X̂)ᵀX̂, tokens being rows.
fn goal(weight: &Array2<f32>, x: &Array2<f32>, original: &Array2<f32>, b: f64) -> Array2<f64> {
    let (x, original, weight) = (wide(x), wide(original), wide(weight));
    let gram = x.t().dot(&x);
    let drift = (&original - &x).t().dot(&x);
    weight.dot(&(&gram + &(drift * b))).dot(&roots(&gram).1)
}

/// Fails without the term of the drift.
#[test]
fn saes_is_its_closed_form_in_f64() {
    for (rows, cols, rank, seed) in [(10, 14, 3, 1), (14, 10, 4, 2), (1, 6, 1, 3), (9, 1, 1, 4)] {
        let (x, original) = drifted(300, cols, seed);
        let (weight, calibration) = (random(rows, cols, seed + 20), seen(&x, &original));
        let inverse = roots(&wide(&x).t().dot(&wide(&x))).1;
        for b in [0.0, 0.3, 1.0] {
            let goal = goal(&weight, &x, &original, f64::from(b));
            let cut = linalg::svd_truncated(goal.view(), rank).unwrap().reconstruct();
            let expected = cut.dot(&inverse);
            let ours = wide(&decoded(&at(b, rank), &weight, &calibration));
            let error = energy(&(&ours - &expected)) / energy(&expected);
            assert!(error < 1e-6, "{rows} x {cols}, b = {b}: {error}");
        }
        let plain = decoded(&svd_llm(Rank::Number(rank)), &weight, &calibration);
        assert_eq!(decoded(&at(0.0, rank), &weight, &calibration), plain);
    }
}

/// ‖(Ŵ - W) X̂‖² + α ‖Ŵ X̂ - W X‖², and its second term without α.
fn losses(
    ours: &Array2<f32>,
    weight: &Array2<f32>,
    x: &Array2<f32>,
    original: &Array2<f32>,
    alpha: f64,
) -> (f64, f64) {
    let (ours, weight, x, original) = (wide(ours), wide(weight), wide(x), wide(original));
    let made = x.dot(&ours.t());
    let drift = energy(&(&made - &original.dot(&weight.t())));
    (energy(&(&made - &x.dot(&weight.t()))) + alpha * drift, drift)
}

#[test]
fn no_factors_near_by_are_better_at_the_joint_loss() {
    let (x, original) = drifted(200, 12, 30);
    let (weight, calibration) = (random(10, 12, 31), seen(&x, &original));
    let alpha = 1.5;
    let method = at((alpha / (1.0 + alpha)) as f32, 3);
    let ours = decoded(&method, &weight, &calibration);
    let best = losses(&ours, &weight, &x, &original, alpha).0;
    let svd = linalg::svd_truncated(ours.view(), 3).unwrap();
    for seed in 0..60 {
        let step = if seed % 2 == 0 { 1e-2 } else { 1e-3 };
        let left = &svd.u * &svd.s + random(10, 3, 100 + seed) * step;
        let right = &svd.vt + &(random(3, 12, 200 + seed) * step);
        let other = losses(&left.dot(&right), &weight, &x, &original, alpha).0;
        assert!(best <= other * (1.0 + 1e-6), "seed {seed}: {best} against {other}");
    }
    for b in [0.0, 0.3, 0.9] {
        let other = decoded(&at(b, 3), &weight, &calibration);
        assert!(best < losses(&other, &weight, &x, &original, alpha).0, "b = {b}");
    }
}

/// ‖Ŵ X̂ - W X‖² falls with b, from that of SVD-LLM: fails without the term of the drift.
#[test]
fn where_inputs_drift_the_original_outputs_are_nearer_than_by_svd_llm() {
    for seed in 40..46 {
        let (x, original) = drifted(300, 16, seed);
        let (weight, calibration) = (random(12, 16, seed + 50), seen(&x, &original));
        let loss = |ours: &Array2<f32>| losses(ours, &weight, &x, &original, 0.0).1;
        let plain = loss(&decoded(&svd_llm(Rank::Number(4)), &weight, &calibration));
        let mut last = plain;
        for b in [0.25, 0.5, 0.75, 1.0] {
            let now = loss(&decoded(&at(b, 4), &weight, &calibration));
            assert!(now < last, "seed {seed}, b = {b}: {now} after {last}");
            last = now;
        }
        let any = DriftedGram::default().with_most(1.0);
        let adaptive = loss(&decoded(&LowRank::new(any, Rank::Number(4)), &weight, &calibration));
        let half = loss(&decoded(&saes_svd(Rank::Number(4)), &weight, &calibration));
        assert!(half <= plain * (1.0 + 1e-6), "seed {seed}: {half} against {plain}");
        assert!(adaptive <= plain * (1.0 + 1e-6), "seed {seed}: {adaptive} against {plain}");
        println!("seed {seed}: svd_llm {plain:.2}, adaptive {adaptive:.2}, b = 1 {last:.2}");
    }
}

/// Fails with any fixed b: the best of these differ.
#[test]
fn the_chosen_b_keeps_the_largest_share_of_the_energy() {
    let mut chosen = Vec::new();
    let shapes = [(12, 16, 4), (16, 12, 2), (20, 20, 7), (8, 24, 1), (9, 9, 3)];
    for ((rows, cols, rank), seed) in shapes.into_iter().cycle().zip(60..80) {
        let (x, original) = drifted(250, cols, seed);
        let (weight, calibration) = (random(rows, cols, seed + 20), seen(&x, &original));
        let share = |b: f64| {
            let values = linalg::svd(goal(&weight, &x, &original, b).view()).unwrap().s;
            let energies = values.mapv(|v| v * v);
            energies.slice(s![..rank]).sum() / energies.sum()
        };
        let metric = DriftedGram::default().with_damp(0.0).with_most(1.0);
        let beta = |metric: DriftedGram| {
            metric.beta_of(weight.view(), &calibration, Rank::Number(rank), Par::Seq).unwrap()
        };
        let b = f64::from(beta(metric));
        let best = (0..=200).map(|i| share(f64::from(i) / 200.0)).fold(0.0, f64::max);
        assert!(share(b) >= best - 2e-4, "{rows} x {cols}: {} of {best} at {b}", share(b));
        chosen.push(b);
        assert!(beta(metric.with_most(0.2)) <= 0.2);
        assert_eq!(beta(metric.with_beta(Some(0.7))), 0.7);
    }
    println!("chosen: {chosen:?}");
    assert!(chosen.contains(&0.0) && chosen.contains(&1.0), "{chosen:?}");
    assert!(chosen.iter().any(|b| (0.05..0.95).contains(b)), "{chosen:?}");
}

#[test]
fn without_original_inputs_saes_is_svd_llm_and_says_so() {
    let (x, original) = drifted(100, 8, 70);
    let weight = random(12, 8, 71);
    let rank = Rank::Number(2);
    let run = |c: &Calibration| saes_svd(rank).compress(weight.view(), c);
    let plain = decoded(&svd_llm(rank), &weight, &Calibration::from_samples(x.clone(), Par::Seq));
    let bare = Calibration::from_samples(x.clone(), Par::Seq);
    let broken = bare.clone().with::<CrossGram>(Array2::from_elem((8, 8), f32::NAN));
    for calibration in [&bare, &broken] {
        let made = run(calibration).unwrap();
        let note = made.fallback.expect("says so");
        assert!(note.contains("no correction of drift"), "{note}");
        assert_eq!(decode(&made.node).unwrap(), plain);
    }
    let other = bare.with::<CrossGram>(Array2::zeros((5, 5)));
    assert_eq!(run(&other).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    let calibration = seen(&x, &original);
    for metric in [
        DriftedGram::default().with_beta(Some(1.5)),
        DriftedGram::default().with_most(f32::NAN),
        DriftedGram::default().with_damp(-1.0),
    ] {
        let error = LowRank::new(metric, rank).compress(weight.view(), &calibration).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("allowed"), "{error}");
    }
}

/// Directions of Σ V_b V_bᵀ by eigenvectors in f64.
fn voted(weight: &Array2<f32>, x: &Array2<f32>, batch: usize, rank: usize) -> Array2<f64> {
    let mut votes = Array2::<f64>::zeros((weight.nrows(), weight.nrows()));
    for rows in x.axis_chunks_iter(Axis(0), batch) {
        let outputs = rows.mapv(f64::from).dot(&wide(weight).t());
        let v = linalg::svd_truncated(outputs.view(), rank).unwrap().vt;
        votes += &v.t().dot(&v);
    }
    let vectors = linalg::symmetric_eigen(votes.view()).unwrap().vectors;
    let first = vectors.ncols() - rank;
    vectors.slice(s![.., first..]).to_owned()
}

/// Batches of the same directions but noise, the last a hundred times as loud and of others.
fn batches(cols: usize) -> Array2<f32> {
    let common = random(3, cols, 80);
    let quiet: Vec<Array2<f32>> = (0..4)
        .map(|b| random(40, 3, 81 + b).dot(&common) + random(40, cols, 91 + b) * 0.05)
        .collect();
    let loud = random(40, 3, 85).dot(&random(3, cols, 86)) * 100.0;
    let all: Vec<_> = quiet.iter().chain([&loud]).map(|b| b.view()).collect();
    concatenate(Axis(0), &all).unwrap()
}

/// Fails if batches are not one vote a direction: a loud batch then decides, as it does for `lord`.
#[test]
fn dobi_keeps_the_directions_that_batches_agree_on() {
    let (rank, x) = (3, batches(14));
    let weight = random(11, 14, 87);
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    let metric = OutputBatches::default().with_batch(40);
    let method = LowRank::new(metric, Rank::Number(rank));
    let ours = wide(&decoded(&method, &weight, &calibration));
    let p = voted(&weight, &x, 40, rank);
    let expected = p.dot(&p.t().dot(&wide(&weight)));
    // All outputs together choose among equals, which moves the directions a little.
    let error = energy(&(&ours - &expected)) / energy(&expected);
    assert!(error < 1e-6, "{error}");
    let quiet = wide(&x.slice(s![..160, ..]).to_owned());
    let lost = |ours: &Array2<f64>| energy(&quiet.dot(&(ours - &wide(&weight)).t()));
    let by_lord = lost(&wide(&decoded(&lord(Rank::Number(rank)), &weight, &calibration)));
    assert!(lost(&ours) < 0.1 * by_lord, "{} against {by_lord}", lost(&ours));
    // One batch of all tokens has the directions of `lord`.
    let one = LowRank::new(metric.with_batch(1000), Rank::Number(rank));
    let (one, lord) = (
        decoded(&one, &weight, &calibration),
        decoded(&lord(Rank::Number(rank)), &weight, &calibration),
    );
    assert!(energy(&(&one - &lord)) < 1e-6 * energy(&lord));
}

#[test]
fn dobi_fills_up_what_no_batch_votes_on() {
    // 3 batches of 2 tokens vote on 6 directions at most, and these are all there are.
    let x = inputs(6, 10, 95);
    let weight = random(8, 10, 96);
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    let metric = OutputBatches::default().with_batch(2);
    let ours = decoded(&LowRank::new(metric, Rank::Number(7)), &weight, &calibration);
    let outputs = |w: &Array2<f32>| energy(&wide(&x).dot(&wide(w).t()));
    assert!(outputs(&(&weight - &ours)) < 1e-9 * outputs(&weight));
    // One batch of one token votes on one direction: the second is that of all tokens.
    let mut loud = x.clone();
    loud.row_mut(0).mapv_inplace(|v| v * 1e-3);
    let one = Calibration::from_samples(loud.clone(), Par::Seq);
    let one = one.with::<SampledRows>(loud.slice(s![..1, ..]).to_owned());
    let ours = wide(&decoded(&LowRank::new(metric, Rank::Number(2)), &weight, &one));
    let lost = wide(&loud).dot(&(wide(&weight) - &ours).t());
    assert!(energy(&lost.slice(s![..1, ..])) < 1e-9 * energy(&loud.slice(s![..1, ..])));
    let best = wide(&decoded(&lord(Rank::Number(1)), &weight, &one));
    let by_one = energy(&wide(&loud).dot(&(wide(&weight) - &best).t()));
    assert!(energy(&lost) < 1.01 * by_one, "{} and {by_one}", energy(&lost));
    // As many directions as hold an energy of all outputs.
    let rank_of = |made: Compressed| made.node.describe()["left"]["shape"][1].as_u64();
    let by_energy = LowRank::new(metric, Rank::Energy(0.9)).with_always(true);
    let lord = lord(Rank::Energy(0.9)).with_always(true);
    assert_eq!(
        rank_of(by_energy.compress(weight.view(), &calibration).unwrap()),
        rank_of(lord.compress(weight.view(), &calibration).unwrap())
    );
    let bad = LowRank::new(OutputBatches::default().with_batch(0), Rank::Number(1));
    let error = bad.compress(weight.view(), &calibration).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let missing = dobi_svd(Rank::Number(1)).compress(weight.view(), &Calibration::none(10));
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::MissingCalibration);
}

fn remapped(weight: &Array2<f32>, rank: Rank) -> Result<Compressed> {
    let target = Target::new("w", weight.view()).with_dtype(DType::F16);
    let method = svd(rank).with_factors(Factors::Remapped);
    let group = Group::single(target, Calibration::none(weight.ncols()));
    Ok(method.compress_group(group)?.layers.remove(0))
}

/// max(out, in) k 16-bit numbers at a rank of (1 - ratio) min(out, in), twice that of plain factors: fails if either
/// factor were in 16 bits, or a ratio meant what it means elsewhere.
#[test]
fn remapped_factors_take_what_a_ratio_says() {
    for (out, inp) in [(96, 64), (64, 96), (64, 64), (64, 65), (65, 64), (640, 64), (64, 640)] {
        let weight = random(out, inp, 300);
        let made = remapped(&weight, Rank::Ratio(0.5)).unwrap();
        assert_eq!(made.fallback, None, "{out} x {inp}");
        let (l, rank) = (out.min(inp), 32);
        // In rows of the wide matrix's V that are in f16 there are as many numbers, rounded down to whole rows.
        let exact = rank * (inp - l) / inp;
        let numbers = (out - l) * rank + exact * inp;
        let all = rank * (out + inp);
        let scales = l + rank - exact;
        let bytes = Storage::of(&*made.node).unwrap().bytes() as usize;
        assert_eq!(bytes, all - numbers + 2 * numbers + 2 * scales, "{out} x {inp}");
        let claim = 2 * out.max(inp) * rank + 2 * scales;
        assert!(bytes <= claim && bytes + inp >= claim, "{out} x {inp}: {bytes} for {claim}");
        let plain = svd(Rank::Number(rank)).with_factors(Factors::Float(DType::F32));
        let exact = decoded(&plain, &weight, &Calibration::none(inp));
        let ours = decode(&*made.node).unwrap();
        let added = energy(&(&ours - &exact)) / energy(&exact);
        assert!(added < 2e-4, "{out} x {inp}: {added}");
        check_node(made.node, &Registry::default(), 1e-4);
    }
    check_damage(
        &*remapped(&random(12, 8, 301), Rank::Number(3)).unwrap().node,
        &Registry::default(),
    );
    // All of the rank saves nothing.
    assert!(remapped(&random(20, 20, 302), Rank::Ratio(0.0)).unwrap().fallback.is_some());
}

#[test]
fn a_soft_truncation_has_the_slope_of_differences() {
    let values = [5.0, 3.0, 2.0, 1.0, 0.5];
    for position in [0.3, 1.0, 2.5, 4.9] {
        for sharpness in [0.5, 2.0, 10.0] {
            let loss = |k: f64| SoftTruncation::new(k, sharpness).loss(&values).0;
            let slope = SoftTruncation::new(position, sharpness).loss(&values).1;
            let h = 1e-6;
            let differences = (loss(position + h) - loss(position - h)) / (2.0 * h);
            assert!(
                (slope - differences).abs() < 1e-5 * (1.0 + slope.abs()),
                "{slope} {differences}"
            );
        }
    }
    let hard = SoftTruncation::new(2.5, 1e6).loss(&values).0;
    assert!((hard - (4.0 + 1.0 + 0.25)).abs() < 1e-9);
}

/// Weights and inputs at the ends of f32, dead ones and copies.
#[test]
fn whatever_is_finite_stays_finite_or_says_why() {
    let plain = random(18, 14, 400);
    let mut one = plain.clone();
    one[[3, 4]] = f32::MAX;
    let weights = [
        plain.clone(),
        one,
        plain.mapv(|v| v * 1e30),
        plain.mapv(|v| v * 1e-39),
        plain.select(Axis(1), &[2; 14]),
        Array2::zeros((18, 14)),
    ];
    let (x, original) = drifted(60, 14, 401);
    let scaled = |m: &Array2<f32>, by: f32| m.mapv(|v| v * by);
    let mut loud = x.clone();
    loud.column_mut(5).mapv_inplace(|v| v * 1e17);
    let mut dead = x.clone();
    [0, 9].iter().for_each(|c| dead.column_mut(*c).fill(0.0));
    let pairs = [
        (x.clone(), original.clone(), true),
        (scaled(&x, 1e15), scaled(&original, 1e15), true),
        (scaled(&x, 1e-15), scaled(&original, 1e-15), true),
        (dead, original.clone(), true),
        (x.slice(s![..3, ..]).to_owned(), original.slice(s![..3, ..]).to_owned(), true),
        (loud, original.clone(), false),
        (Array2::zeros((60, 14)), original, false),
    ];
    let rank = Rank::Number(3);
    let methods: [Box<dyn DynCompress>; 3] = [
        Box::new(saes_svd(rank).with_always(true)),
        Box::new(at(1.0, 3).with_always(true)),
        Box::new(dobi_svd(rank).with_always(true)),
    ];
    for weight in &weights {
        for (x, original, usual) in &pairs {
            let calibration = seen(x, original);
            for method in &methods {
                let group = Group::single(Target::new("w", weight.view()), calibration.clone());
                let made = method.compress_group_dyn(group).unwrap().layers.remove(0);
                let ours = decode(&*made.node).unwrap();
                assert!(ours.iter().all(|v| v.is_finite()), "{}: {:?}", method.id(), made.fallback);
                if *usual && *weight == plain {
                    assert_eq!(made.fallback, None, "{}", method.id());
                }
            }
        }
    }
}
