//! Compressed and written in a format by one call.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::model::embedded::CALIBRATION;
use tensorpress::pipeline::{CalibrationText, Convert, Event, Progress, Target, partial_of};
use tensorpress::prelude::*;
use tensorpress::{ErrorKind, Result};
use tensorpress_tensor::testing::data;

use super::{compressed, distance, outputs, read};

fn text() -> CalibrationText {
    CalibrationText::new(CALIBRATION).with_windows(6).with_length(64)
}

fn job<'a>(recipe: &str, to: &str) -> Compressor<'a> {
    let job = Compressor::new(Recipe::parse(recipe).expect("a recipe")).with_calibration(text());
    job.with_format(to.parse().expect("a format"))
}

/// Nothing lies beside the result.
fn is_alone(out: &Path) -> bool {
    !partial_of(out).exists() && !partial_of(&named(out, ".format")).exists()
}

fn named(out: &Path, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", out.display()))
}

/// The same as the two steps, byte for byte.
#[test]
fn one_call_does_what_two_do() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let source = Source::demo(&registry()).expect("opens");
    let recipe = "gptq(bits=4, group=32, symmetric=true)";
    let folder = path("model");
    let compressor = Compressor::new(Recipe::parse(recipe).unwrap()).with_calibration(text());
    let alone = compressor.run(&source, &folder).expect("compresses");
    let two = open_model(&folder).expect("opens");
    for to in ["gptq", "compressed-tensors", "safetensors", "gguf"] {
        let target: Target = to.parse().unwrap();
        let (out, steps) = (path(to), path(&format!("{to}-steps")));
        let report = job(recipe, to).run(&source, &out).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(report.layers.len(), alone.layers.len(), "{to}");
        Convert::new(target).run(&two, &steps).expect("converts");
        assert!(is_alone(&out), "{to}");
        match target {
            // Two files of one name have one name in them.
            Target::Gguf(_) => {
                let weights = |path: &Path| outputs(&open_model(path).unwrap(), &[1, 2, 3, 4]);
                assert!(weights(&out) == weights(&steps), "{to}");
                let lengths = [&out, &steps].map(|path| std::fs::metadata(path).unwrap().len());
                assert!(lengths[0].abs_diff(lengths[1]) < 64, "{lengths:?}");
            }
            _ => assert!(read(&out) == read(&steps), "{to}"),
        }
        let bytes: u64 = report.bill.file_bytes;
        assert_eq!(report.bytes_after, bytes, "{to}");
        // What is said of layers is said of what was written.
        let written = tensorpress::bill::Bill::of(&open_model(&out).unwrap()).unwrap();
        for layer in &report.layers {
            if to == "safetensors" {
                assert!([16.0, 32.0].contains(&layer.bits_per_weight), "{}", layer.name);
                continue;
            }
            let stored = written.layers.iter().find(|stored| stored.name == layer.name);
            let stored = stored.unwrap_or_else(|| panic!("{to}: {}", layer.name));
            assert_eq!(layer.bits_per_weight, stored.bits_per_weight, "{to}: {}", layer.name);
        }
        assert!(report.converted.iter().all(|tensor| tensor.lossless), "{to}");
        assert!(report.converted.len() >= report.layers.len(), "{to}");
    }
    // Our own format is the folder itself.
    let out = path("ours");
    let _ = job(recipe, "tensorpress").run(&source, &out).expect("compresses");
    assert!(read(&out) == read(&folder));
}

/// With a type all is that type, and said; what a rewrite leaves is quantised to it, weighed by the text.
#[test]
fn a_type_takes_everything() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = |name: &str| parent.path().join(name);
    let source = Source::demo(&registry()).expect("opens");
    let out = path("twice.gguf");
    let report = job("w8", "gguf(Q8_0)").run(&source, &out).expect("compresses");
    assert!(report.notes.iter().any(|note| note.contains("rounded again")), "{:?}", report.notes);
    assert!(report.layers.iter().all(|layer| layer.bits_per_weight == 8.5), "as Q8_0 has it");
    let q8 = report.converted.iter().filter(|tensor| tensor.to == "Q8_0");
    assert!(
        q8.clone().count() > 7
            && q8.clone().all(|tensor| tensor.lossless || tensor.error.is_some())
    );
    let ids: Vec<u32> = (1..24).collect();
    let error = distance(&outputs(&source, &ids), &outputs(&open_model(&out).unwrap(), &ids));
    assert!(error < 0.05, "{error}");
}

/// What a rewrite leaves is quantised once; and the type is made with importance alone, which comes of the text.
#[test]
fn what_a_rewrite_leaves_is_weighed_by_the_text() {
    let Some(model) = data::find("data/models/stories3m") else { return };
    let parent = tempfile::tempdir().expect("a folder");
    let out = parent.path().join("short.gguf");
    let source = open_model(model).expect("opens");
    let report = job("drop_blocks(count=1)", "gguf(IQ2_XS)").run(&source, &out);
    let report = report.expect("compresses");
    assert!(!report.notes.iter().any(|note| note.contains("rounded again")), "{:?}", report.notes);
    let short = open_model(&out).expect("opens");
    assert_eq!(short.blocks() + 1, source.blocks());
    assert!(short.trees().values().any(|tree| tree["type"] == "IQ2_XS"));
    assert!(is_alone(&out));
}

/// Refused when the first block is done, and nothing is left behind.
#[test]
fn what_the_format_cannot_hold_is_refused_early() {
    struct Blocks(usize);
    impl Progress for Blocks {
        fn event(&mut self, event: Event<'_>) {
            self.0 += usize::from(matches!(event, Event::Block { .. }));
        }
    }
    let parent = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("opens");
    let cases = [
        ("w4", "bnb"),
        ("w4", "gguf"),
        ("rtn(bits=8, group=32)", "awq"),
        ("nf4(block=64)", "gptq"),
        ("wanda(sparsity=0.5)", "compressed-tensors"),
    ];
    for (recipe, to) in cases {
        let out = parent.path().join(to);
        let mut blocks = Blocks(0);
        let error = job(recipe, to).with_progress(&mut blocks).run(&source, &out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{recipe} to {to}: {error}");
        assert_eq!(blocks.0, 1, "{recipe} to {to}: {error}");
        assert!(!out.exists() && is_alone(&out), "{recipe} to {to}");
    }
    // A file that is there stays, whatever is in it.
    let there = parent.path().join("there.gguf");
    std::fs::write(&there, "a letter").unwrap();
    let error = job("w4", "gguf(Q4_K)").run(&source, &there).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    let error = job("w4", "gguf(Q4_K)").with_force(true).run(&source, &there).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(std::fs::read_to_string(&there).unwrap(), "a letter");
}

/// Stops at the so-manieth thing that is told.
struct StopAtEvent {
    left: usize,
    cancel: Arc<AtomicBool>,
}

impl Progress for StopAtEvent {
    fn event(&mut self, _: Event<'_>) {
        self.left = self.left.saturating_sub(1);
        self.cancel.fetch_or(self.left == 0, Ordering::Relaxed);
    }
}

/// Stopped anywhere in the two halves, the same call ends with the same bytes.
#[test]
fn stopped_anywhere_it_is_taken_up_again() {
    let parent = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("opens");
    for (recipe, to) in [("w4", "gguf(Q4_K)"), ("gptq(bits=4, group=32)", "awq")] {
        let folder = |at: usize| parent.path().join(format!("{at}-{}", to.replace(['(', ')'], "")));
        let out_of = |at: usize| {
            std::fs::create_dir_all(folder(at)).expect("a folder");
            folder(at).join("model.gguf")
        };
        let out = out_of(0);
        let _ = job(recipe, to).run(&source, &out).expect("compresses");
        let whole = read(&out);
        let mut at = 1;
        loop {
            let out = out_of(at);
            let cancel = Arc::new(AtomicBool::new(false));
            let mut stop = StopAtEvent { left: at, cancel: cancel.clone() };
            let stopped: Result<_> =
                job(recipe, to).with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
            let ended = stopped.is_ok();
            if let Err(e) = stopped {
                assert_eq!(e.kind(), ErrorKind::Interrupted, "{to} at {at}: {e}");
                assert!(!out.exists() && partial_of(&out).exists(), "{to} at {at}");
                let _ = job(recipe, to).run(&source, &out).unwrap_or_else(|e| panic!("{at}: {e}"));
            }
            assert!(read(&out) == whole && is_alone(&out), "{to} at {at}");
            if ended {
                break;
            }
            at += 17;
        }
        assert!(at > 20, "{to}: too few moments, {at}");
    }
}

/// A model that is quantised already, asked for.
#[test]
fn from_quantized_to_another_format() {
    let parent = tempfile::tempdir().expect("a folder");
    let source = compressed("rtn(bits=8, group=32)", &parent.path().join("w8"));
    let out = parent.path().join("w4.gguf");
    let job = job("rtn(bits=4, group=32, symmetric=true)", "gguf").with_from_quantized(true);
    let report = job.run(&source, &out).expect("compresses");
    assert!(report.bytes_after < report.bytes_before);
    assert!(open_model(&out).unwrap().trees().values().any(|tree| tree["type"] == "Q4_0"));
}

/// What only a later block shows is found at the end: then the work is kept, and the folder comes of it without a format.
#[test]
fn what_the_last_block_refuses_is_not_lost() {
    let parent = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("opens");
    let recipe = Recipe::from_toml(
        "[[stage]]\nmethod = 'rtn'\ngroup = 32\n[[layer]]\nmatch = 'model.layers.3.*'\nstage = [{ method = 'nf4' }]\n",
    );
    let recipe = recipe.expect("a recipe");
    let out = parent.path().join("out");
    let job = || Compressor::new(recipe.clone()).with_calibration(text());
    let error = job().with_format("awq".parse().unwrap()).run(&source, &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("is kept"), "{error}");
    assert!(error.tensor().is_some_and(|tensor| tensor.contains("layers.3.")), "{error}");
    assert!(!out.exists() && partial_of(&out).exists());
    let report = job().run(&source, &out).expect("finishes");
    assert_eq!(report.resumed_blocks, source.blocks());
    assert!(is_alone(&out) && open_model(&out).is_ok());
}
