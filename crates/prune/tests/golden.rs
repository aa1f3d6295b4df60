//! Vectors made by the official implementations: masks and output errors must agree.

use tensorpress_prune::{Pattern, Scope, SparseGpt, wanda};
use tensorpress_tensor::grid::{Clip, IntGrid};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Mask, decode};
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::{Compress, DType, Group, Select, Target};

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
            .map(|bits| IntGrid::new(bits as u8, false, Clip::MinMax, DType::F32).unwrap());
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1024).unwrap();
        let target = Target::new("w", golden.layer.weight.view());
        let mut group = Group::single(target.clone(), calibration.clone());
        let prepared = Prepared::new(&mut group, f64::from(method.damp), false).unwrap().unwrap();
        let pruned = method.sweep(&target, &prepared, grid.as_ref(), Par::Seq).unwrap();
        let same = agreement(&pruned.mask, &golden.floats("zero_mask"));
        let asked = golden.figure("f64_mask_agreement").unwrap_or(1.0).min(1.0) - 0.001;
        println!("{}: masks equal on {same:.6} (asked {asked:.6})", golden.name);
        assert!(same >= asked, "{}: {same}", golden.name);
        check_error(golden, pruned.weight.view());
        if grid.is_some() {
            let (codes, scale, zero) =
                (golden.floats("codes"), golden.floats("scale"), golden.floats("zero"));
            let kept = |((r, c), _): &((usize, usize), &f32)| pruned.mask.keeps(*r, *c);
            let (mut equal, mut count) = (0, 0);
            for ((r, c), code) in codes.indexed_iter().filter(kept) {
                count += 1;
                equal += usize::from(f32::from(pruned.codes[[r, c]]) == *code);
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
