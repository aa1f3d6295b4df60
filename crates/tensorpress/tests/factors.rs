//! Factors of low rank in the pipeline: by what errors of outputs cost, by one price of a bit, and as levels of a budget.

mod judged;

use std::path::Path;

use judged::{divergence, held_out};
use tensorpress::model::embedded;
use tensorpress::pipeline::{Budget, CalibrationText, Compressor, Mix, Report};
use tensorpress::prelude::*;
use tensorpress::registry;

fn calibration() -> CalibrationText {
    CalibrationText::new(embedded::CALIBRATION).with_windows(16).with_length(128)
}

fn run(line: &str, source: &Source, out: &Path) -> Report {
    let compressor = Compressor::new(Recipe::parse(line).unwrap()).with_calibration(calibration());
    compressor.run(source, out).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn notes(report: &Report) -> Vec<&str> {
    report.layers.iter().filter_map(|layer| layer.fallback.as_deref()).collect()
}

/// Fails if gradients did not reach the factors, or if factors made nothing of them.
#[test]
fn costs_of_outputs_make_factors_better() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::demo(&registry()).unwrap();
    let segments = held_out(&source);
    for method in ["svd_llm(ratio=0.3)", "saes_svd(ratio=0.3)"] {
        let judge = |line: &str, name: &str| {
            let out = folder.path().join(format!("{name}-{}", &method[..3]));
            let report = run(line, &source, &out);
            assert!(notes(&report).is_empty(), "{line}: {:?}", notes(&report));
            (divergence(&source, &out, &segments), report.bytes_after)
        };
        let (plain, bytes) = judge(method, "plain");
        let (ours, same) = judge(&format!("yaqa | {method}"), "outputs");
        println!("{method}: {plain:.4}, by what outputs cost {ours:.4}");
        assert_eq!(bytes, same);
        assert!(ours < 0.99 * plain, "{method}: {ours} against {plain}");
    }
}

/// As many bits as asked for, to the byte of a direction or so, and less lost than by one ratio: fails if a price were not
/// found for all matrices, or nats were not comparable between them.
#[test]
fn ranks_by_one_price_lose_less_than_one_ratio() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::demo(&registry()).unwrap();
    let segments = held_out(&source);
    let judge = |line: &str, name: &str| {
        let out = folder.path().join(name);
        let report = run(line, &source, &out);
        (divergence(&source, &out, &segments), report)
    };
    let (uniform, one) = judge("yaqa | svd_llm(ratio=0.3)", "ratio");
    let bits = one.bits_per_weight;
    let (ours, report) = judge(&format!("yaqa | svd_llm(bits={bits})"), "bits");
    let off = report.bits_per_weight / bits - 1.0;
    println!("{bits:.3} bits: one ratio {uniform:.4}, one price {ours:.4}, {off:.4} off");
    assert!(off.abs() < 0.02, "{} bits of {bits}", report.bits_per_weight);
    assert!(ours < 0.9 * uniform, "{ours} against {uniform}");
    // What stays whole says so, and nothing else does.
    assert!(notes(&report).iter().all(|note| note.contains("kept dense")), "{:?}", notes(&report));
}

/// Low rank is a level as any other: targets are kept, and the mix loses less than the level for all.
#[test]
fn factors_are_levels_of_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::demo(&registry()).unwrap();
    let segments = held_out(&source);
    let levels = [
        "svd_llm(ratio=0.1)",
        "svd_llm(ratio=0.3)",
        "svd_llm(ratio=0.5)",
        "svd_llm(ratio=0.7)",
        "rocket(ratio=0.3)",
        "rocket(ratio=0.5)",
    ];
    let one = folder.path().join("one");
    let uniform = run(levels[1], &source, &one);
    let mix = Mix::new(Budget::BitsPerWeight(uniform.bits_per_weight)).with_levels(levels).unwrap();
    let out = folder.path().join("mix");
    let mixed = Compressor::within(mix).with_calibration(calibration()).run(&source, &out).unwrap();
    assert!(mixed.bits_per_weight <= uniform.bits_per_weight);
    let methods: std::collections::BTreeSet<&str> =
        mixed.layers.iter().map(|layer| layer.method.as_str()).collect();
    let losses = [&one, &out].map(|out| divergence(&source, out, &segments));
    println!("one level {:.4}, of {} levels {:.4}", losses[0], methods.len(), losses[1]);
    assert!(methods.len() > 1 && losses[1] < losses[0], "{methods:?}: {losses:?}");
}
