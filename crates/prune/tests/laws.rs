//! The laws of nodes on what the pruners return, the shapes of their supports, and bad input.

use proptest::prelude::*;
use tensorpress_prune::{Pattern, Scope, SparseGpt, magnitude, wanda};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, DynCompress, ErrorKind, Group, Registry, Select, Storage, Target,
};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn methods(pattern: Pattern) -> [Box<dyn DynCompress>; 3] {
    [Box::new(magnitude(pattern)), Box::new(wanda(pattern)), Box::new(SparseGpt::new(pattern))]
}

fn group<'a>(weight: ArrayView2<'a, f32>, calibration: &Calibration) -> Group<'a> {
    Group::single(Target::new("w", weight).with_dtype(DType::BF16), calibration.clone())
}

#[test]
fn every_method_and_pattern_obeys_the_laws() {
    let patterns = [
        Pattern::unstructured(0.5),
        Pattern::Unstructured { sparsity: 0.7, scope: Scope::Matrix },
        Pattern::Unstructured { sparsity: 0.5, scope: Scope::RowMass },
        Pattern::nm(2, 4),
        Pattern::nm(1, 8),
        Pattern::Block { rows: 4, cols: 3, sparsity: 0.6 },
        Pattern::unstructured(0.0),
        Pattern::unstructured(1.0),
    ];
    for pattern in patterns {
        for (rows, cols) in [(1, 8), (7, 24), (33, 136)] {
            let calibration = Calibration::from_samples(random(300, cols, 1), Par::Seq);
            let weight = random(rows, cols, 2);
            for method in methods(pattern) {
                let mut layers =
                    method.compress_group_dyn(group(weight.view(), &calibration)).unwrap().layers;
                let layer = layers.remove(0);
                assert!(layer.fallback.is_none(), "{}: {:?}", method.id(), layer.fallback);
                check_node(layer.node, &Registry::default(), 1e-4);
            }
        }
    }
}

#[test]
fn half_the_weights_take_half_the_bytes_and_three_bits_a_group() {
    let weight = random(64, 256, 3);
    let calibration = Calibration::from_samples(random(400, 256, 4), Par::Seq);
    for method in methods(Pattern::nm(2, 4)) {
        let mut layers =
            method.compress_group_dyn(group(weight.view(), &calibration)).unwrap().layers;
        let bytes = Storage::of(&*layers.remove(0).node).unwrap().bytes();
        // Two of four: one of six choices.
        assert_eq!(bytes, 64 * 256 + 64 * 256 / 4 * 3 / 8, "{}", method.id());
    }
}

#[test]
fn sparsegpt_repairs_what_it_prunes() {
    let weight = random(48, 96, 5);
    // Inputs that are correlated: otherwise there is nothing to make good with.
    let x = random(600, 24, 6).dot(&random(24, 96, 7)) + random(600, 96, 8) * 0.1;
    let calibration = Calibration::from_samples(x.clone(), Par::Seq);
    let error = |method: &dyn DynCompress| {
        let mut layers =
            method.compress_group_dyn(group(weight.view(), &calibration)).unwrap().layers;
        let pruned = decode(&*layers.remove(0).node).unwrap();
        x.dot(&(&weight - &pruned).t()).iter().map(|v| v * v).sum::<f32>()
    };
    for pattern in [Pattern::unstructured(0.5), Pattern::nm(2, 4)] {
        let [plain, wanda, sparsegpt] = methods(pattern).map(|method| error(&*method));
        assert!(wanda < plain * 1.05, "{pattern:?}: {wanda} against {plain}");
        assert!(sparsegpt < 0.5 * wanda, "{pattern:?}: {sparsegpt} against {wanda}");
    }
}

#[test]
fn statistics_that_cannot_be_used_are_no_failure() {
    let weight = random(8, 16, 9);
    let pattern = Pattern::nm(2, 4);
    let by_magnitude = magnitude(pattern).compress(weight.view(), &Calibration::none(16)).unwrap();
    let mut poisoned = random(40, 16, 10);
    poisoned[[3, 3]] = f32::NAN;
    let bad = [Calibration::none(16), Calibration::from_samples(poisoned, Par::Seq)];
    for calibration in bad {
        for method in
            [Box::new(wanda(pattern)) as Box<dyn DynCompress>, Box::new(SparseGpt::new(pattern))]
        {
            let mut layers = method
                .compress_group_dyn(Group::single(
                    Target::new("w", weight.view()),
                    calibration.clone(),
                ))
                .unwrap()
                .layers;
            let layer = layers.remove(0);
            assert!(
                layer.fallback.as_ref().is_some_and(|f| f.contains("magnitude")),
                "{}",
                method.id()
            );
            assert_eq!(decode(&*layer.node).unwrap(), decode(&by_magnitude.node).unwrap());
        }
    }
    // Inputs that are dead, equal, or fewer than channels: the sweep goes through.
    let mut x = random(5, 16, 11);
    x.column_mut(2).fill(0.0);
    let copy = x.column(4).to_owned();
    x.column_mut(5).assign(&copy);
    let calibration = Calibration::from_samples(x, Par::Seq);
    let layer = SparseGpt::new(pattern).compress(weight.view(), &calibration).unwrap();
    assert!(decode(&layer.node).unwrap().iter().all(|w| w.is_finite()));
}

#[test]
fn impossible_parameters_are_refused() {
    let weight = random(4, 10, 12);
    let calibration = Calibration::from_samples(random(30, 10, 13), Par::Seq);
    let patterns = [
        (Pattern::unstructured(-0.1), "sparsity = -0.1"),
        (Pattern::unstructured(1.5), "sparsity = 1.5"),
        (Pattern::unstructured(f64::NAN), "sparsity = NaN"),
        (Pattern::nm(5, 4), "5:4"),
        (Pattern::nm(0, 0), "0:0"),
        (Pattern::nm(2, 4), "does not divide"),
        (Pattern::Block { rows: 0, cols: 1, sparsity: 0.5 }, "0 x 1"),
        (Pattern::Block { rows: 2, cols: 2, sparsity: 2.0 }, "sparsity = 2"),
    ];
    for (pattern, part) in patterns {
        for method in methods(pattern) {
            let error = method.compress_group_dyn(group(weight.view(), &calibration)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{pattern:?}: {error}");
            assert!(error.to_string().contains(part), "{pattern:?}: {error}");
        }
    }
    let mut poisoned = weight.clone();
    poisoned[[1, 2]] = f32::INFINITY;
    for method in methods(Pattern::unstructured(0.5)) {
        let error = method.compress_group_dyn(group(poisoned.view(), &calibration)).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some("w")), "{error}");
    }
    for method in [
        SparseGpt::new(Pattern::nm(1, 2)).with_damp(f32::NAN),
        SparseGpt::new(Pattern::nm(1, 2)).with_block(0),
    ] {
        assert!(method.compress(weight.view(), &calibration).is_err());
    }
}

#[test]
fn damage_is_an_error_or_another_value() {
    let node = magnitude(Pattern::unstructured(0.6))
        .compress(random(9, 30, 14).view(), &Calibration::none(30));
    check_damage(&node.unwrap().node, &Registry::default());
}

#[test]
fn threads_do_not_change_the_result() {
    let weight = random(70, 160, 15);
    let calibration = Calibration::from_samples(random(500, 160, 16), Par::Seq);
    let run = |par: Par| {
        let mut group = group(weight.view(), &calibration);
        group.par = par;
        let selection =
            SparseGpt::new(Pattern::unstructured(0.5)).select_group(&mut group).unwrap().remove(0);
        selection.weight.expect("repaired")
    };
    assert_eq!(run(Par::Seq), run(Par::Rayon));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Supports have the number of entries asked for, and no entry that goes outscores one that stays.
    #[test]
    fn supports_are_the_most_salient(
        rows in 1usize..20,
        groups in 1usize..10,
        m in 1usize..9,
        sparsity in 0.0f64..=1.0,
        seed in any::<u64>(),
    ) {
        let cols = groups * m;
        let scores = random(rows, cols, seed).mapv(f32::abs);
        let n = (seed % (m as u64 + 1)) as usize;
        let mask = Pattern::nm(n, m).select(scores.view()).unwrap();
        prop_assert_eq!(mask.kept(0..rows), rows * groups * n);
        let mask = Pattern::unstructured(sparsity).select(scores.view()).unwrap();
        let gone = (cols as f64 * sparsity + 1e-9) as usize;
        for row in 0..rows {
            prop_assert_eq!(mask.kept(row..row + 1), cols - gone);
            let of = |kept: bool| -> Vec<f32> {
                let columns = (0..cols).filter(|c| mask.keeps(row, *c) == kept);
                columns.map(|c| scores[[row, c]]).collect()
            };
            let least = of(true).into_iter().fold(f32::INFINITY, f32::min);
            let most = of(false).into_iter().fold(0.0, f32::max);
            prop_assert!(most <= least);
        }
        let mask = Pattern::Unstructured { sparsity, scope: Scope::Matrix }.select(scores.view()).unwrap();
        prop_assert_eq!(mask.kept(0..rows), rows * cols - ((rows * cols) as f64 * sparsity + 1e-9) as usize);
        let pattern = Pattern::Block { rows: 3, cols: m, sparsity };
        let mask = pattern.select(scores.view()).unwrap();
        for (r, c) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
            prop_assert_eq!(mask.keeps(r, c), mask.keeps(r / 3 * 3, c / m * m));
        }
    }
}
