//! The pipeline as a library: what a program that embeds it relies on.

use std::fs;
use std::hash::Hasher;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::model::embedded;
use tensorpress::pipeline::{CalibrationText, Event, Inputs, Progress, partial_of};
use tensorpress::prelude::*;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stats::{Supplied, Supply};
use tensorpress_tensor::testing::data;

fn recipe(line: &str) -> Recipe {
    Recipe::parse(line).expect("a recipe")
}

fn demo() -> Source {
    Source::demo(&registry()).expect("the demo model")
}

/// A little of the demo's calibration text.
fn calibration() -> CalibrationText {
    CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(64)
}

fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let listing = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = listing
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

/// Asks to stop when block number `at` begins.
struct StopAt {
    at: usize,
    cancel: Arc<AtomicBool>,
    layers: usize,
}

impl Progress for StopAt {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Block { block, .. } if block == self.at => {
                self.cancel.store(true, Ordering::Relaxed)
            }
            Event::Layer(_) => self.layers += 1,
            _ => {}
        }
    }
}

#[test]
fn cancelled_work_resumes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, whole) = (folder.path().join("out"), folder.path().join("whole"));
    let source = demo();
    fn compressor<'a>() -> Compressor<'a> {
        Compressor::new(recipe("gptq(bits=3, group=32)")).with_calibration(calibration())
    }
    let report = compressor().run(&source, &whole).expect("compresses");
    assert_eq!(report.resumed_blocks, 0);
    for at in [0, 2] {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { at, cancel: cancel.clone(), layers: 0 };
        let stopped = compressor().with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
        assert_eq!(stopped.expect_err("stopped").kind(), ErrorKind::Interrupted);
        assert_eq!(stop.layers, 7 * at, "layers that were finished");
        assert!(partial_of(&out).is_dir() && !out.exists());
    }
    let resumed = compressor().run(&source, &out).expect("resumes");
    assert_eq!(resumed.resumed_blocks, 2);
    assert_eq!(resumed.layers, report.layers);
    assert!(contents(&out) == contents(&whole));
}

/// A gradient that is the same number for every weight.
#[derive(Debug)]
struct Even(f32);

impl Supplied for Even {
    fn of_weights(&self, _: Supply, _: &str) -> Result<Option<Array2<f32>>> {
        Ok(None)
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        if self.0.is_nan() {
            return Err(Error::insufficient("no gradient"));
        }
        hash.write(&self.0.to_le_bytes());
        Ok(())
    }
}

#[test]
fn work_is_resumed_only_with_what_was_supplied() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, source) = (folder.path().join("out"), demo());
    fn compressor<'a>(supplied: Option<f32>) -> Compressor<'a> {
        let compressor = Compressor::new(recipe("rtn(bits=4)"));
        match supplied {
            Some(value) => compressor.with_supplied(Arc::new(Even(value))),
            None => compressor,
        }
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let mut stop = StopAt { at: 1, cancel: cancel.clone(), layers: 0 };
    let begun = compressor(Some(1.0)).with_progress(&mut stop).with_cancel(cancel);
    assert_eq!(begun.run(&source, &out).expect_err("stopped").kind(), ErrorKind::Interrupted);
    for other in [None, Some(2.0)] {
        let error = compressor(other).run(&source, &out).expect_err("other work");
        assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
        assert!(error.to_string().contains("caller's supply"), "{error}");
    }
    let error = compressor(Some(f32::NAN)).run(&source, &out).expect_err("the caller's own");
    assert_eq!(error.kind(), ErrorKind::InsufficientData);
    let resumed = compressor(Some(1.0)).run(&source, &out).expect("resumes");
    assert_eq!(resumed.resumed_blocks, 1);
}

/// By inputs of the original model a matrix is compressed as if no other was; by default it knows what came before it.
#[test]
fn inputs_of_the_original_model_know_no_other_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = demo();
    let last = source.linears(source.blocks() - 1).last().expect("a layer").name.clone();
    let of = |name: &str, recipe: Recipe, inputs: Inputs| {
        let out = folder.path().join(name);
        let job = Compressor::new(recipe).with_calibration(calibration()).with_inputs(inputs);
        let _report = job.run(&source, &out).expect("compresses");
        let made = open_model(&out).expect("opens");
        let block = made.block(made.blocks() - 1).expect("a block");
        let layer = block.linears().find(|layer| layer.name() == last).expect("the layer");
        layer.decode().expect("decodes")
    };
    let alone = Recipe::from_toml(&format!(
        "[[layer]]\nmatch = '{last}'\nstage = ['gptq(bits=3, group=32)']\n"
    ));
    let alone = of("alone", alone.expect("a recipe"), Inputs::Compressed);
    let all = || recipe("gptq(bits=3, group=32)");
    assert_eq!(of("original", all(), Inputs::Original), alone);
    assert_ne!(of("compressed", all(), Inputs::Compressed), alone);
    let drifted = recipe("drift | gptq(bits=3, group=32)");
    assert_eq!(of("drifted", drifted, Inputs::Original), alone, "nothing to correct");
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = demo();
    let run = |threads: usize| {
        let out = folder.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let compressor = Compressor::new(recipe("awq | gptq(bits=4, group=32, clip=mse)"));
            let run = compressor.with_calibration(calibration()).run(&source, &out);
            assert!(run.is_ok(), "{run:?}");
        });
        contents(&out)
    };
    assert!(run(1) == run(3));
}

#[test]
fn every_byte_is_on_the_bill() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, line) in ["rtn(bits=3, group=48)", "awq(bits=4)", "gptq(group=64, act_order=true)"]
        .iter()
        .enumerate()
    {
        let out = folder.path().join(i.to_string());
        let compressor = Compressor::new(recipe(line)).with_calibration(calibration());
        let report = compressor.run(&demo(), &out).expect("compresses");
        let bill = &report.bill;
        let sum = bill.storage.bytes() + bill.uncompressed_bytes + bill.container_bytes;
        assert_eq!(sum, bill.file_bytes, "{line}");
        let on_disk: usize = contents(&out)
            .iter()
            .filter(|(n, _)| n.ends_with(".safetensors"))
            .map(|(_, b)| b.len())
            .sum();
        assert_eq!(on_disk as u64, bill.file_bytes, "{line}");
        assert_eq!(bill.layers.len(), report.layers.len());
        for (layer, billed) in report.layers.iter().zip(&bill.layers) {
            let billed = bill.layers.iter().find(|b| b.name == layer.name).unwrap_or(billed);
            assert_eq!(layer.bits_per_weight, billed.bits_per_weight, "{}", layer.name);
        }
        let weights: usize = bill.layers.iter().map(|l| l.shape[0] * l.shape[1]).sum();
        assert_eq!(report.bits_per_weight, 8.0 * bill.storage.bytes() as f64 / weights as f64);
    }
}

#[test]
fn errors_have_kinds() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let kind =
        |compressor: Compressor<'_>| compressor.run(&demo(), &out).expect_err("fails").kind();
    assert_eq!(kind(Compressor::new(recipe("gptq"))), ErrorKind::MissingCalibration);
    let empty = || Compressor::new(recipe("gptq")).with_calibration(CalibrationText::new(" "));
    assert_eq!(kind(empty()), ErrorKind::InsufficientData);
    let long = calibration().with_length(1 << 20);
    assert_eq!(
        kind(Compressor::new(recipe("gptq")).with_calibration(long)),
        ErrorKind::InvalidArgument
    );
    fs::create_dir(&out).expect("a folder");
    assert_eq!(kind(Compressor::new(recipe("rtn"))), ErrorKind::Exists);
    fs::remove_dir(&out).expect("a folder");

    // Two at a time is one too many.
    let partial = partial_of(&out);
    fs::create_dir(&partial).expect("a folder");
    let held = fs::File::create(partial.join("tensorpress.lock")).expect("a lock");
    held.lock().expect("locked");
    assert_eq!(kind(Compressor::new(recipe("rtn"))), ErrorKind::InvalidArgument);
    drop(held);
    // What is not ours is not touched.
    fs::write(partial.join("notes.txt"), "mine").expect("written");
    assert_eq!(kind(Compressor::new(recipe("rtn"))), ErrorKind::Exists);
    assert!(partial.join("notes.txt").exists());
    assert_eq!(kind(Compressor::new(recipe("rtn")).with_force(true)), ErrorKind::InvalidArgument);
    assert!(partial.join("notes.txt").exists());
    fs::remove_file(partial.join("notes.txt")).expect("removed");
    let done = Compressor::new(recipe("rtn")).run(&demo(), &out);
    assert!(done.is_ok(), "{done:?}");
}

/// A norm so large that activations overflow: the layers that see them fall back and say so.
#[test]
fn overflowing_activations_fall_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("a folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(name), model.join(name)).expect("a file of the demo model");
    }
    let mut bytes = fs::read(from.join("model.safetensors")).expect("a file of the demo model");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let name = "model.layers.3.post_attention_layernorm.weight";
    let at = 8 + header + json[name]["data_offsets"][0].as_u64().expect("an offset") as usize;
    for value in bytes[at..at + 2 * 128].as_chunks_mut::<2>().0 {
        *value = 0x7f7fu16.to_le_bytes();
    }
    fs::write(model.join("model.safetensors"), bytes).expect("written");
    let source = Source::open(&model, &registry()).expect("a model");
    for line in [
        "gptq(bits=4, group=32)",
        "awq(bits=4, group=32)",
        "flap(sparsity=0.5, uniform=true) | gptq(bits=4, group=32)",
    ] {
        let compressor = Compressor::new(recipe(line)).with_calibration(calibration());
        let report = compressor.with_force(true).run(&source, &folder.path().join("out"));
        for layer in &report.expect("compresses").layers {
            let block: usize =
                layer.name.split('.').nth(2).expect("a number").parse().expect("a number");
            let broken = block > 3 || (block == 3 && layer.name.contains("down_proj"));
            if broken {
                assert!(layer.fallback.is_some(), "{line}: {layer:?}");
            }
            if block < 3 {
                assert!(layer.fallback.is_none(), "{line}: {layer:?}");
            }
        }
    }
}

/// An encoder: compressed with and without calibration, its sentence embeddings stay where they were.
#[test]
fn sentence_embeddings_survive() {
    let Some(folder) = data::minilm() else { return };
    let source = Source::open(&folder, &registry()).expect("a model");
    let tokenizer = source.tokenizer().expect("a tokenizer");
    let texts =
        ["The cat sat on the mat.", "Interest rates rose again.", "A dog slept in the sun."];
    let embed = |source: &Source| {
        source.encoder().and_then(|e| e.embed(&tokenizer, &texts)).expect("embedded")
    };
    let exact = embed(&source);
    let out = tempfile::tempdir().expect("a folder");
    for (i, (line, least)) in
        [("rtn(bits=8)", 0.999), ("rtn(bits=4, group=32)", 0.97), ("gptq(bits=4, group=32)", 0.975)]
            .iter()
            .enumerate()
    {
        let out = out.path().join(i.to_string());
        let compressor = Compressor::new(recipe(line))
            .with_calibration(CalibrationText::new(embedded::CALIBRATION));
        let report = compressor.run(&source, &out).expect("compresses");
        assert_eq!(report.layers.len(), 6 * 6);
        let got = embed(&Source::open(&out, &registry()).expect("a model"));
        for (a, b) in exact.rows().into_iter().zip(got.rows()) {
            let cosine = a.dot(&b);
            println!("{line}: cosine {cosine:.5} at {:.3} bits", report.bits_per_weight);
            assert!(cosine > *least, "{line}: {cosine}");
        }
    }
}
