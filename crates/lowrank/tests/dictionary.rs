//! Dense and sparse factors (DSFormer, ROCKET) against their algorithms done slowly in f64.

mod common;

use common::{energy, inputs, random};
use tensorpress_allocate::{Choice, Exact, Solver as _, Table, Unit};
use tensorpress_lowrank::{Atoms, DsFormer, Factors, Rank, Rocket, svd};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array1, Array2, Axis};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, Compressed, DType, DynCompress, ErrorKind, Group, Registry, Result, Storage, Target,
};

fn wide(m: &Array2<f32>) -> Array2<f64> {
    m.mapv(f64::from)
}

fn run(
    method: &dyn DynCompress,
    weight: &Array2<f32>,
    calibration: &Calibration,
    dtype: DType,
    par: Par,
) -> Result<Compressed> {
    let target = Target::new("w", weight.view()).with_dtype(dtype);
    let group = Group { par, ..Group::single(target, calibration.clone()) };
    Ok(method.compress_group_dyn(group)?.layers.remove(0))
}

fn decoded(method: &dyn DynCompress, weight: &Array2<f32>, c: &Calibration) -> Array2<f64> {
    let made = run(method, weight, c, DType::F32, Par::Seq).unwrap();
    assert_eq!(made.fallback, None);
    wide(&decode(&*made.node).unwrap())
}

fn fixed(number: usize, spread: f64) -> Atoms {
    Atoms::default().with_number(number).with_spread(spread)
}

fn least_squares(a: &Array2<f64>, b: &Array2<f64>) -> Array2<f64> {
    linalg::least_squares(a.view(), b.view(), None, Par::Seq).unwrap().solution
}

/// The numbers of some atoms (columns) for a target, and what is left of it.
fn fit(atoms: &Array2<f64>, chosen: &[usize], target: &Array1<f64>) -> (Array1<f64>, Array1<f64>) {
    let some = atoms.select(Axis(1), chosen);
    let target = target.clone().insert_axis(Axis(1));
    let numbers = least_squares(&some, &target);
    let left = (&target - &some.dot(&numbers)).remove_axis(Axis(1));
    (numbers.remove_axis(Axis(1)), left)
}

/// Orthogonal matching pursuit with a whole least squares for each atom; the old support where that explains as much.
fn pursued(
    atoms: &Array2<f64>,
    target: &Array1<f64>,
    nonzeros: usize,
    old: Option<Vec<usize>>,
) -> Array1<f64> {
    let (mut chosen, mut left) = (Vec::new(), target.clone());
    for _ in 0..nonzeros {
        let near = |i: &usize| atoms.column(*i).dot(&left).abs();
        let free = (0..atoms.ncols()).filter(|i| !chosen.contains(i));
        chosen.push(free.max_by(|a, b| near(a).total_cmp(&near(b))).unwrap());
        left = fit(atoms, &chosen, target).1;
    }
    if let Some(old) = old.filter(|old| {
        let (_, by_old) = fit(atoms, old, target);
        by_old.dot(&by_old) <= left.dot(&left)
    }) {
        chosen = old;
    }
    let mut code = Array1::zeros(atoms.ncols());
    let (numbers, _) = fit(atoms, &chosen, target);
    chosen.iter().zip(numbers).for_each(|(place, number)| code[*place] = number);
    code
}

/// D S by the same alternation.
fn slow_dsformer(
    weight: &Array2<f64>,
    scales: &[f64],
    atoms: usize,
    nonzeros: usize,
    rounds: usize,
) -> Array2<f64> {
    let scaled = weight * &Array1::from(scales.to_vec());
    let mut d = linalg::svd_truncated(scaled.view(), atoms).unwrap().u;
    let mut s = Array2::zeros((atoms, weight.ncols()));
    for round in 0..rounds {
        for (j, target) in weight.columns().into_iter().enumerate() {
            let old: Vec<usize> = (0..atoms).filter(|i| round > 0 && s[[*i, j]] != 0.0).collect();
            let old = (!old.is_empty()).then_some(old);
            let code = pursued(&d, &target.to_owned(), nonzeros, old);
            s.column_mut(j).assign(&code);
        }
        // Dᵀ from (A S)ᵀ Dᵀ ~ (A W)ᵀ; an atom that no code uses stays.
        let of = |m: &Array2<f64>| (m * &Array1::from(scales.to_vec())).reversed_axes();
        let fitted = least_squares(&of(&s), &of(weight)).reversed_axes();
        for i in 0..atoms {
            if s.row(i).iter().all(|v| *v == 0.0) {
                continue;
            }
            let length = fitted.column(i).dot(&fitted.column(i)).sqrt();
            d.column_mut(i).assign(&fitted.column(i).mapv(|v| v / length));
            s.row_mut(i).mapv_inplace(|v| v * length);
        }
    }
    d.dot(&s)
}

/// Fails if codes are the largest projections, if D is not fitted, or if inputs do not count by their activity.
#[test]
fn dsformer_is_the_slow_alternation_in_f64() {
    for (rows, cols, atoms, nonzeros, seed) in
        [(10, 24, 6, 3, 1), (16, 12, 8, 2, 2), (7, 30, 5, 1, 3)]
    {
        let (weight, x) = (random(rows, cols, seed), inputs(80, cols, seed + 5));
        let calibration = Calibration::from_samples(x.clone(), Par::Seq);
        let scales: Vec<f64> =
            wide(&x).columns().into_iter().map(|column| column.dot(&column).sqrt()).collect();
        let spread = atoms as f64 / nonzeros as f64;
        for rounds in [1, 2, 4] {
            for scaled in [false, true] {
                let method =
                    DsFormer::new(fixed(atoms, spread)).with_rounds(rounds).with_scaled(scaled);
                let scales = if scaled { scales.clone() } else { vec![1.0; cols] };
                let expected = slow_dsformer(&wide(&weight), &scales, atoms, nonzeros, rounds);
                let ours = decoded(&method, &weight, &calibration);
                let error = energy(&(&ours - &expected)) / energy(&expected);
                assert!(error < 1e-6, "{rows} x {cols}, {rounds} rounds, {scaled}: {error}");
            }
        }
    }
}

#[test]
fn no_round_loses_more_than_the_one_before() {
    let (weight, x) = (random(20, 40, 10), inputs(80, 40, 11));
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    let cost = |rounds: usize| {
        let method = DsFormer::new(fixed(12, 4.0)).with_rounds(rounds);
        let lost = wide(&weight) - decoded(&method, &weight, &calibration);
        let norms: Array1<f64> = wide(&x).columns().into_iter().map(|c| c.dot(&c).sqrt()).collect();
        energy(&(lost * &norms))
    };
    let mut last = f64::INFINITY;
    for rounds in 0..10 {
        let now = cost(rounds);
        assert!(now <= last * (1.0 + 1e-6), "{rounds} rounds: {now} after {last}");
        last = now;
    }
    assert!(last < 0.95 * cost(0));
}

/// Columns of few of many atoms have no low rank: where the paper's assumption holds, so does its claim.
#[test]
fn where_columns_are_sums_of_few_atoms_dsformer_beats_svd_of_the_same_bytes() {
    let (out, inp, atoms) = (32, 300, 24);
    let mut codes = Array2::<f32>::zeros((atoms, inp));
    for j in 0..inp {
        for i in 0..2 {
            codes[[(j * 7 + i * (5 + j % 3)) % atoms, j]] =
                random(1, 1, (j * 2 + i) as u64)[[0, 0]];
        }
    }
    let weight = random(out, atoms, 20).dot(&codes);
    let method = DsFormer::new(fixed(atoms, 12.0)).with_rounds(30).with_scaled(false);
    let blind = Calibration::none(inp);
    let made = run(&method, &weight, &blind, DType::F32, Par::Seq).unwrap();
    let bytes = Storage::of(&*made.node).unwrap().bytes() as usize;
    let ours = energy(&(&weight - &decode(&*made.node).unwrap()));
    // As many bytes, rounded up.
    let rank = bytes.div_ceil(4 * (out + inp));
    let plain = svd(Rank::Number(rank)).with_factors(Factors::Float(DType::F32));
    let by_svd = energy(&(wide(&weight) - decoded(&plain, &weight, &blind)));
    println!("dense times sparse {ours:.4}, svd of rank {rank} {by_svd:.4}");
    assert!(ours < 0.5 * by_svd, "{ours} against {by_svd}");
}

/// ROCKET step by step, with the whitening's inverse: S (upper) with SᵀS = H, Y = S Wᵀ.
fn slow_rocket(
    weight: &Array2<f64>,
    gram: &Array2<f64>,
    k: usize,
    nonzeros: usize,
) -> [Array2<f64>; 2] {
    let s = linalg::cholesky(gram.clone(), Par::Seq).unwrap().reversed_axes();
    let y = s.dot(&weight.t());
    let eigen = linalg::symmetric_eigen(y.dot(&y.t()).view()).unwrap();
    let leading: Vec<usize> = (0..k).map(|i| y.nrows() - 1 - i).collect();
    let u = eigen.vectors.select(Axis(1), &leading);
    let v = u.t().dot(&y);
    let inverse = linalg::invert_triangular(s.clone(), linalg::Triangle::Upper, Par::Seq).unwrap();
    let back = inverse.dot(&u);
    let mut sparse = Array2::<f64>::zeros(v.dim());
    for j in 0..v.ncols() {
        let weigh = |i: usize| {
            let norm = back.column(i).dot(&back.column(i)).sqrt();
            (v[[i, j]].abs() * (v[[i, j]].abs() * norm)).sqrt()
        };
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|a, b| weigh(*b).total_cmp(&weigh(*a)));
        order[..nonzeros].iter().for_each(|i| sparse[[*i, j]] = v[[*i, j]]);
    }
    let fitted = least_squares(&sparse.t().to_owned(), &y.t().to_owned()).reversed_axes();
    [inverse.dot(&fitted).dot(&sparse).reversed_axes(), back.dot(&sparse).reversed_axes()]
}

/// Fails with another importance of entries; and without the least squares, whose absence is the second matrix.
#[test]
fn rocket_is_its_steps_in_f64() {
    for (rows, cols, k, nonzeros, seed) in
        [(30, 14, 8, 3, 30), (14, 20, 10, 5, 31), (9, 9, 4, 1, 32), (40, 6, 6, 2, 33)]
    {
        let (weight, x) = (random(rows, cols, seed), inputs(300, cols, seed + 5));
        let calibration = Calibration::from_samples(x.clone(), Par::Seq);
        let gram = wide(&x).t().dot(&wide(&x));
        let [expected, unfitted] = slow_rocket(&wide(&weight), &gram, k, nonzeros);
        let method = Rocket::new(fixed(k, k as f64 / nonzeros as f64));
        let ours = decoded(&method, &weight, &calibration);
        let error = energy(&(&ours - &expected)) / energy(&expected);
        assert!(error < 1e-5, "{rows} x {cols}: {error}");
        let lost = |m: &Array2<f64>| energy(&wide(&x).dot(&(m - &wide(&weight)).t()));
        assert!(lost(&ours) < 0.99 * lost(&unfitted), "{rows} x {cols}");
    }
}

/// Levels say what compressing at them takes and loses, and a knapsack over them loses less than one ratio for all.
#[test]
fn a_knapsack_over_levels_loses_less_than_one_ratio_for_all() {
    let settings: Vec<(f64, f64)> = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
        .iter()
        .flat_map(|ratio| [1.5, 2.0, 4.0].map(|spread| (*ratio, spread)))
        .collect();
    let mut units = Vec::new();
    let (mut uniform_cost, mut uniform_error) = (0, 0.0);
    for (i, (rows, cols)) in [(60, 40), (40, 60), (50, 50)].into_iter().enumerate() {
        let seed = 40 + i as u64 * 10;
        // Their spectra and sizes differ.
        let mut weight = random(rows, 5 + 10 * i, seed).dot(&random(5 + 10 * i, cols, seed + 1));
        weight += &(random(rows, cols, seed + 2) * 0.3);
        let x = inputs(200, cols, seed + 3);
        let calibration = Calibration::from_samples(x.clone(), Par::Seq);
        let levels = Rocket::default()
            .levels(weight.view(), &calibration, &settings, DType::F32, Par::Seq)
            .unwrap();
        for (level, (ratio, spread)) in levels.iter().zip(&settings) {
            let atoms = Atoms::default().with_ratio(*ratio).with_spread(*spread);
            let made =
                run(&Rocket::new(atoms), &weight, &calibration, DType::F32, Par::Seq).unwrap();
            assert_eq!(level.bytes, Storage::of(&*made.node).unwrap().bytes());
            let lost = wide(&x).dot(&(wide(&weight) - wide(&decode(&*made.node).unwrap())).t());
            assert!((level.error - energy(&lost)).abs() < 1e-3 * level.error, "{level:?}");
            assert!(level.bytes as f64 <= (1.0 - ratio) * (rows * cols * 4) as f64 + 128.0);
        }
        let half = levels.iter().find(|level| level.choice == (0.5, 2.0)).unwrap();
        uniform_cost += half.bytes;
        uniform_error += half.error;
        let choices: Vec<Choice> =
            levels.iter().map(|level| Choice::new(level.bytes, level.error)).collect();
        units.push(Unit::new(format!("{i}"), choices));
    }
    let found = Exact::new().solve(&Table::new(units).unwrap(), uniform_cost).unwrap();
    println!("uniform {uniform_error:.2}, by a knapsack {:.2}", found.error);
    assert!(found.cost <= uniform_cost && found.error < 0.9 * uniform_error);
}

fn methods(atoms: Atoms) -> [Box<dyn DynCompress>; 3] {
    [
        Box::new(DsFormer::new(atoms).with_rounds(2)),
        Box::new(DsFormer::new(atoms).with_rounds(0).with_scaled(false)),
        Box::new(Rocket::new(atoms)),
    ]
}

#[test]
fn dense_and_sparse_factors_obey_the_laws() {
    for (rows, cols) in [(1, 1), (1, 40), (33, 1), (7, 24), (40, 33)] {
        let calibration = Calibration::from_samples(inputs(200, cols, 1), Par::Seq);
        let weight = random(rows, cols, 2);
        let ratio = |ratio| Atoms::default().with_ratio(ratio);
        for atoms in [ratio(0.0), ratio(0.5), ratio(0.99), fixed(3, 1.0), fixed(99, 3.0)] {
            for method in methods(atoms) {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let made = run(&*method, &weight, &calibration, dtype, Par::Seq).unwrap();
                    let bytes = Storage::of(&*made.node).unwrap().bytes() as usize;
                    assert!(bytes <= weight.len() * dtype.size(), "{}", method.id());
                    if dtype == DType::F32 {
                        let other =
                            run(&*method, &weight, &calibration, dtype, Par::Threads(3)).unwrap();
                        assert_eq!(decode(&*other.node).unwrap(), decode(&*made.node).unwrap());
                    }
                    check_node(made.node, &Registry::default(), 1e-4);
                }
            }
        }
    }
    for method in methods(fixed(2, 2.0)) {
        let (weight, x) = (random(12, 16, 3), inputs(40, 16, 4));
        let calibration = Calibration::from_samples(x, Par::Seq);
        let made = run(&*method, &weight, &calibration, DType::F32, Par::Seq).unwrap();
        assert_eq!(made.fallback, None);
        check_damage(&*made.node, &Registry::default());
    }
}

#[test]
fn any_weights_and_inputs_give_a_finite_result_or_a_reason() {
    let plain = random(24, 20, 50);
    let mut gaps = plain.clone();
    gaps.column_mut(3).fill(0.0);
    gaps.row_mut(5).fill(0.25);
    gaps.row_mut(6).fill(0.0);
    let copies = plain.select(Axis(1), &[0; 20]);
    let weights = [
        plain.clone(),
        gaps,
        copies,
        Array2::zeros((24, 20)),
        plain.mapv(|v| v * 1e-30),
        plain.mapv(|v| v * 1e37),
        plain.mapv(|v| v * 1e-39),
    ];
    let mut dead = inputs(60, 20, 51);
    [0, 7].iter().for_each(|c| dead.column_mut(*c).fill(0.0));
    let mut poisoned = inputs(60, 20, 52);
    poisoned[[3, 3]] = f32::NAN;
    let samples = [
        (inputs(60, 20, 53), true),
        (dead, true),
        (inputs(3, 20, 54), true),
        (inputs(60, 20, 55) * 1e15, true),
        (Array2::zeros((60, 20)), false),
        (Array2::zeros((0, 20)), false),
        (poisoned, false),
    ];
    for weight in &weights {
        for (x, usable) in &samples {
            let calibration = Calibration::from_samples(x.clone(), Par::Seq);
            for method in methods(Atoms::default().with_ratio(0.6)) {
                let made = run(&*method, weight, &calibration, DType::F32, Par::Seq).unwrap();
                let ours = decode(&*made.node).unwrap();
                assert!(ours.iter().all(|v| v.is_finite()), "{}", method.id());
                let lost = energy(&(wide(&ours) - wide(weight)));
                assert!(lost <= 4.0 * energy(weight) + 1e-60, "{}: {lost}", method.id());
                let says = made.fallback.is_some();
                assert!(
                    says != *usable || method.needs().is_none(),
                    "{}: {:?}",
                    method.id(),
                    made.fallback
                );
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (weight, x) = (random(8, 6, 60), inputs(30, 6, 61));
    let calibration = Calibration::from_samples(x, Par::Seq);
    let error = |method: &dyn DynCompress, weight: &Array2<f32>, c: &Calibration| {
        run(method, weight, c, DType::F32, Par::Seq).unwrap_err()
    };
    let default = Atoms::default;
    for (atoms, name) in [
        (default().with_ratio(1.0), "ratio"),
        (default().with_ratio(f64::NAN), "ratio"),
        (default().with_spread(0.5), "spread"),
        (default().with_spread(f64::INFINITY), "spread"),
        (default().with_dtype(Some(DType::U8)), "factors"),
    ] {
        for method in methods(atoms) {
            let error = error(&*method, &weight, &calibration);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(
                error.message().contains(name) && error.message().contains("allowed"),
                "{error}"
            );
        }
    }
    for method in methods(default()) {
        let mut bad = weight.clone();
        bad[[1, 2]] = f32::NAN;
        assert_eq!(error(&*method, &bad, &calibration).kind(), ErrorKind::Numerical);
    }
    let other = Calibration::from_samples(inputs(30, 5, 62), Par::Seq);
    assert_eq!(error(&DsFormer::default(), &weight, &other).kind(), ErrorKind::ShapeMismatch);
    assert_eq!(error(&Rocket::default(), &weight, &other).kind(), ErrorKind::ShapeMismatch);
    let blind = Calibration::none(6);
    assert_eq!(error(&Rocket::default(), &weight, &blind).kind(), ErrorKind::MissingCalibration);
    let made = DsFormer::default().compress(weight.view(), &blind).unwrap();
    assert!(made.fallback.is_some_and(|note| note.contains("all inputs count alike")));
    for (rows, cols) in [(0, 6), (5, 0)] {
        let empty = Array2::zeros((rows, cols));
        let calibration = Calibration::from_samples(Array2::zeros((3, cols)), Par::Seq);
        let levels = Rocket::default().levels(
            empty.view(),
            &calibration,
            &[(0.5, 2.0)],
            DType::F32,
            Par::Seq,
        );
        assert_eq!(levels.unwrap()[0].error, 0.0);
        let weight = Array2::zeros((rows, cols));
        let method = DsFormer::default().with_scaled(false);
        let made = run(&method, &weight, &Calibration::none(cols), DType::F32, Par::Seq).unwrap();
        assert_eq!(made.node.shape(), [rows, cols]);
    }
}
