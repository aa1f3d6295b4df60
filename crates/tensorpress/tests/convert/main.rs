//! Models in everybody's formats: there and back.
#![cfg(feature = "formats")]

mod importance;
mod in_one_go;
mod pairs;
mod readers;
mod shards;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::ErrorKind;
use tensorpress::formats::ggml::Type;
use tensorpress::model::Source;
use tensorpress::pipeline::{ConversionReport, Convert, Event, Progress, Target, partial_of};
use tensorpress::prelude::*;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, Scratch, Tensor};

/// The golden folders of architectures that have names in GGUF files.
fn folders() -> Vec<(String, PathBuf)> {
    let Some(models) = data::find("golden/models") else { return Vec::new() };
    let entries = std::fs::read_dir(models).expect("a folder").map(|e| e.expect("an entry").path());
    let name = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), path);
    let mut all: Vec<_> = entries.filter(|path| path.is_dir()).map(name).collect();
    all.retain(|(name, path)| {
        let config = std::fs::read_to_string(path.join("config.json")).unwrap_or_default();
        let kinds = [
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma2",
            "gemma3_text",
            "phi3",
            "mixtral",
            "qwen3_moe",
            "bert",
        ];
        let kind = |kind: &str| config.contains(&format!("\"model_type\": \"{kind}\""));
        name != "minilm" && kinds.iter().any(|k| kind(k))
    });
    all.sort();
    all
}

fn ids(folder: &Path) -> Vec<u32> {
    let expected = Checkpoint::open(folder.join("expected.safetensors")).expect("opens");
    let tensor = expected.tensor("ids").expect("ids");
    let values = tensor.bytes().as_chunks::<8>().0.iter();
    values.take(tensor.shape()[1]).map(|b| i64::from_le_bytes(*b) as u32).collect()
}

fn outputs(source: &Source, ids: &[u32]) -> Array2<f32> {
    let mut scratch = Scratch::default();
    if source.config().architecture.is_decoder() {
        let model = source.decoder().expect("a decoder");
        let hidden = model.hidden(ids, &mut scratch).expect("runs");
        return model.head().logits(hidden.view(), &mut scratch).expect("logits");
    }
    let (mask, types) = (vec![1; ids.len()], vec![0; ids.len()]);
    let encoder = source.encoder().expect("an encoder");
    encoder.last_hidden_state(ids, &mask, &types, &mut scratch).expect("runs")
}

fn distance(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let norm = |m: &Array2<f32>| m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    norm(&(a - b)) / norm(a)
}

fn convert(source: &Source, to: Target, out: &Path) -> ConversionReport {
    Convert::new(to).run(source, out).unwrap_or_else(|e| panic!("{}: {e}", to.name()))
}

/// All weights of a model's blocks, its embedding and head, decoded.
fn weights(source: &Source) -> BTreeMap<String, Array2<f32>> {
    let mut names: Vec<String> =
        (0..source.blocks()).flat_map(|b| source.linears(b)).map(|s| s.name).collect();
    names.extend(source.trees().keys().cloned());
    names
        .into_iter()
        .map(|name| {
            (name.clone(), decode(&*source.weight(&name).expect("a weight")).expect("decodes"))
        })
        .collect()
}

fn same_weights(a: &Source, b: &Source, what: &str) {
    // Names may have another beginning.
    let specs = |source: &Source| {
        (0..source.blocks()).flat_map(|b| source.linears(b)).map(|s| s.name).collect::<Vec<_>>()
    };
    let renamed: BTreeMap<String, String> = specs(a).into_iter().zip(specs(b)).collect();
    for (name, weight) in weights(a) {
        let named = renamed.get(&name).unwrap_or(&name);
        let other = decode(&*b.weight(named).unwrap_or_else(|e| panic!("{what}: {e}"))).unwrap();
        let bits = |m: &Array2<f32>| m.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&weight) == bits(&other), "{what}: {name}");
    }
}

#[test]
fn golden_models_go_to_gguf_and_back() {
    let parent = tempfile::tempdir().expect("a folder");
    let (mut checked, mut refused) = (Vec::new(), Vec::new());
    for (name, folder) in folders() {
        let source = open_model(&folder).expect("opens");
        let file = parent.path().join(format!("{name}.gguf"));
        let notes = match Convert::new(Target::Gguf(None)).run(&source, &file) {
            Ok(report) => {
                assert!(report.tensors.iter().all(|t| t.lossless), "{name}");
                report.notes
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Unsupported, "{name}: {e}");
                assert!(!file.exists() && !partial_of(&file).exists(), "{name}");
                refused.push(format!("{name}: {e}"));
                continue;
            }
        };
        let back = open_model(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        same_weights(&source, &back, &name);
        let ids = ids(&folder);
        let error = distance(&outputs(&source, &ids), &outputs(&back, &ids));
        // What files have no words for is said.
        let windowed = notes.iter().any(|note| note.contains("window"));
        assert!(error < 2e-6 || windowed, "{name}: {error}");

        // Through our folder the file comes back, byte for byte.
        let ours = parent.path().join(format!("{name}-ours"));
        convert(&back, Target::Tensorpress, &ours);
        let again = parent.path().join(format!("{name}-again.gguf"));
        convert(&open_model(&ours).expect("opens"), Target::Gguf(None), &again);
        let read = |path: &Path| std::fs::read(path).expect("reads");
        assert!(read(&file) == read(&again), "{name}: the file through our folder");

        let floats = parent.path().join(format!("{name}-f32"));
        let job = Convert::new(Target::Safetensors).with_dtype(DType::F32);
        job.run(&back, &floats).expect("converts");
        same_weights(&source, &open_model(&floats).expect("opens"), &name);
        checked.push(name);
    }
    println!("checked: models to gguf and back {}: {}", checked.len(), checked.join(", "));
    println!("refused: {}", refused.join("; "));
    assert!(checked.len() >= 19 || data::shared().is_none(), "{checked:?} {refused:?}");
}

#[test]
fn every_type_of_ggml_holds_a_model() {
    let parent = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("opens");
    let ids: Vec<u32> = (1..24).collect();
    let before = outputs(&source, &ids);
    let mut checked = 0;
    for ty in Type::all() {
        let Ok(target) = format!("gguf({})", ty.name()).parse::<Target>() else {
            assert!(matches!(ty, Type::Q8_1 | Type::Q8_K));
            continue;
        };
        let file = parent.path().join(format!("{}.gguf", ty.name()));
        let report = match Convert::new(target).run(&source, &file) {
            Ok(report) => report,
            // These need calibration.
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::MissingCalibration, "{e}");
                continue;
            }
        };
        let back = open_model(&file).expect("opens");
        let error = distance(&before, &outputs(&back, &ids));
        assert!(error.is_finite() && error < 2.0, "{}: {error}", ty.name());
        // The report's errors are those of the file.
        for tensor in &report.tensors {
            let weight = decode(&*source.weight(&tensor.name).unwrap()).unwrap();
            let got = decode(&*back.weight(&tensor.name).unwrap()).unwrap();
            let says = tensor.error.unwrap_or(0.0);
            assert!((distance(&weight, &got) - says).abs() < 1e-6, "{}", tensor.name);
        }
        // What is quantised keeps its codes in our folder and in the file again.
        let ours = parent.path().join(format!("{}-ours", ty.name()));
        convert(&back, Target::Tensorpress, &ours);
        let again = parent.path().join("again.gguf");
        convert(&open_model(&ours).expect("opens"), Target::Gguf(None), &again);
        assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap(), "{}", ty.name());
        std::fs::remove_file(&again).expect("removed");
        checked += 1;
    }
    println!("checked: types of ggml {checked}");
    assert!(checked >= 23, "{checked}");
}

/// A compressed demo model.
fn compressed(recipe: &str, out: &Path) -> Source {
    let source = Source::demo(&registry()).expect("opens");
    let recipe = Recipe::parse(recipe).expect("a recipe");
    let _ = Compressor::new(recipe).run(&source, out).expect("compresses");
    open_model(out).expect("opens")
}

#[test]
fn codes_move_between_formats() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let mut checked = Vec::new();
    for (recipe, targets) in [
        ("rtn(bits=4, group=32, symmetric=true)", "gguf gptq gptq_v2 awq compressed-tensors"),
        ("rtn(bits=4, group=32)", "gptq_v2 awq compressed-tensors"),
        ("rtn(bits=4, group=64, symmetric=true)", "gguf gptq gptq_v2 awq compressed-tensors"),
        // Rows of 128 beside such of 384.
        ("rtn(bits=4, group=128, symmetric=true)", "gguf gptq gptq_v2 awq compressed-tensors"),
        ("rtn(bits=4, group=0, symmetric=true)", "gptq gptq_v2 awq compressed-tensors"),
        ("rtn(bits=8, group=32, symmetric=true)", "gguf gptq gptq_v2 compressed-tensors"),
        ("rtn(bits=3, group=64)", "gptq_v2 compressed-tensors"),
        ("rtn(bits=2, group=64)", "gptq_v2 compressed-tensors"),
        ("nf4(block=64)", "bnb"),
        ("nf4(block=64, double_quant=true)", "bnb"),
        ("fp4(block=64)", "bnb"),
    ] {
        let name = recipe.replace(['(', ')', ' ', ',', '='], "_");
        let source = compressed(recipe, &path(&name));
        for to in targets.split(' ') {
            let out = path(&format!("{name}.{to}"));
            let report = convert(&source, to.parse().unwrap(), &out);
            assert!(report.tensors.iter().all(|t| t.lossless), "{recipe} to {to}");
            let theirs = open_model(&out).unwrap_or_else(|e| panic!("{recipe} to {to}: {e}"));
            same_weights(&source, &theirs, &format!("{recipe} to {to}"));
            // And back: the codes are what they were.
            let back = path(&format!("{name}.{to}.back"));
            convert(&theirs, Target::Tensorpress, &back);
            let back = open_model(&back).expect("opens");
            same_weights(&source, &back, &format!("{recipe} to {to} and back"));
            checked.push(format!("{recipe} to {to}"));
        }
    }
    println!("checked: lossless conversions {}", checked.len());
}

#[test]
fn what_a_format_cannot_hold_is_refused_or_rounded() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let source = compressed("rtn(bits=4, group=64) | coded(rans)", &path("w4"));
    for (to, words) in [("bnb", "compress it first"), ("gguf", "requantise")] {
        let out = path(to);
        let error = Convert::new(to.parse().unwrap()).run(&source, &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{to}: {error}");
        assert!(error.to_string().contains(words), "{to}: {error}");
        assert!(to == "bnb" || error.tensor().is_some(), "{to}: {error}");
        assert!(!out.exists() && !partial_of(&out).exists(), "{to}");
        let to: Target = if to == "gguf" { "gguf(Q5_1)" } else { to }.parse().unwrap();
        let report = Convert::new(to).with_requantize(true).run(&source, &out).expect("rounds");
        let lossy: Vec<_> = report.tensors.iter().filter(|t| !t.lossless).collect();
        assert!(!lossy.is_empty() && lossy.iter().all(|t| t.error.is_some_and(|e| e < 0.2)));
        open_model(&out).expect("opens");
    }
    let floats = Source::demo(&registry()).expect("opens");
    let error = Convert::new(Target::Awq).run(&floats, &path("awq")).unwrap_err();
    assert!(error.to_string().contains("compress it first"), "{error}");
    let report = Convert::new(Target::Awq).with_requantize(true).run(&floats, &path("awq"));
    assert!(report.expect("rounds").tensors.iter().any(|t| t.error.is_some_and(|e| e > 0.0)));
    open_model(path("awq")).expect("opens");
}

/// The bytes of a file, or of those of a folder by name.
fn read(out: &Path) -> BTreeMap<String, Vec<u8>> {
    if out.is_file() {
        return BTreeMap::from([(String::new(), std::fs::read(out).unwrap())]);
    }
    let entries = std::fs::read_dir(out).unwrap().map(|e| e.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    entries.map(|path| (name(&path), std::fs::read(path).unwrap())).collect()
}

/// Stops when so many tensors or blocks have begun.
struct StopAt {
    left: usize,
    cancel: Arc<AtomicBool>,
}

impl Progress for StopAt {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Block { .. } = event {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.cancel.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn what_is_broken_off_is_taken_up_again() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let source = compressed("rtn(bits=4, group=32, symmetric=true)", &path("w4"));
    for to in ["gguf", "gptq", "safetensors", "tensorpress"] {
        let to: Target = to.parse().unwrap();
        let whole = path(&format!("{}-whole", to.name()));
        convert(&source, to, &whole);
        for left in [1, 2, 3] {
            let out = path(&format!("{}-{left}", to.name()));
            let cancel = Arc::new(AtomicBool::new(false));
            let mut stop = StopAt { left, cancel: cancel.clone() };
            let job = Convert::new(to).with_progress(&mut stop).with_cancel(cancel);
            match job.run(&source, &out) {
                Ok(_) => {}
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Interrupted, "{e}");
                    assert!(!out.exists() && partial_of(&out).exists());
                    // Other work is not taken up.
                    let other = Convert::new(to).with_requantize(true).run(&source, &out);
                    assert_eq!(other.unwrap_err().kind(), ErrorKind::Exists);
                    convert(&source, to, &out);
                }
            }
            assert!(out.exists() && !partial_of(&out).exists());
            assert!(read(&out) == read(&whole), "{} after {left}", to.name());
        }
        let error = Convert::new(to).run(&source, &whole).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
        Convert::new(to).with_force(true).run(&source, &whole).expect("replaces");
    }
    // What is there and nobody's is not replaced.
    let foreign = path("foreign.gguf");
    std::fs::write(&foreign, "a letter").unwrap();
    let error =
        Convert::new(Target::Gguf(None)).with_force(true).run(&source, &foreign).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "a letter");
    // Nor is what is read.
    let file = path("gguf-whole");
    let own = open_model(&file).expect("opens");
    let error = Convert::new(Target::Gguf(None)).with_force(true).run(&own, &file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}
