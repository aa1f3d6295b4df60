//! Vectors made by the official implementations: masks and output errors must agree.

use tensorpress_prune::{Grid, Pattern, Pruned, Scope, SparseGpt, wanda};
use tensorpress_tensor::grid::{Clip, IntGrid};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Mask, decode};
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::{Compress, DType, Group, Select, Target, Usable};

/// Share of entries on which two supports agree; `pruned` is 1 where the official code prunes.
fn agreement(mask: &Mask, pruned: &Array2<f32>) -> f64 {
    let same = pruned.indexed_iter().filter(|((r, c), p)| mask.keeps(*r, *c) == (**p == 0.0));
    same.count() as f64 / pruned.len() as f64
}

fn check_error(golden: &Golden, ours: ArrayView2<'_, f32>) {
    let error = golden.layer.output_error(ours);
    let stated = golden.figure("output_rel_err").expect("a figure");
    println!("{}: output error {error:.6} (official {stated:.6})", golden.name);
    assert!((error / stated - 1.0).abs() <= 0.01, "{}: {error} vs {stated}", golden.name);
}

fn number(golden: &Golden, key: &str) -> f64 {
    golden.param(key).as_f64().unwrap_or(0.0)
}

#[test]
fn wanda_matches_official_masks() {
    let Some(files) = Golden::all("wanda") else { return };
    for golden in &files {
        let (n, m) = (number(golden, "prune_n") as usize, number(golden, "prune_m") as usize);
        let sparsity = number(golden, "sparsity_ratio");
        let pattern = match (m, golden.flag("use_variant")) {
            (0, false) => Pattern::unstructured(sparsity),
            (0, true) => Pattern::Unstructured { sparsity, scope: Scope::RowMass },
            // The official n of m go.
            (m, _) => Pattern::nm(m - n, m),
        };
        let calibration = Calibration::from_samples(golden.layer.x.clone(), Par::Seq);
        let target = Target::new("w", golden.layer.weight.view());
        let mut group = Group::single(target, calibration.clone());
        let selection = wanda(pattern).select_group(&mut group).unwrap().remove(0);
        assert!(selection.fallback.is_none());
        let same = agreement(&selection.mask, &golden.floats("prune_mask"));
        println!("{}: masks equal on {same:.6}", golden.name);
        assert!(same >= 0.999, "{}: {same}", golden.name);
        let pruned = wanda(pattern).compress(golden.layer.weight.view(), &calibration).unwrap();
        check_error(golden, decode(&pruned.node).unwrap().view());
    }
    println!("golden files checked: wanda {}", files.len());
    assert!(files.len() >= 9, "golden vectors are missing");
}

fn sweep(method: &SparseGpt, golden: &Golden, gram: &Array2<f32>, grid: Option<Grid>) -> Pruned {
    let calibration = Calibration::from_gram(gram.clone(), 1024).unwrap();
    let target = Target::new("w", golden.layer.weight.view());
    let mut group = Group::single(target.clone(), calibration);
    let prepared = Prepared::new(&mut group, f64::from(method.damp), false).unwrap();
    let Usable::Yes(prepared) = prepared else { panic!("statistics that can be used") };
    method.sweep(&target, &prepared, grid, Par::Seq).unwrap()
}

/// The entries that are decided alike whatever the last bits of the Gram matrix: all others are ties, which rounding
/// breaks.
fn away_from_ties(method: &SparseGpt, golden: &Golden, grid: Option<Grid>) -> Array2<bool> {
    let decided = |seed: u64| {
        let mut random = SplitMix::new(seed);
        let mut gram = golden.layer.gram.clone();
        for i in 0..gram.nrows() {
            for j in 0..=i {
                let factor = 1.0 + 2e-6 * (random.next_f64() as f32 - 0.5);
                gram[[i, j]] *= factor;
                gram[[j, i]] = gram[[i, j]];
            }
        }
        sweep(method, golden, &gram, grid).weight.mapv(|w| w != 0.0)
    };
    let first = decided(1);
    let mut stable = Array2::from_elem(first.dim(), true);
    for seed in 2..6 {
        let other = decided(seed);
        for ((stable, a), b) in stable.iter_mut().zip(&first).zip(&other) {
            *stable &= a == b;
        }
    }
    stable
}

#[test]
fn sparsegpt_matches_official_masks() {
    let Some(files) = Golden::all("sparsegpt") else { return };
    for golden in &files {
        let (n, m) = (number(golden, "prunen") as usize, number(golden, "prunem") as usize);
        let pattern = match m {
            0 => Pattern::unstructured(number(golden, "sparsity")),
            m => Pattern::nm(m - n, m),
        };
        let method = SparseGpt::new(pattern)
            .with_damp(number(golden, "percdamp") as f32)
            .with_block(number(golden, "blocksize") as usize);
        let grid = (golden.param("wbits").as_u64())
            .filter(|bits| (2..=8).contains(bits) && golden.file.contains("codes"))
            .map(|bits| IntGrid::new(bits as u8, false, Clip::MinMax, DType::F32).unwrap())
            .map(|family| Grid { family, group: golden.layer.weight.ncols() });
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1024).unwrap();
        let pruned = sweep(&method, golden, &golden.layer.gram, grid);
        // The official mask is that of the zeros, those of codes that mean 0 included.
        let zeros = pruned.weight.mapv(|w| w != 0.0);
        let official = golden.floats("zero_mask");
        let same = agreement(&Mask::from_bools(zeros.view()), &official);
        let stable = away_from_ties(&method, golden, grid);
        let (mut equal, mut count) = (0, 0);
        for (((r, c), kept), stable) in zeros.indexed_iter().zip(&stable) {
            equal += usize::from(*stable && *kept == (official[[r, c]] == 0.0));
            count += usize::from(*stable);
        }
        let (clear, ties) = (equal as f64 / count as f64, stable.len() - count);
        let name = &golden.name;
        println!("{name}: masks equal on {same:.6}; away from {ties} ties on {clear:.6}");
        assert!(clear >= 0.999, "{name}: {clear}");
        assert!(ties as f64 <= 0.01 * stable.len() as f64, "{name}: {ties} ties");
        let asked = golden.figure("f64_mask_agreement").unwrap_or(1.0).min(1.0) - 0.001;
        assert!(same >= asked, "{name}: {same}");
        check_error(golden, pruned.weight.view());
        if grid.is_some() {
            let (codes, scale, zero) =
                (golden.floats("codes"), golden.floats("scale"), golden.floats("zero"));
            let kept = |((r, c), _): &((usize, usize), &f32)| pruned.mask.keeps(*r, *c);
            let (mut equal, mut count) = (0, 0);
            for ((r, c), code) in codes.indexed_iter().filter(kept) {
                count += 1;
                equal += usize::from(f32::from(pruned.codes[[r, c]]) == *code);
                // One grid a row: the whole row is a group.
                assert!((pruned.grids[r].scale / scale[[r, 0]] - 1.0).abs() < 1e-6);
                assert_eq!(pruned.grids[r].zero, zero[[r, 0]]);
            }
            let equal = f64::from(equal as u32) / f64::from(count);
            println!("{}: codes of kept weights equal on {equal:.6}", golden.name);
            assert!(equal >= asked - 0.005, "{}: {equal}", golden.name);
        } else {
            let node = method.compress(golden.layer.weight.view(), &calibration).unwrap().node;
            assert_eq!(decode(&node).unwrap(), pruned.weight);
        }
    }
    println!("golden files checked: sparsegpt {}", files.len());
    assert!(files.len() >= 9, "golden vectors are missing");
}
