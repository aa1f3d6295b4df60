//! Vectors of the official implementations: ASVD, SVD-LLM and EoRA, compared by what the factors decode to.

use tensorpress_lowrank::{LowRank, Metric, Rank, Solver, asvd, eora, svd, svd_llm};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::{Compress, Node};

fn product<M: Metric>(
    method: LowRank<M>,
    weight: ArrayView2<'_, f32>,
    calibration: &Calibration,
    rank: usize,
) -> Array2<f32> {
    let method = method.with_always(true).with_solver(Solver::Exact);
    let layer = method.compress(weight, calibration).unwrap();
    assert!(layer.fallback.is_none(), "{:?}", layer.fallback);
    assert_eq!(layer.node.describe()["left"]["shape"][1], rank, "rank");
    decode(&*layer.node).unwrap()
}

/// The error of `ours` beside the official figure, as a ratio; fails if they differ by more than half a percent.
fn check(golden: &Golden, what: &str, ours: f64, figure: &str) {
    let official = golden.figure(figure).expect("a figure");
    let ratio = ours / official;
    println!("{}: {what} {ours:.6}, official {official:.6}, ratio {ratio:.5}", golden.name);
    assert!((ratio - 1.0).abs() <= 0.005, "{}: {what} {ours} for {official}", golden.name);
}

fn weight_error(weight: &Array2<f32>, ours: &Array2<f32>) -> f64 {
    let norm = |m: Array2<f32>| m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    norm(weight - ours) / norm(weight.clone())
}

#[test]
fn asvd_matches_the_exact_decomposition() {
    let Some(files) = Golden::all("asvd") else { return };
    for golden in &files {
        let rank = golden.param("rank").as_u64().unwrap() as usize;
        let alpha = golden.param("alpha").as_f64().unwrap() as f32;
        let calibration = Calibration::from_samples(golden.layer.x.clone(), Par::Seq);
        let weight = &golden.layer.weight;
        // The same rank by the parameters that stay.
        let kept = golden.param("param_ratio").as_f64().unwrap();
        let ours = product(asvd(Rank::Ratio(1.0 - kept), alpha), weight.view(), &calibration, rank);
        check(
            golden,
            "output error",
            golden.layer.output_error(ours.view()),
            "exact_svd_output_rel_err",
        );
        check(golden, "weight error", weight_error(weight, &ours), "exact_svd_weight_rel_err");
    }
    println!("golden files checked: asvd {}", files.len());
    assert!(files.len() >= 2, "golden vectors are missing");
}

#[test]
fn svd_llm_matches_official_products() {
    let Some(files) = Golden::all("svdllm") else { return };
    for golden in &files {
        let rank = golden.param("rank").as_u64().unwrap() as usize;
        let kept = golden.param("ratio").as_f64().unwrap();
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1024).unwrap();
        let weight = &golden.layer.weight;
        let ours = product(svd_llm(Rank::Ratio(1.0 - kept)), weight.view(), &calibration, rank);
        let error = golden.layer.output_error(ours.view());
        check(golden, "output error", error, "theory_output_rel_err");
        let plain = product(svd(Rank::Number(rank)), weight.view(), &calibration, rank);
        let plain_error = golden.layer.output_error(plain.view());
        check(golden, "plain output error", plain_error, "plain_svd_output_rel_err");
        check(
            golden,
            "plain weight error",
            weight_error(weight, &plain),
            "plain_svd_weight_rel_err",
        );
        // Where the inputs span everything, the product itself is unique.
        if golden.meta()["cholesky_fallback"] == "false" {
            let official = golden.floats("svd_u").dot(&golden.floats("svd_v"));
            let apart = weight_error(&official, &ours);
            println!("{}: products differ by {apart:.2e}", golden.name);
            assert!(apart < 5e-3, "{}: {apart}", golden.name);
        }
    }
    println!("golden files checked: svdllm {}", files.len());
    assert!(files.len() >= 4, "golden vectors are missing");
}

/// The compressed weights that a file of EoRA starts from.
fn compressed(golden: &Golden, all: &[Golden]) -> Array2<f32> {
    let from = golden.param("compressed_from");
    let (method, config) = from.as_str().unwrap().split_once('/').unwrap();
    let layer = &golden.meta()["layer"];
    let name = format!("{method}__{layer}__{config}");
    let base = all.iter().find(|file| file.name == name).unwrap_or_else(|| panic!("no {name}"));
    match method {
        "gptq" => {
            let (codes, scale, zero) =
                (base.floats("codes"), base.floats("scale"), base.floats("zero"));
            let index = base.floats("g_idx");
            Array2::from_shape_fn(codes.dim(), |(r, c)| {
                let group = index.as_slice().unwrap()[c] as usize;
                scale[[r, group]] * (codes[[r, c]] - zero[[r, group]])
            })
        }
        "wanda" => &base.layer.weight * &base.floats("prune_mask").mapv(|m| 1.0 - m),
        "sparsegpt" => base.floats("Wq"),
        other => panic!("{other}"),
    }
}

#[test]
fn eora_matches_official_corrections() {
    let Some(files) = Golden::all("eora") else { return };
    let bases: Vec<Golden> =
        ["gptq", "wanda", "sparsegpt"].iter().flat_map(|m| Golden::all(m).unwrap()).collect();
    for golden in &files {
        let rank = golden.param("rank").as_u64().unwrap() as usize;
        let base = compressed(golden, &bases);
        let weight = &golden.layer.weight;
        check(
            golden,
            "before",
            golden.layer.output_error(base.view()),
            "compressed_output_rel_err",
        );
        let left_over = weight - &base;
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1024).unwrap();
        let correct =
            |correction: Array2<f32>| golden.layer.output_error((&base + &correction).view());
        let ours = product(eora(rank), left_over.view(), &calibration, rank);
        check(golden, "output error", correct(ours.clone()), "output_rel_err");
        let official = golden.floats("lora_B").dot(&golden.floats("lora_A"));
        let apart = weight_error(&official, &ours);
        println!("{}: corrections differ by {apart:.2e}", golden.name);
        assert!(apart < 5e-3, "{}: {apart}", golden.name);
        let plain = product(svd(Rank::Number(rank)), left_over.view(), &calibration, rank);
        check(golden, "plain", correct(plain), "plain_svd_output_rel_err");
    }
    println!("golden files checked: eora {}", files.len());
    assert!(files.len() >= 5, "golden vectors are missing");
}
