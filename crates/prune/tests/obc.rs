//! ExactOBS against the official code and a slow reference.

use tensorpress_prune::{Obc, Pattern, Scope, SparseGpt, magnitude};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{Mask, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::{Golden, Layer};
use tensorpress_tensor::testing::laws::check_node;
use tensorpress_tensor::{
    Compress, DynCompress, ErrorKind, Group, Node, Registry, Select, Selection, Target,
};

fn select(method: &Obc, weight: &Array2<f32>, calibration: &Calibration) -> Selection {
    let target = Target::new("w", weight.view());
    method.select_group(&mut Group::single(target, calibration.clone())).unwrap().remove(0)
}

fn matrix(sparsity: f64) -> Pattern {
    Pattern::Unstructured { sparsity, scope: Scope::Matrix }
}

/// The official supports and weights.
#[test]
fn all_is_as_the_official_code_has_it() {
    let Some(files) = Golden::all("obc") else { return };
    let files: Vec<_> = files.iter().filter(|golden| golden.file.contains("Wq")).collect();
    for golden in &files {
        let number = |key: &str| golden.param(key).as_f64().unwrap_or(0.0);
        let size = |key: &str| number(key) as usize;
        let pattern = match golden.param("kind").as_str().expect("a kind") {
            "unstr" => matrix(number("sp")),
            "nm" => Pattern::nm(size("n"), size("m")),
            "block" => Pattern::Block { rows: 1, cols: size("size"), sparsity: number("sp") },
            kind => panic!("{kind}"),
        };
        let weight = golden.layer.weight.slice(s![..size("rows"), ..]).to_owned();
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1024).unwrap();
        let method = Obc::new(pattern).with_damp(number("rel_damp") as f32);
        let made = select(&method, &weight, &calibration);
        assert_eq!(made.fallback, None);
        let (ours, official) = (made.weight.unwrap(), golden.floats("Wq"));
        let same = |((r, c), w): &((usize, usize), &f32)| made.mask.keeps(*r, *c) == (**w != 0.0);
        let equal = official.indexed_iter().filter(same).count() as f64 / official.len() as f64;
        let apart = ours.iter().zip(&official).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
        let layer = Layer { weight, ..golden.layer.clone() };
        let error = layer.output_error(ours.view());
        let stated = golden.figure("output_rel_err").expect("a figure");
        println!(
            "{}: masks equal {equal:.6}, weights within {apart:.1e}, error {error:.6} ({stated:.6})",
            golden.name
        );
        assert!(equal == 1.0, "{}: {equal}", golden.name);
        assert!(apart < 1e-3, "{}: {apart}", golden.name);
        assert!((error / stated - 1.0).abs() < 1e-4, "{}: {error}, {stated}", golden.name);
    }
    println!("golden files checked: obc {}", files.len());
    assert!(files.len() >= 3, "golden vectors are missing");
}

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn inputs(cols: usize, seed: u64) -> Calibration {
    Calibration::from_samples(random(4 * cols + 9, cols, seed), Par::Seq)
}

/// Of all supports of a row the greedy one is met step for step: the error of dropping a weight is that of the best repair,
/// found by solving least squares anew for every candidate.
#[test]
fn each_step_drops_what_costs_least() {
    let (weight, x) = (random(3, 12, 1), random(60, 12, 2));
    let mut hessian = x.t().dot(&x).mapv(f64::from);
    let damp = 0.01 * hessian.diag().mean().unwrap();
    hessian.diag_mut().mapv_inplace(|v| v + damp);
    // The error of the best weights on a support, by descent along coordinates.
    let best = |row: usize, gone: &[usize]| {
        let target = weight.row(row).mapv(f64::from);
        let mut w = target.clone();
        gone.iter().for_each(|c| w[*c] = 0.0);
        for _ in 0..4000 {
            for c in (0..12).filter(|c| !gone.contains(c)) {
                let slope = hessian.row(c).dot(&(&w - &target));
                w[c] -= slope / hessian[[c, c]];
            }
        }
        let d = &w - &target;
        (d.dot(&hessian.dot(&d)), w)
    };
    let calibration = Calibration::from_samples(x, Par::Seq);
    for steps in [1, 4, 9] {
        let made =
            select(&Obc::new(Pattern::unstructured(steps as f64 / 12.0)), &weight, &calibration);
        for row in 0..3 {
            let mut gone = Vec::new();
            for _ in 0..steps {
                let costs = (0..12)
                    .filter(|c| !gone.contains(c))
                    .map(|c| (best(row, &[&gone[..], &[c]].concat()).0, c));
                let (_, next) = costs.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
                gone.push(next);
            }
            let (_, repaired) = best(row, &gone);
            for c in 0..12 {
                assert_eq!(made.mask.keeps(row, c), !gone.contains(&c), "row {row}, {steps} steps");
                let ours = f64::from(made.weight.as_ref().unwrap()[[row, c]]);
                assert!((ours - repaired[c]).abs() < 1e-4, "{ours} {}", repaired[c]);
            }
        }
    }
}

#[test]
fn it_loses_less_than_sparsegpt() {
    let Some(files) = Golden::all("obc") else { return };
    let weight = files[0].layer.weight.slice(s![..32, ..]).to_owned();
    let layer = Layer { weight, ..files[0].layer.clone() };
    let calibration = Calibration::from_gram(layer.gram.clone(), 1024).unwrap();
    for pattern in [Pattern::nm(2, 4), matrix(0.5)] {
        let run = |method: &dyn DynCompress| {
            let group = Group::single(Target::new("w", layer.weight.view()), calibration.clone());
            let node = method.compress_group_dyn(group).unwrap().layers.remove(0).node;
            layer.output_error(decode(&*node).unwrap().view())
        };
        let (exact, swept) = (run(&Obc::new(pattern)), run(&SparseGpt::new(pattern)));
        println!("output error to {pattern:?}: exact {exact:.6}, sparsegpt {swept:.6}");
        assert!(exact < swept);
    }
}

/// Where nothing was repaired, as without inputs: the weights of the support.
fn before_of(weight: &Array2<f32>, mask: &Mask) -> Array2<f32> {
    Array2::from_shape_fn(
        weight.dim(),
        |(r, c)| if mask.keeps(r, c) { weight[[r, c]] } else { 0.0 },
    )
}

/// Shares are those asked for, patterns hold, what was outside of a support before stays there, and nodes obey the laws.
#[test]
fn patterns_and_supports_hold() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (5, 1), (1, 20), (6, 32), (7, 37)] {
        let patterns = [
            matrix(0.5),
            matrix(1.0),
            matrix(0.0),
            Pattern::unstructured(0.7),
            Pattern::nm(1, 4),
            Pattern::nm(2, 2),
            Pattern::nm(0, 1),
            Pattern::Block { rows: 1, cols: 3, sparsity: 0.4 },
        ];
        for pattern in patterns.into_iter().filter(|pattern| pattern.check(cols).is_ok()) {
            let weight = random(rows, cols, 3);
            let method = Obc::new(pattern);
            let calibration = inputs(cols, 4);
            let made = select(&method, &weight, &calibration);
            let kept = made.mask.kept(0..rows);
            match pattern {
                Pattern::Unstructured { sparsity, scope: Scope::Matrix } => {
                    let gone = (sparsity * (rows * cols) as f64 + 1e-9) as usize;
                    assert_eq!(kept, rows * cols - gone);
                }
                Pattern::NM { n, m } => assert_eq!(kept, rows * cols / m * n),
                _ => {}
            }
            let node = method.compress(weight.view(), &calibration).unwrap().node;
            check_node(node.boxed(), &Registry::default(), 1e-4);

            let before = Mask::from_bools(random(rows, cols, 5).mapv(|v| v > -0.2).view());
            let mut target = Target::new("w", weight.view());
            target.mask = Some(&before);
            let mut group = Group::single(target, calibration);
            let made = method.select_group(&mut group).unwrap().remove(0);
            let repaired = made.weight.unwrap_or_else(|| before_of(&weight, &made.mask));
            for ((r, c), w) in repaired.indexed_iter() {
                assert!(!made.mask.keeps(r, c) || before.keeps(r, c));
                assert!(made.mask.keeps(r, c) || *w == 0.0);
            }
            if let Pattern::NM { n, m } = pattern {
                for (row, group) in (0..rows).flat_map(|r| (0..cols / m).map(move |g| (r, g))) {
                    let kept = (0..m).filter(|i| made.mask.keeps(row, group * m + i)).count();
                    assert!(kept <= n);
                }
            }
        }
    }
}

#[test]
fn bad_statistics_are_told_and_bad_numbers_refused() {
    let mut weight = random(6, 16, 6);
    let method = Obc::new(Pattern::nm(2, 4));
    for samples in
        [Array2::zeros((0, 16)), Array2::zeros((9, 16)), Array2::from_elem((9, 16), f32::NAN)]
    {
        let calibration = Calibration::from_samples(samples, Par::Seq);
        let made = select(&method, &weight, &calibration);
        assert!(made.fallback.unwrap().contains("pruned by magnitude"));
        let mut group = Group::single(Target::new("w", weight.view()), calibration);
        let plain = magnitude(Pattern::nm(2, 4)).select_group(&mut group).unwrap().remove(0);
        assert_eq!(made.mask.bits()[..], plain.mask.bits()[..]);
    }
    // Rank 1, a dead column, no damping asked for; constant rows and zeros.
    let mut x = Array2::from_shape_fn((40, 16), |(t, c)| (t as f32 - 20.0) * (c as f32 + 1.0));
    x.column_mut(4).fill(0.0);
    let singular = Calibration::from_samples(x, Par::Seq);
    for rows in [weight.clone(), Array2::zeros((6, 16)), Array2::from_elem((6, 16), 3.0)] {
        for pattern in
            [Pattern::nm(2, 4), matrix(0.6), Pattern::Block { rows: 1, cols: 4, sparsity: 0.5 }]
        {
            let made = select(&Obc::new(pattern).with_damp(0.0), &rows, &singular);
            assert!(made.fallback.unwrap().contains("damping raised"));
            assert!(made.weight.unwrap().iter().all(|w| w.is_finite()));
        }
    }
    let kind = |method: Obc| method.compress(weight.view(), &inputs(16, 7)).unwrap_err().kind();
    for bad in [
        method.with_damp(-1.0),
        method.with_damp(f32::NAN),
        Obc::new(Pattern::nm(2, 5)),
        Obc::new(matrix(1.5)),
        Obc::new(Pattern::Block { rows: 2, cols: 2, sparsity: 0.5 }),
        Obc::new(Pattern::Unstructured { sparsity: 0.5, scope: Scope::RowMass }),
    ] {
        assert_eq!(kind(bad), ErrorKind::InvalidArgument, "{bad:?}");
    }
    weight[[2, 3]] = f32::NAN;
    let error = method.compress(weight.view(), &inputs(16, 7)).unwrap_err();
    assert!(error.kind() == ErrorKind::Numerical && error.to_string().contains("[2, 3]"));
}

#[test]
fn threads_do_not_change_a_bit() {
    let weight = random(20, 48, 8);
    for pattern in [Pattern::nm(2, 4), matrix(0.5)] {
        let run = |par: Par| {
            let mut group = Group::single(Target::new("w", weight.view()), inputs(48, 9));
            group.par = par;
            let made = Obc::new(pattern).select_group(&mut group).unwrap().remove(0);
            (made.mask.bits().to_vec(), made.weight.unwrap())
        };
        assert_eq!(run(Par::Seq), run(Par::Rayon));
    }
}
