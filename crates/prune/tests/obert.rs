//! oBERT against dense inverses in f64.

use proptest::prelude::*;
use tensorpress_prune::{BlockFisher, Obert, Pattern, Scope, magnitude};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array1, Array2, array, s};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::check_node;
use tensorpress_tensor::{Compress, ErrorKind, Group, Node, Registry, Select, Target};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Gradients that depend on each other, so that their Fisher matrix is far from diagonal.
fn gradients(samples: usize, weights: usize, seed: u64) -> Array2<f32> {
    random(samples, 3, seed).dot(&random(3, weights, seed + 1))
        + random(samples, weights, seed + 2) * 0.3
}

/// The inverse, by Gauss and Jordan with pivots.
fn inverse(mut a: Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    let mut b = Array2::<f64>::eye(n);
    for i in 0..n {
        let pivot = (i..n).max_by(|x, y| a[[*x, i]].abs().total_cmp(&a[[*y, i]].abs())).unwrap();
        for m in [&mut a, &mut b] {
            for c in 0..n {
                m.swap([i, c], [pivot, c]);
            }
        }
        let d = a[[i, i]];
        a.row_mut(i).mapv_inplace(|v| v / d);
        b.row_mut(i).mapv_inplace(|v| v / d);
        for r in (0..n).filter(|r| *r != i) {
            let f = a[[r, i]];
            let (of_a, of_b) = (a.row(i).to_owned(), b.row(i).to_owned());
            a.row_mut(r).scaled_add(-f, &of_a);
            b.row_mut(r).scaled_add(-f, &of_b);
        }
    }
    b
}

/// F of the weights of one block.
fn dense(gradients: &Array2<f32>, from: usize, to: usize, damp: f64) -> Array2<f64> {
    let g = gradients.slice(s![.., from..to]).mapv(f64::from);
    g.t().dot(&g) / gradients.nrows() as f64 + Array2::<f64>::eye(to - from) * damp
}

#[test]
fn woodbury_is_the_inverse_of_each_block() {
    for (weights, block, samples) in [(20, 7, 40), (12, 12, 5), (5, 1, 9), (6, 50, 30)] {
        let g = gradients(samples, weights, 3);
        let damp = 1e-3;
        let fisher =
            BlockFisher::from_gradients(g.view(), [1, weights], block, damp, Par::Seq).unwrap();
        for (b, ours) in fisher.inverse().iter().enumerate() {
            let (from, to) = (b * block, (b * block + block).min(weights));
            let wanted = inverse(dense(&g, from, to, damp));
            let most = wanted.iter().fold(0.0f64, |a, v| a.max(v.abs()));
            let apart = ours.iter().zip(&wanted).fold(0.0f64, |a, (x, y)| a.max((x - y).abs()));
            assert!(apart < 1e-9 * most, "block {b} of {weights}: {apart} of {most}");
        }
    }
}

/// Fails if a block's weights are scored one by one, or the blocks' curvature is replaced by its diagonal.
#[test]
fn the_saliency_of_a_block_is_what_its_best_repair_costs() {
    let (w, g) = (random(2, 8, 5), gradients(30, 16, 6));
    let fisher = BlockFisher::from_gradients(g.view(), [2, 8], 8, 1e-3, Par::Seq).unwrap();
    for width in [1usize, 2, 4] {
        let pattern = Pattern::Block { rows: 1, cols: width, sparsity: 0.5 };
        let ours = Obert::new(pattern).saliency(w.view(), &fisher).unwrap();
        for row in 0..2 {
            let f = dense(&g, row * 8, row * 8 + 8, 1e-3);
            for first in (0..8).step_by(width) {
                let q: Vec<usize> = (first..first + width).collect();
                let cost = best_repair(&f, &w.row(row).mapv(f64::from), &q).0;
                let stated: f64 = ours.slice(s![row, first..first + width]).sum();
                assert!((cost - stated).abs() < 1e-9 * cost.max(1.0), "{q:?}: {stated}, {cost}");
            }
        }
    }
}

/// The least of ½ dᵀ F d over all d that zero the weights in q, and the weights there: by solving for the free ones.
fn best_repair(f: &Array2<f64>, w: &Array1<f64>, q: &[usize]) -> (f64, Array1<f64>) {
    let free: Vec<usize> = (0..w.len()).filter(|i| !q.contains(i)).collect();
    let mut d = Array1::zeros(w.len());
    q.iter().for_each(|i| d[*i] = -w[*i]);
    if !free.is_empty() {
        let pick = |a: &[usize], b: &[usize]| {
            Array2::from_shape_fn((a.len(), b.len()), |(i, j)| f[[a[i], b[j]]])
        };
        let of_q = Array1::from_iter(q.iter().map(|i| d[*i]));
        let solved = -inverse(pick(&free, &free)).dot(&pick(&free, q).dot(&of_q));
        free.iter().zip(&solved).for_each(|(i, v)| d[*i] = *v);
    }
    (0.5 * d.dot(&f.dot(&d)), w + &d)
}

/// Fails if what stays is not updated, or only for one weight at a time.
#[test]
fn what_stays_makes_good_for_all_that_went() {
    let (w, g) = (random(3, 8, 7), gradients(50, 24, 8));
    let fisher = BlockFisher::from_gradients(g.view(), [3, 8], 6, 1e-3, Par::Seq).unwrap();
    for pattern in [
        Pattern::unstructured(0.5),
        Pattern::Unstructured { sparsity: 0.4, scope: Scope::Matrix },
        Pattern::nm(2, 4),
        Pattern::Block { rows: 1, cols: 2, sparsity: 0.5 },
    ] {
        let target = Target::new("w", w.view());
        let (mask, ours) =
            Obert::new(pattern).prune(&[(&target, &fisher)], Par::Seq).unwrap().remove(0);
        let (mut repaired, mut bare) = (0.0, 0.0);
        for b in 0..4 {
            let places: Vec<(usize, usize)> = (b * 6..b * 6 + 6).map(|i| (i / 8, i % 8)).collect();
            let q: Vec<usize> =
                (0..6).filter(|i| !mask.keeps(places[*i].0, places[*i].1)).collect();
            let before = Array1::from_iter(places.iter().map(|p| f64::from(w[*p])));
            let f = dense(&g, b * 6, b * 6 + 6, 1e-3);
            let (cost, wanted) = best_repair(&f, &before, &q);
            let d =
                Array1::from_iter((0..6).map(|i| if q.contains(&i) { -before[i] } else { 0.0 }));
            (repaired, bare) = (repaired + cost, bare + 0.5 * d.dot(&f.dot(&d)));
            for (i, place) in places.iter().enumerate() {
                assert!((f64::from(ours[*place]) - wanted[i]).abs() < 1e-5, "{pattern:?}");
            }
        }
        assert!(repaired < 0.9 * bare, "{repaired} {bare}");
    }
}

/// Fails if curvature is ignored: the weight that is smaller by far, but matters more, stays.
#[test]
fn curvature_decides() {
    let w = array![[0.1f32, 1.0]];
    let g = array![[100.0f32, 0.01], [-100.0, 0.01], [100.0, -0.01]];
    let fisher = BlockFisher::from_gradients(g.view(), [1, 2], 2, 1e-7, Par::Seq).unwrap();
    let target = Target::new("w", w.view());
    let pruned = Obert::new(Pattern::unstructured(0.5)).prune(&[(&target, &fisher)], Par::Seq);
    let (mask, _) = pruned.unwrap().remove(0);
    assert!(mask.keeps(0, 0) && !mask.keeps(0, 1));
}

/// Fails if each matrix loses its own half.
#[test]
fn one_budget_over_several_matrices() {
    let (a, b) = (random(4, 6, 9), random(4, 6, 10) * 1e-3);
    let g = gradients(40, 24, 11);
    let fisher = BlockFisher::from_gradients(g.view(), [4, 6], 6, 1e-4, Par::Seq).unwrap();
    let (a, b) = (Target::new("a", a.view()), Target::new("b", b.view()));
    for pattern in [
        Pattern::Unstructured { sparsity: 0.5, scope: Scope::Matrix },
        Pattern::Block { rows: 1, cols: 3, sparsity: 0.5 },
    ] {
        let pruned = Obert::new(pattern).prune(&[(&a, &fisher), (&b, &fisher)], Par::Seq).unwrap();
        assert_eq!(pruned[0].0.kept(0..4) + pruned[1].0.kept(0..4), 24);
        assert!(pruned[0].0.kept(0..4) > pruned[1].0.kept(0..4) + 12, "{pattern:?}");
    }
}

#[test]
fn it_composes_and_says_what_it_lacks() {
    let w = random(6, 8, 12);
    let fisher =
        BlockFisher::from_gradients(gradients(30, 48, 13).view(), [6, 8], 8, 1e-5, Par::Seq);
    let method = Obert::new(Pattern::nm(2, 4)).with_fisher("weight", fisher.unwrap());
    let made = method.compress(w.view(), &Calibration::none(8)).unwrap();
    assert_eq!(made.fallback, None);
    check_node(made.node.boxed(), &Registry::default(), 1e-5);
    let mut group = Group::single(Target::new("other", w.view()), Calibration::none(8));
    let selection = method.select_group(&mut group).unwrap().remove(0);
    assert!(selection.fallback.unwrap().contains("magnitude"));
    let by_magnitude = magnitude(Pattern::nm(2, 4)).select_group(&mut group).unwrap().remove(0);
    assert_eq!(selection.mask.bits()[..], by_magnitude.mask.bits()[..]);
}

#[test]
fn errors_say_what_is_allowed() {
    let kinds = |error: tensorpress_tensor::Error, kind, part: &str| {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    use ErrorKind::{InsufficientData, InvalidArgument, Numerical, ShapeMismatch};
    kinds(BlockFisher::new([2, 2], 0, 1e-7, 1).unwrap_err(), InvalidArgument, "block");
    kinds(BlockFisher::new([2, 2], 4, 1e-7, 0).unwrap_err(), InvalidArgument, "samples");
    for damp in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-320] {
        kinds(BlockFisher::new([2, 2], 4, damp, 1).unwrap_err(), InvalidArgument, "damp");
    }
    let mut fisher = BlockFisher::new([2, 2], 4, 1e-7, 2).unwrap();
    let add = |fisher: &mut BlockFisher, g: &Array2<f32>| fisher.add(g.view(), Par::Seq);
    kinds(add(&mut fisher, &random(1, 3, 1)).unwrap_err(), ShapeMismatch, "2 x 2");
    kinds(add(&mut fisher, &array![[0.0, f32::NAN, 0.0, 0.0]]).unwrap_err(), Numerical, "weight 1");
    kinds(add(&mut fisher, &random(3, 4, 1)).unwrap_err(), InvalidArgument, "samples = 2");
    let w = random(2, 2, 2);
    let score = |fisher: &BlockFisher, pattern| Obert::new(pattern).saliency(w.view(), fisher);
    let half = Pattern::unstructured(0.5);
    kinds(score(&fisher, half).unwrap_err(), InsufficientData, "0 of 2");
    add(&mut fisher, &random(2, 4, 1)).unwrap();
    assert!(score(&fisher, half).is_ok());
    for (rows, cols) in [(2, 1), (1, 3)] {
        let error = score(&fisher, Pattern::Block { rows, cols, sparsity: 0.5 }).unwrap_err();
        kinds(error, InvalidArgument, "1 output");
    }
    let other = BlockFisher::new([4, 1], 4, 1e-7, 1).unwrap();
    kinds(score(&other, half).unwrap_err(), ShapeMismatch, "4 x 1");
    // A damping that f64 cannot tell from 0 beside such gradients: where it is noticed, it is said.
    let huge = random(1, 4, 1) * 1e15;
    let lost = BlockFisher::from_gradients(huge.view(), [2, 2], 1, 1e-7, Par::Seq).unwrap();
    kinds(score(&lost, half).unwrap_err(), Numerical, "raise");
    let made = Obert::new(half)
        .with_fisher("weight", lost)
        .compress(w.view(), &Calibration::none(2))
        .unwrap();
    assert!(made.fallback.unwrap().contains("magnitude"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_and_any_threads(
        rows in 1usize..7,
        cols in 1usize..9,
        block in 1usize..20,
        samples in 1usize..9,
        sparsity in 0.0f64..=1.0,
        zeros in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let mut w = random(rows, cols, seed);
        let mut g = gradients(samples, rows * cols, seed + 1);
        if zeros {
            w.column_mut(0).fill(0.0);
            g.fill(0.0);
        }
        let pattern = Pattern::Unstructured { sparsity, scope: Scope::Matrix };
        let run = |par: Par| {
            let fisher = BlockFisher::from_gradients(g.view(), [rows, cols], block, 1e-4, par).unwrap();
            let target = Target::new("w", w.view());
            Obert::new(pattern).prune(&[(&target, &fisher)], par).unwrap().remove(0)
        };
        let (mask, ours) = run(Par::Seq);
        prop_assert_eq!(mask.kept(0..rows), rows * cols - (rows as f64 * cols as f64 * sparsity + 1e-9) as usize);
        prop_assert!(ours.iter().all(|v| v.is_finite()));
        prop_assert!(ours.indexed_iter().all(|((r, c), v)| mask.keeps(r, c) || *v == 0.0));
        prop_assert_eq!(&run(Par::Rayon).1, &ours);
        // Gradients one by one.
        let mut fisher = BlockFisher::new([rows, cols], block, 1e-4, samples as u64).unwrap();
        for row in g.rows() {
            fisher.add(row.insert_axis(tensorpress_tensor::ndarray::Axis(0)), Par::Seq).unwrap();
        }
        let target = Target::new("w", w.view());
        prop_assert_eq!(&Obert::new(pattern).prune(&[(&target, &fisher)], Par::Seq).unwrap()[0].1, &ours);
    }
}
