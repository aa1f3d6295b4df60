//! Gradients that the pipeline finds by itself for methods that ask for them: the same as a caller's, at once or after any
//! stop.

mod tiny;

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::model::backward::{Backward, Collector, InMemory, Labels, SecondMoment, Wanted};
use tensorpress::model::embedded;
use tensorpress::pipeline::{CalibrationText, Event, Progress, partial_of};
use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::Array2;
use tensorpress::tensor::stats::{Supplied, Supply};
use tiny::{Tiny, folder_bytes};

const LINE: &str = "watersic(delta=0.02, rows=diag, states=4)";
const SEED: u64 = 7;

fn compressor<'a>(line: &str) -> Compressor<'a> {
    let text = CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(32);
    Compressor::new(Recipe::parse(line).unwrap()).with_calibration(text).with_seed(SEED)
}

fn source(folder: &Path) -> Source {
    Tiny::deep("llama", 4, (8, 4), 4, 30, false, 3).source(&folder.join("model"))
}

/// What a caller would supply who ran the pass himself.
#[derive(Debug)]
struct Own(BTreeMap<String, Array2<f32>>);

impl Supplied for Own {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        let wanted = supply == Supply::OUTPUT_FISHER_DIAGONAL;
        Ok(self.0.get(tensor).filter(|_| wanted).cloned())
    }

    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        hash.write(b"a pass of the caller's");
        Ok(())
    }
}

/// All weights of a folder, whatever else lies in it.
fn weights(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let all = folder_bytes(folder).into_iter();
    all.filter(|(name, _)| name.ends_with(".safetensors")).collect()
}

#[test]
fn they_are_those_of_a_pass() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (found, supplied) = (folder.path().join("found"), folder.path().join("supplied"));
    let report = compressor(LINE).run(&source, &found).unwrap();
    assert!(report.layers.iter().all(|layer| layer.fallback.is_none()), "{:?}", report.layers);

    let text = tensorpress::model::text::Corpus::from(embedded::CALIBRATION);
    let cut = tensorpress::model::text::Windows {
        chars: tensorpress::pipeline::DEFAULT_CHARS,
        windows: 4,
        length: 32,
    };
    let windows = text.windows(&source, Default::default(), cut).unwrap();
    let mut own = BTreeMap::new();
    let give = |name: &str, gradients: tensorpress::model::backward::Gradients| {
        let diagonal = gradients.second_moment.as_ref().map(SecondMoment::diagonal).unwrap();
        let row = Array2::from_shape_vec((1, diagonal.len()), diagonal).unwrap();
        own.insert(name.to_owned(), row);
        Ok(())
    };
    let of_blocks = |name: &str| match name.contains("layers") {
        true => Wanted::NONE.with_second_moments(0),
        false => Wanted::NONE,
    };
    let mut collector = Collector::new(of_blocks, give);
    let backward = Backward::default().with_labels(Labels::Sampled { seed: SEED });
    let go_on = |_, _| ControlFlow::Continue(());
    backward.run(&source, &windows, &mut InMemory::default(), &mut collector, &go_on).unwrap();
    drop(collector);
    assert_eq!(own.len(), 4 * 7);
    assert!(own.values().flatten().any(|value| *value > 0.0));
    let mine = compressor(LINE).with_supplied(Arc::new(Own(own)));
    let _ = mine.run(&source, &supplied).unwrap();
    assert!(weights(&found) == weights(&supplied));

    let without = folder.path().join("without");
    let line = LINE.replace("rows=diag", "rows=none");
    let _ = compressor(&line).run(&source, &without).unwrap();
    assert!(weights(&found) != weights(&without), "gradients make no difference");
}

/// Stops the work when it is told of its step so-and-so of a backward pass or of a block.
struct StopAt {
    steps: usize,
    backward: usize,
    cancel: Arc<AtomicBool>,
}

impl Progress for StopAt {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Backward { done, steps } => {
                assert!(done <= steps);
                self.backward += 1;
            }
            Event::Block { .. } => {}
            _ => return,
        }
        if self.steps == 0 {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.steps = self.steps.saturating_sub(1);
    }
}

#[test]
fn a_pass_that_is_stopped_anywhere_comes_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    let _ = compressor(LINE).run(&source, &whole).unwrap();
    let mut stops = 0;
    for steps in 0.. {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { steps, backward: 0, cancel: cancel.clone() };
        let run = compressor(LINE).with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
        if run.is_ok() {
            assert!(stop.backward < steps, "the last run found all");
            break;
        }
        assert_eq!(run.unwrap_err().kind(), ErrorKind::Interrupted);
        assert!(!out.exists());
        stops += 1;
        // Another recipe would not take it up.
        let other = compressor("watersic(delta=0.03, rows=diag)").run(&source, &out);
        assert_eq!(other.unwrap_err().kind(), ErrorKind::Exists);
        let _ = compressor(LINE).run(&source, &out).unwrap();
        assert!(folder_bytes(&whole) == folder_bytes(&out), "stopped at step {steps}");
        std::fs::remove_dir_all(&out).unwrap();
    }
    assert!(stops > 8, "{stops}");
    assert!(!partial_of(&out).exists());
}

#[test]
fn what_a_stopped_pass_found_is_kept_and_made_again_if_it_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    let _ = compressor(LINE).run(&source, &whole).unwrap();
    for torn in [false, true] {
        // Embeddings, four blocks, the head, the last block, and the one before it, in which the stop comes.
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { steps: 1 + 4 + 1 + 1, backward: 0, cancel: cancel.clone() };
        let run = compressor(LINE).with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
        assert_eq!(run.unwrap_err().kind(), ErrorKind::Interrupted);
        let kept = |block: usize| partial_of(&out).join(format!("tensorpress.backward-{block:05}"));
        assert_eq!([0, 1, 2, 3].map(|block| kept(block).exists()), [false, false, false, true]);
        if torn {
            std::fs::write(kept(3), b"torn").unwrap();
        }
        let _ = compressor(LINE).run(&source, &out).unwrap();
        assert!(folder_bytes(&whole) == folder_bytes(&out));
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_a_caller_does_not_supply_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny::deep("llama", 4, (8, 4), 4, 30, false, 3);
    let source = model.source(&folder.path().join("model"));
    // A caller who supplies nothing is believed.
    let none = Arc::new(Own(BTreeMap::new()));
    let out = folder.path().join("out");
    let report = compressor(LINE).with_supplied(none).run(&source, &out).unwrap();
    let said = |layer: &tensorpress::pipeline::LayerReport| {
        layer.fallback.as_deref().is_some_and(|f| f.contains("rows of equal steps"))
    };
    assert!(report.layers.iter().all(said), "{:?}", report.layers[0]);
}
