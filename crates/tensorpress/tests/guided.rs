//! Gram matrices weighted by gradients, in the pipeline: which models and methods they are for, and what is done without.

mod tiny;

use std::path::{Path, PathBuf};

use tensorpress::model::text::Corpus;
use tensorpress::model::{embedded, perplexity};
use tensorpress::pipeline::{CalibrationText, Report};
use tensorpress::prelude::*;
use tensorpress::tensor::testing::data;
use tiny::{Tiny, folder_bytes};

fn compressor<'a>(line: &str) -> Compressor<'a> {
    let text = CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(32);
    Compressor::new(Recipe::parse(line).unwrap()).with_calibration(text)
}

fn run(line: &str, source: &Source, out: &Path) -> Report {
    compressor(line).run(source, out).unwrap_or_else(|e| panic!("{line}: {e}"))
}

/// All weights of a folder: its config says what the recipe was.
fn weights(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    let name = |path: &Path| PathBuf::from(path.file_name().unwrap());
    files.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}

fn llama(folder: &Path) -> Source {
    Tiny::deep("llama", 4, (8, 4), 4, 32, false, 3).source(&folder.join("model"))
}

#[test]
fn every_method_that_reads_a_gram_matrix_is_guided() {
    let folder = tempfile::tempdir().unwrap();
    let source = llama(folder.path());
    let methods = [
        "gptq(bits=3, group=8)",
        "awq | gptq(bits=3, group=8)",
        "hadamard | gptq(bits=3, group=8)",
        "sparsegpt(pattern=2:4)",
        "wanda(sparsity=0.5) | gptq(bits=3, group=8)",
        "nf4(rounding=feedback)",
        "ggml(type=Q4_0)",
        "watersic(delta=0.01, states=4) | coded(rans)",
        "watersic(bits=3, rows=full) | coded(rans)",
        "obq(bits=3, group=8)",
        "spqr",
    ];
    for (i, method) in methods.iter().enumerate() {
        let outs = [0, 1, 2].map(|way| folder.path().join(format!("{i}-{way}")));
        let plain = run(method, &source, &outs[0]);
        for (line, out) in [("guided", &outs[1]), ("drift | guided(groups=2)", &outs[2])] {
            let report = run(&format!("{line} | {method}"), &source, out);
            let said = |report: &Report| -> Vec<String> {
                let layers = report.layers.iter();
                layers.map(|layer| layer.fallback.clone().unwrap_or_default()).collect()
            };
            let new = said(&report);
            assert!(!new.iter().any(|said| said.contains("guided")), "{line} | {method}: {new:?}");
            assert!(line != "guided" || new == said(&plain), "{method}: {new:?}");
            assert!(weights(out) != weights(&outs[0]), "{line} | {method}");
            // What is written is what is said to be.
            let model = Source::open(out, &registry()).unwrap().decoder().unwrap();
            let judged = perplexity(&model, &[vec![1, 40, 7, 90, 3]], &|_, _| {}).unwrap();
            assert!(judged.perplexity.is_finite(), "{method}");
        }
    }
}

/// Mixtures (a router and experts, which not every token meets) and Gemma's blocks.
#[test]
fn mixtures_and_gemma_are_guided() {
    for name in ["gemma2", "mixtral", "qwen2-moe"] {
        let Some(model) = data::find(&format!("golden/models/{name}")) else { return };
        let source = Source::open(model, &registry()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let line = |w: u32| {
            let ids: Vec<u32> = (0..20).map(|i| 3 + (w * 31 + i * 7) % 40).collect();
            format!("{{\"ids\": {ids:?}}}\n")
        };
        let lines: String = (0..6).map(line).collect();
        let corpus = Corpus::from_bytes(lines.into_bytes(), "ids.jsonl".as_ref()).unwrap();
        let text = CalibrationText::new(corpus).with_length(20);
        let run = |line: &str, out: &Path| {
            let compressor = Compressor::new(Recipe::parse(line).unwrap());
            compressor.with_calibration(text.clone()).run(&source, out).unwrap()
        };
        let [out, plain] = ["out", "plain"].map(|name| folder.path().join(name));
        let report = run("guided | gptq(bits=3, group=8)", &out);
        let alone = run("gptq(bits=3, group=8)", &plain);
        let mut guided = 0;
        for (layer, alone) in report.layers.iter().zip(&alone.layers) {
            let said = layer.fallback.clone().unwrap_or_default();
            guided += usize::from(!said.contains("not guided"));
            // No less is said than without, and no more of what gradients are of.
            assert!(alone.fallback.is_none() || layer.fallback.is_some(), "{}", layer.name);
        }
        println!("{name}: {guided} of {} matrices guided", report.layers.len());
        assert!(2 * guided > report.layers.len());
        assert!(weights(&out) != weights(&plain));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::demo(&registry()).unwrap();
    let by = |threads: usize| {
        let out = folder.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let _ = pool.install(|| run("drift | guided | gptq(bits=3, group=32)", &source, &out));
        folder_bytes(&out)
    };
    assert!(by(1) == by(2));
}

/// An encoder has no backward pass: the method works as if it stood alone, and says so.
#[test]
fn what_cannot_be_gone_back_through_is_not_guided() {
    let Some(model) = data::minilm() else { return };
    let source = Source::open(&model, &registry()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [out, plain] = ["out", "plain"].map(|name| folder.path().join(name));
    let report = run("guided | gptq(bits=4, group=32)", &source, &out);
    let _ = run("gptq(bits=4, group=32)", &source, &plain);
    for layer in &report.layers {
        let said = layer.fallback.as_deref().unwrap_or_default();
        assert!(said.contains("not guided"), "{}: {said}", layer.name);
    }
    assert!(weights(&out) == weights(&plain));
}

#[test]
fn what_it_cannot_stand_before_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let source = llama(folder.path());
    // Data-free methods ask for no pass.
    let report = run("guided | kmeans(bits=3)", &source, &folder.path().join("kmeans"));
    let said = |report: &Report| report.layers[0].fallback.clone().unwrap_or_default();
    assert!(said(&report).contains("reads no Gram matrix"), "{}", said(&report));
    let blind = Compressor::new(Recipe::parse("guided | gptq(bits=3)").unwrap());
    let refused = blind.run(&source, &folder.path().join("blind")).unwrap_err();
    let alone = Compressor::new(Recipe::parse("gptq(bits=3)").unwrap());
    let of_method = alone.run(&source, &folder.path().join("blind")).unwrap_err();
    assert_eq!(refused.kind(), of_method.kind());
    for line in ["guided | drift | gptq", "guided | gptaq", "guided(groups=0) | gptq", "guided"] {
        let refused = Recipe::parse(line).and_then(|r| {
            let compressor =
                Compressor::new(r).with_calibration(CalibrationText::new(embedded::CALIBRATION));
            compressor.run(&source, &folder.path().join("refused")).map(drop)
        });
        assert!(refused.is_err(), "{line}");
    }
}
