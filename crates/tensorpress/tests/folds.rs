//! AWQ through the pipeline: whose scales go where, and that the model stays the model.

mod tiny;

use std::path::Path;

use tensorpress::model::embedded;
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress::tensor::Scratch;
use tensorpress::tensor::ndarray::{Array2, ArrayView1};
use tiny::Tiny;

fn compress(line: &str, source: &Source, out: &Path) -> (Source, Report) {
    let text = CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(48);
    let report =
        Compressor::new(Recipe::parse(line).unwrap()).with_calibration(text).run(source, out);
    (open_model(out).unwrap(), report.unwrap())
}

fn logits(source: &Source) -> Array2<f32> {
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 200).collect();
    let (model, mut scratch) = (source.decoder().unwrap(), Scratch::default());
    let hidden = model.hidden(&ids, &mut scratch).unwrap();
    model.head().logits(hidden.view(), &mut scratch).unwrap()
}

/// Makes some rows larger than others, so that there is something to scale behind them.
fn uneven(tiny: &mut Tiny, names: &[&str]) {
    let wanted = |name: &str| names.iter().any(|end| name.ends_with(end));
    for (shape, values) in tiny.tensors.iter_mut().filter(|(n, _)| wanted(n)).map(|(_, t)| t) {
        let rows = values.chunks_mut(shape[1]).enumerate();
        rows.for_each(|(r, row)| row.iter_mut().for_each(|v| *v *= 1.0 + 4.0 * (r % 5) as f32));
    }
}

fn norm(m: &Array2<f32>) -> f64 {
    m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// A matrix of a block, decoded, and whether a map is stored around it.
fn matrix(source: &Source, block: usize, role: &str) -> (Array2<f32>, bool) {
    let block = source.block(block).unwrap();
    let linear = block.linears().find(|l| l.name().contains(role)).unwrap();
    let maps = linear.node().is_some_and(|node| node.describe().get("transform").is_some());
    (linear.decode().unwrap(), maps)
}

/// How much larger each column has become: by its largest entry.
fn growth(before: &Array2<f32>, after: &Array2<f32>) -> Vec<f32> {
    let most = |column: ArrayView1<'_, f32>| column.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    before.columns().into_iter().zip(after.columns()).map(|(b, a)| most(a) / most(b)).collect()
}

#[test]
fn scales_go_into_values_and_up() {
    let folder = tempfile::tempdir().unwrap();
    // Heads of their own values; with and without biases; heads that share values.
    for (i, (kind, heads, biased)) in
        [("llama", (3, 3), true), ("qwen2", (3, 3), false), ("llama", (4, 2), false)]
            .into_iter()
            .enumerate()
    {
        let mut tiny = Tiny::new(kind, heads, 8, 40, biased, 7 + i as u64);
        uneven(&mut tiny, &["v_proj.weight", "up_proj.weight"]);
        let source = tiny.source(&folder.path().join(format!("{i}")));
        let run = |line: &str, name: &str| {
            compress(line, &source, &folder.path().join(format!("{i}{name}")))
        };
        let (scaled, report) = run("awq(bits=8, group=8)", "scaled");
        let (plain, _) = run("rtn(bits=8, group=8)", "plain");
        let exact = logits(&source);
        let error = |made: &Source| norm(&(&logits(made) - &exact)) / norm(&exact);
        let (ours, rounding) = (error(&scaled), error(&plain));
        println!("{kind} {heads:?}: logits differ by {ours:.5}, rounded to nearest {rounding:.5}");
        assert!(ours < 2.0 * rounding, "{kind} {heads:?}: {ours} against {rounding}");
        let shared = heads.0 != heads.1;
        for block in 0..2 {
            for (role, stores) in [
                ("q_proj", false),
                ("v_proj", false),
                ("o_proj", shared),
                ("up_proj", false),
                ("down_proj", false),
            ] {
                assert_eq!(matrix(&scaled, block, role).1, stores, "{role} of {kind} {heads:?}");
            }
            // Their columns are those of the scaled matrix where the scales are elsewhere.
            let scaled_columns = |role: &str| {
                let [before, after] = [&source, &scaled].map(|s| matrix(s, block, role).0);
                growth(&before, &after).into_iter().filter(|g| (g - 1.0).abs() > 0.05).count()
            };
            assert!(scaled_columns("down_proj") > 20, "nothing was folded into up");
            assert_eq!(scaled_columns("o_proj") > 8, !shared, "{kind} {heads:?}");
        }
        // The report is in the order of the model, and every error is that of a rounded matrix.
        let order: Vec<&str> = report.layers.iter().map(|l| l.name.as_str()).collect();
        let linears = (0..2).flat_map(|b| source.linears(b)).map(|spec| spec.name);
        let linears: Vec<String> = linears.collect();
        let of_blocks: Vec<&str> =
            order.into_iter().filter(|name| linears.iter().any(|l| l == name)).collect();
        assert_eq!(of_blocks, linears);
        let worst = report.layers.iter().filter_map(|l| l.error).fold(0.0, f64::max);
        assert!(worst < 0.02, "{worst}");
    }
}

/// What a method calibrates on its own block's compressed layers cannot come before them: its scales are stored.
#[test]
fn solvers_that_follow_the_stream_store_their_scales() {
    let folder = tempfile::tempdir().unwrap();
    let source = Tiny::new("llama", (3, 3), 8, 40, true, 11).source(&folder.path().join("in"));
    let line = "awq | gptq(bits=8, group=8)";
    let (made, _) = compress(line, &source, &folder.path().join("out"));
    assert!(matrix(&made, 0, "o_proj").1 && matrix(&made, 1, "down_proj").1);
    let exact = logits(&source);
    assert!(norm(&(&logits(&made) - &exact)) < 0.05 * norm(&exact));
}

#[test]
fn queries_and_keys_are_not_clipped() {
    let folder = tempfile::tempdir().unwrap();
    let source = Tiny::new("llama", (3, 3), 8, 40, false, 13).source(&folder.path().join("in"));
    let run = |clip: &str| {
        let line = format!("awq(bits=3, group=8, clip={clip})");
        compress(&line, &source, &folder.path().join(clip)).0
    };
    let (whole, clipped) = (run("minmax"), run("output"));
    // The first block alone reads the same inputs in both.
    for (role, same) in [("q_proj", true), ("k_proj", true), ("v_proj", false), ("up_proj", false)]
    {
        assert_eq!(matrix(&whole, 0, role).0 == matrix(&clipped, 0, role).0, same, "{role}");
    }
}
