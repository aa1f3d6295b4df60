//! A budget of one GGUF file, whose tensors are of the types that lose least within it.

use std::collections::BTreeSet;
use std::path::Path;

use tensorpress::model::embedded;
use tensorpress::pipeline::{Budget, CalibrationText, Compressor, Mix, Report, Target};
use tensorpress::prelude::*;
use tensorpress::tensor::linalg::SplitMix;
use tensorpress::{ErrorKind, Result, registry};
use tensorpress_tensor::testing::data;

/// Q4_0, Q5_0 and Q8_0 by rounding, and what no type holds.
const TYPES: [&str; 4] = [
    "rtn(bits=4, group=32, symmetric=true)",
    "rtn(bits=5, group=32, symmetric=true)",
    "rtn(bits=8, group=32, symmetric=true)",
    "rtn(bits=3, group=16)",
];

fn within(source: &Source, mix: Mix, out: &Path) -> Result<Report> {
    let compressor = Compressor::within(mix).with_format(Target::Gguf(None)).with_force(true);
    compressor.run(source, out)
}

fn mix(budget: Budget) -> Mix {
    Mix::new(budget).with_levels(TYPES).expect("levels")
}

/// The least that levels make, as a refusal says it.
fn least(source: &Source, out: &Path) -> Result<f64> {
    let refused = within(source, mix(Budget::FileBytes(1)), out).expect_err("a byte");
    let text = refused.to_string();
    match text.contains("is too small").then(|| text.rsplit(' ').next()?.parse().ok()).flatten() {
        Some(least) => Ok(least),
        None => Err(refused),
    }
}

/// Not a byte over, and hardly one under: a file's length is known before.
#[test]
fn files_of_mixed_types_keep_targets() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("demo.gguf");
    let source = Source::demo(&registry()).expect("the demo");
    let least = least(&source, &out).expect("a least size");
    let most = within(&source, mix(Budget::FileBytes(2_600_000)), &out).expect("the best");
    let most = most.bytes_after as f64;
    let mut random = SplitMix::new(5);
    // Near the most, one matrix is left that could be more, and what is left is too little for it.
    for at in (0..8).map(|_| 0.9 * random.next_f64()).chain([0.0, 1.0]) {
        let target = (least + at * (most - least)) as u64;
        let report = within(&source, mix(Budget::FileBytes(target)), &out).expect("fits");
        let length = std::fs::metadata(&out).expect("a file").len();
        println!("{target}: {length} bytes, {:.3} bits", report.bits_per_weight);
        assert_eq!(report.bytes_after, length);
        assert!(length <= target && length as f64 > 0.98 * target as f64, "{length} of {target}");
        assert!(report.converted.iter().all(|tensor| tensor.lossless), "codes are kept");
        let read = tensorpress::open_model(&out).expect("a model");
        read.decoder().and_then(|decoder| decoder.materialise()).expect("runs");
    }
    let middle = within(&source, mix(Budget::BitsPerWeight(6.0)), &out).expect("fits");
    assert!(middle.bits_per_weight <= 6.0 && middle.bits_per_weight > 5.9);
    let types: BTreeSet<&str> = middle.converted.iter().map(|it| it.to.as_str()).collect();
    assert!(types.len() > 2, "a mix: {types:?}");
}

/// What others have quantised, with its table of embeddings: that stays, and is counted once.
#[test]
fn files_become_smaller_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let (large, out) = (folder.path().join("large.gguf"), folder.path().join("small.gguf"));
    let demo = Source::demo(&registry()).expect("the demo");
    let q8 = "gguf(Q8_0)".parse().expect("a format");
    let _ = tensorpress::pipeline::Convert::new(q8).run(&demo, &large).expect("converted");
    let source = tensorpress::open_model(&large).expect("a file");
    for budget in [Budget::FileBytes(1_200_000), Budget::BitsPerWeight(6.0)] {
        let compressor = Compressor::within(mix(budget)).with_from_quantized(true);
        let compressor = compressor.with_format(Target::Gguf(None)).with_force(true);
        let report = compressor.run(&source, &out).expect("fits");
        let (mut bits, mut weights) = (0.0, 0.0);
        for layer in report.layers.iter().filter(|layer| layer.name.contains("layers")) {
            let [rows, cols] = source.weight(&layer.name).expect("a matrix").shape();
            bits += layer.bits_per_weight * (rows * cols) as f64;
            weights += (rows * cols) as f64;
        }
        let mean = bits / weights;
        println!("{budget:?}: {} bytes, {mean:.3} bits of blocks", report.bytes_after);
        match budget {
            Budget::FileBytes(bytes) => {
                assert!(report.bytes_after <= bytes && report.bytes_after > bytes / 100 * 98);
            }
            _ => assert!(mean > 5.9 && mean <= 6.0, "{mean}"),
        }
    }
}

/// Without levels there are those of the types that do best.
#[test]
fn types_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("demo.gguf");
    let source = Source::demo(&registry()).expect("the demo");
    let text = CalibrationText::new(embedded::CALIBRATION).with_windows(8).with_length(128);
    let compressor = Compressor::within(Mix::new(Budget::FileBytes(1_000_000)));
    let compressor = compressor.with_format(Target::Gguf(None)).with_calibration(text);
    let report = compressor.run(&source, &out).expect("fits");
    let types: BTreeSet<&str> = report.converted.iter().map(|it| it.to.as_str()).collect();
    println!("{} bytes of {types:?}", report.bytes_after);
    assert!(report.bytes_after <= 1_000_000 && report.bytes_after > 980_000 && types.len() > 2);
    let table = report.layers.iter().find(|layer| layer.name.contains("embed_tokens"));
    assert!(table.is_some_and(|table| table.method.contains("ggml")), "head and table are one");
}

/// What other formats hold is one kind for all, and codes of no fixed length are in none.
#[test]
fn what_no_file_holds_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("the demo");
    for (format, says) in
        [("gguf(Q4_K)", "levels name the types"), ("gptq", "all of one kind"), ("awq", "one kind")]
    {
        let out = folder.path().join("out");
        let format = format.parse().expect("a format");
        let refused = Compressor::within(mix(Budget::BitsPerWeight(5.0))).with_format(format);
        let error = refused.run(&source, &out).expect_err("one kind");
        assert!(error.to_string().contains(says) && !out.exists(), "{error}");
    }
    let out = folder.path().join("out.gguf");
    for levels in [&["rtn(bits=3) | coded(rans)"][..], &["rtn(bits=3, group=24)"]] {
        let mix = Mix::new(Budget::FileBytes(1_000_000)).with_levels(levels).expect("levels");
        let error = within(&source, mix, &out).expect_err("no type");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains("any of the levels"), "{error}");
    }
}

/// Whatever the model is built of; experts of one tensor are of one type.
#[test]
fn models_of_all_kinds_keep_targets() {
    let Some(models) = data::find("golden/models") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.gguf");
    let (mut kept, mut experts) = (0, 0);
    for model in std::fs::read_dir(models).expect("models").map(|model| model.expect("one").path())
    {
        let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(source) = tensorpress::open_model(&model) else { continue };
        let least = match least(&source, &out) {
            Ok(least) => least,
            Err(refused) => {
                println!("{name}: {refused}");
                continue;
            }
        };
        let target = (1.05 * least) as u64;
        let report = within(&source, mix(Budget::FileBytes(target)), &out)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        println!("{name}: {} of {target}", report.bytes_after);
        let bytes = report.bytes_after;
        assert!(bytes <= target && bytes > target / 20 * 19, "{name}: {bytes} of {target}");
        kept += 1;
        experts += usize::from(report.layers.iter().any(|layer| layer.name.contains("experts")));
    }
    assert!(kept > 8 && experts > 0, "{kept} models, {experts} with experts");
}
