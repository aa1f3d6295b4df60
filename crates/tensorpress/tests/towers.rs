//! Models of images, and of texts and images, through the pipeline: what is given calibrates its side.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tensorpress::model::text::Corpus;
use tensorpress::pipeline::{CalibrationText, Event, Progress, Report};
use tensorpress::prelude::*;
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, Part, PartKind, RawTensor, Tensor};

fn golden(name: &str) -> Option<PathBuf> {
    data::find(&format!("golden/models/{name}"))
}

/// Some tensors of a folder's golden values, in a file of their own.
fn only(folder: &Path, names: &[&str], to: &Path) -> Corpus {
    let expected = Checkpoint::open(folder.join("expected.safetensors")).expect("opens");
    let tensors = names.iter().map(|name| (*name, expected.tensor(name).expect("there")));
    write(to, &tensors.collect::<Vec<_>>());
    Corpus::read(to).expect("texts or images")
}

fn write(to: &Path, tensors: &[(&str, RawTensor)]) {
    write_shard(to, &Default::default(), &mut |sink| {
        tensors.iter().try_for_each(|(name, tensor)| {
            sink.part(Part {
                name: (*name).to_owned(),
                kind: PartKind::Values,
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: tensor.bytes()[..].into(),
            })
        })
    })
    .expect("writes");
}

fn run(folder: &Path, corpus: Corpus, recipe: &str, out: &Path) -> Result<Report> {
    Compressor::new(Recipe::parse(recipe)?)
        .with_calibration(CalibrationText::new(corpus))
        .with_force(true)
        .run(&open_model(folder)?, out)
}

/// The tensors of a compressed folder, by name.
fn bytes(out: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(out).expect("opens");
    let tensor = |name: &str| checkpoint.tensor(name).expect("there").bytes()[..].to_vec();
    checkpoint.names().map(|name| (name.to_owned(), tensor(name))).collect()
}

#[test]
fn what_is_given_calibrates_its_tower() {
    let Some(clip) = golden("clip") else { return };
    let parent = tempfile::tempdir().expect("a folder");
    let mut results = Vec::new();
    for (names, towers) in [
        (&["ids"][..], &["text_model."][..]),
        (&["pixel_values"], &["vision_model."]),
        (&["ids", "pixel_values"], &["text_model.", "vision_model."]),
    ] {
        let file = parent.path().join(format!("{}.safetensors", names.join("-")));
        let out = parent.path().join(names.join("-"));
        let corpus = only(&clip, names, &file);
        let report = run(&clip, corpus, "gptq(bits=3, group=16)", &out).expect("compresses");
        assert_eq!(report.layers.len(), 24);
        for layer in &report.layers {
            let seen = towers.iter().any(|prefix| layer.name.starts_with(prefix));
            let fallback = layer.fallback.as_deref().unwrap_or_default();
            assert_eq!(fallback.is_empty(), seen, "{}: {fallback}", layer.name);
            assert!(seen || fallback.contains("no calibration token"), "{fallback}");
        }
        results.push(bytes(&out));
    }
    // Each side is what it is with the other.
    let [texts, images, both] = results.as_slice() else { panic!("three") };
    for ((text, image), both) in texts.iter().zip(images).zip(both) {
        let side = if both.0.starts_with("vision_model.") { image } else { text };
        assert_eq!(side, both, "{}", both.0);
    }
    assert!(texts.iter().zip(both).any(|(text, both)| text != both), "images count");
    assert!(images.iter().zip(both).any(|(image, both)| image != both), "texts count");
}

#[test]
fn images_and_texts_go_to_models_that_read_them() {
    let (Some(vit), Some(clip)) = (golden("vit"), golden("clip")) else { return };
    let Some(llama) = golden("llama3-rope") else { return };
    let parent = tempfile::tempdir().expect("a folder");
    let file = parent.path().join("given.safetensors");
    let out = parent.path().join("out");
    let refused = |folder: &Path, corpus: Corpus, kind: ErrorKind, words: &[&str]| {
        let error = run(folder, corpus, "gptq(bits=4, group=16)", &out).expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!out.exists());
    };
    let given = only(&clip, &["ids", "pixel_values"], &file);
    refused(&llama, given.clone(), ErrorKind::Unsupported, &["given", "pixel_values"]);
    refused(&vit, given, ErrorKind::Unsupported, &["given", "pixel_values"]);
    let given = only(&clip, &["ids"], &file);
    refused(&vit, given, ErrorKind::Unsupported, &["given", "pixel_values"]);
    refused(&vit, "A text.".into(), ErrorKind::Unsupported, &["images", "pixel_values"]);
    let image = |dtype: DType, shape: &[usize], value: f32| {
        let mut bytes = Vec::new();
        let values = vec![value; shape.iter().product()];
        if dtype == DType::F32 {
            dtype.write_f32(&values, &mut bytes).expect("floats");
        } else {
            bytes = vec![0; values.len() * dtype.size()];
        }
        let tensor = RawTensor::new(dtype, shape.to_vec(), bytes.into()).expect("a tensor");
        write(&file, &[("pixel_values", tensor)]);
        Corpus::read(&file).expect("images")
    };
    let size = [2, 3, 32, 32];
    let named = ["given", "pixel_values"];
    for shape in [&[2, 3, 32, 16][..], &[2, 1, 32, 32], &[3, 32, 32], &[0, 3, 32, 32]] {
        refused(&vit, image(DType::F32, shape, 0.5), ErrorKind::ShapeMismatch, &named);
    }
    refused(&vit, image(DType::U8, &size, 0.5), ErrorKind::Corruption, &named);
    refused(&vit, image(DType::F32, &size, f32::NAN), ErrorKind::Numerical, &named);
    let report = run(&vit, image(DType::F32, &size, 0.5), "gptq(bits=4, group=16)", &out);
    assert!(report.expect("compresses").layers.iter().all(|layer| layer.fallback.is_none()));
}

/// Asks to stop when a block begins.
struct StopAt(usize, Arc<AtomicBool>);

impl Progress for StopAt {
    fn event(&mut self, event: Event<'_>) {
        if matches!(event, Event::Block { block, .. } if block == self.0) {
            self.1.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

#[test]
fn a_stopped_run_goes_on_in_its_tower_and_with_its_images() {
    let Some(clip) = golden("clip") else { return };
    let parent = tempfile::tempdir().expect("a folder");
    let file = parent.path().join("given.safetensors");
    let both = only(&clip, &["ids", "pixel_values"], &file);
    let texts = only(&clip, &["ids"], &file);
    let (line, source) = ("gptq(bits=3, group=16)", open_model(&clip).expect("opens"));
    let whole = parent.path().join("whole");
    let _ = run(&clip, both.clone(), line, &whole).expect("compresses");
    for block in 0..source.blocks() {
        let out = parent.path().join(format!("stopped-{block}"));
        let asked = Arc::new(AtomicBool::new(false));
        let mut progress = StopAt(block, asked.clone());
        let error = Compressor::new(Recipe::parse(line).expect("a recipe"))
            .with_calibration(CalibrationText::new(both.clone()))
            .with_progress(&mut progress)
            .with_cancel(asked)
            .run(&source, &out)
            .expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        let go_on = |corpus: Corpus| {
            Compressor::new(Recipe::parse(line).expect("a recipe"))
                .with_calibration(CalibrationText::new(corpus))
                .run(&source, &out)
        };
        let other = go_on(texts.clone()).expect_err("other work");
        assert_eq!(other.kind(), ErrorKind::Exists, "{other}");
        let report = go_on(both.clone()).expect("resumes");
        assert_eq!(report.resumed_blocks, block);
        assert_eq!(bytes(&out), bytes(&whole), "stopped at block {block}");
    }
}
