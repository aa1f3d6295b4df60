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
use tensorpress::tensor::Tensor as _;
use tensorpress::tensor::ndarray::Array2;
use tensorpress::tensor::stats::{Supplied, Supply};
use tiny::{Tiny, folder_bytes};

const LINE: &str = "watersic(delta=0.02, rows=diag, states=4)";
/// Each of these asks a backward pass for something else.
const LINES: [&str; 2] = [LINE, "guided(groups=3) | gptq(bits=3, group=8)"];
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
struct Own(Supply, BTreeMap<String, Array2<f32>>);

impl Supplied for Own {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        Ok(self.1.get(tensor).filter(|_| supply == self.0).cloned())
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

/// What the pipeline finds for a recipe is what a caller's own pass gives, made into what is supplied.
fn check_pass(
    line: &str,
    supply: Supply,
    wanted: Wanted,
    of: impl Fn(tensorpress::model::backward::Gradients) -> Array2<f32> + Send + Sync,
    without: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (found, supplied) = (folder.path().join("found"), folder.path().join("supplied"));
    let report = compressor(line).run(&source, &found).unwrap();
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
        own.insert(name.to_owned(), of(gradients));
        Ok(())
    };
    let of_blocks = |name: &str| match name.contains("layers") {
        true => wanted,
        false => Wanted::NONE,
    };
    let mut collector = Collector::new(of_blocks, give);
    let backward = Backward::default().with_labels(Labels::Sampled { seed: SEED });
    let go_on = |_, _| ControlFlow::Continue(());
    backward.run(&source, &windows, &mut InMemory::default(), &mut collector, &go_on).unwrap();
    drop(collector);
    assert_eq!(own.len(), 4 * 7);
    assert!(own.values().flatten().any(|value| *value > 0.0));
    let mine = compressor(line).with_supplied(Arc::new(Own(supply, own)));
    let _ = mine.run(&source, &supplied).unwrap();
    assert!(weights(&found) == weights(&supplied));

    let out = folder.path().join("without");
    let _ = compressor(without).run(&source, &out).unwrap();
    assert!(weights(&found) != weights(&out), "gradients make no difference");
}

#[test]
fn they_are_those_of_a_pass() {
    let wanted = Wanted::NONE.with_second_moments(0);
    let row = |gradients: tensorpress::model::backward::Gradients| {
        let diagonal = gradients.second_moment.as_ref().map(SecondMoment::diagonal).unwrap();
        Array2::from_shape_vec((1, diagonal.len()), diagonal).unwrap()
    };
    let without = LINE.replace("rows=diag", "rows=none");
    check_pass(LINE, Supply::OUTPUT_FISHER_DIAGONAL, wanted, row, &without);
    let wanted = Wanted::NONE.with_guided_grams(3);
    let grams =
        |gradients: tensorpress::model::backward::Gradients| gradients.guided_grams.unwrap();
    check_pass(LINES[1], Supply::guided_gram(3), wanted, grams, "gptq(bits=3, group=8)");
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
    for line in LINES {
        check_stops(line);
    }
}

fn check_stops(line: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    let _ = compressor(line).run(&source, &whole).unwrap();
    let mut stops = 0;
    for steps in 0.. {
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { steps, backward: 0, cancel: cancel.clone() };
        let run = compressor(line).with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
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
        let _ = compressor(line).run(&source, &out).unwrap();
        assert!(folder_bytes(&whole) == folder_bytes(&out), "{line}: stopped at step {steps}");
        std::fs::remove_dir_all(&out).unwrap();
    }
    assert!(stops > 8, "{stops}");
    assert!(!partial_of(&out).exists());
}

#[test]
fn what_a_stopped_pass_found_is_kept_and_made_again_if_it_is_torn() {
    LINES.into_iter().for_each(check_torn);
}

fn check_torn(line: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    let _ = compressor(line).run(&source, &whole).unwrap();
    for torn in [false, true] {
        // Embeddings, four blocks, the head, the last block, and the one before it, in which the stop comes.
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { steps: 1 + 4 + 1 + 1, backward: 0, cancel: cancel.clone() };
        let run = compressor(line).with_progress(&mut stop).with_cancel(cancel).run(&source, &out);
        assert_eq!(run.unwrap_err().kind(), ErrorKind::Interrupted);
        let kept = |block: usize| partial_of(&out).join(format!("tensorpress.backward-{block:05}"));
        assert_eq!([0, 1, 2, 3].map(|block| kept(block).exists()), [false, false, false, true]);
        if torn {
            std::fs::write(kept(3), b"torn").unwrap();
        }
        let _ = compressor(line).run(&source, &out).unwrap();
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
    let none = Arc::new(Own(Supply::OUTPUT_FISHER_DIAGONAL, BTreeMap::new()));
    let out = folder.path().join("out");
    let report = compressor(LINE).with_supplied(none).run(&source, &out).unwrap();
    let said = |layer: &tensorpress::pipeline::LayerReport| {
        layer.fallback.as_deref().is_some_and(|f| f.contains("rows of equal steps"))
    };
    assert!(report.layers.iter().all(said), "{:?}", report.layers[0]);
}

/// The head is calibrated on what it reads in the model as it was, and its rows by how likely each token is.
#[test]
fn a_head_is_calibrated_and_a_table_of_embeddings_by_its_rows() {
    const BOTH: &str = "watersic(bits=4, rows=diag, states=4)";
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let vocabulary = source.config().vocab;
    let recipe = |embedding: &str, head: &str| {
        let rule = |pattern: &str, line: &str| {
            let chain = Recipe::parse(line).unwrap().chain().cloned();
            tensorpress::recipe::LayerRule::new(pattern, chain).unwrap()
        };
        let all = Recipe::parse("rtn(bits=4)").unwrap();
        all.with_layer(rule("*embed_tokens*", embedding)).with_layer(rule("lm_head*", head))
    };
    let text = || CalibrationText::new(embedded::CALIBRATION).with_windows(4).with_length(32);
    let run = |recipe: Recipe, out: &Path, cancel: Option<Arc<AtomicBool>>| {
        let mut stop = StopAt { steps: usize::MAX, backward: 0, cancel: Arc::default() };
        let compressor = Compressor::new(recipe).with_calibration(text()).with_seed(SEED);
        match cancel {
            None => compressor.run(&source, out),
            Some(cancel) => {
                // Embeddings, four blocks, the head; the stop comes with the block before it.
                (stop.steps, stop.cancel) = (1 + 4 + 1, cancel.clone());
                compressor.with_progress(&mut stop).with_cancel(cancel).run(&source, out)
            }
        }
    };
    let out = folder.path().join("out");
    let report = run(recipe(BOTH, BOTH), &out, None).unwrap();
    let of = |report: &tensorpress::pipeline::Report, end: &str| {
        let mut layers = report.layers.iter();
        layers.find(|layer| layer.name.ends_with(end)).unwrap().clone()
    };
    assert_eq!(of(&report, "lm_head.weight").fallback, None);
    // Nothing is an input of the table but numbers of tokens: rows alone are known.
    let said = of(&report, "embed_tokens.weight").fallback.unwrap();
    assert!(said.contains("without feedback") && !said.contains("rows"), "{said}");

    // Stopped behind the head, what was found of it stays, and the rest comes to the same.
    let stopped = folder.path().join("stopped");
    let cancelled = run(recipe(BOTH, BOTH), &stopped, Some(Arc::default()));
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Interrupted);
    let kept = partial_of(&stopped).join("tensorpress.backward-00004");
    let found = tensorpress::tensor::Checkpoint::open(&kept).unwrap();

    // The same by forward passes alone.
    let model = source.decoder().unwrap();
    let weight = source.checkpoint().tensor("lm_head.weight").unwrap().to_matrix().unwrap();
    let weight = weight.mapv(f64::from);
    let words = tensorpress::model::text::Corpus::from(embedded::CALIBRATION);
    let chars = tensorpress::pipeline::DEFAULT_CHARS;
    let cut = tensorpress::model::text::Windows { chars, windows: 4, length: 32 };
    let windows = words.windows(&source, Default::default(), cut).unwrap();
    let mut costs = vec![0.0f64; vocabulary];
    let mut inputs = Array2::<f64>::zeros((tiny::HIDDEN, tiny::HIDDEN));
    let mut labelled = 0.0;
    let mut scratch = tensorpress::tensor::Scratch::default();
    for window in &windows {
        let read = model.last_hidden_state(window, &mut scratch).unwrap();
        let logits = read.mapv(f64::from).dot(&weight.t());
        for (x, logits) in read.rows().into_iter().zip(logits.rows()) {
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            for (cost, logit) in costs.iter_mut().zip(logits) {
                let p = logit.exp() / sum;
                *cost += p * (1.0 - p);
            }
            for (i, row) in inputs.rows_mut().into_iter().enumerate() {
                row.into_iter().zip(x).for_each(|(sum, v)| *sum += f64::from(x[i] * v));
            }
            labelled += 1.0;
        }
    }
    let near = |name: &str, expected: Vec<f64>| {
        let found = found.tensor(name).unwrap().to_matrix().unwrap();
        let off = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b / labelled).powi(2));
        let size: f64 = expected.iter().map(|b| (b / labelled).powi(2)).sum();
        let off = (off.sum::<f64>() / size).sqrt();
        assert!(off < 1e-4, "{name}: {off}");
    };
    near("inputs:lm_head.weight", inputs.into_raw_vec_and_offset().0);
    near("output_fisher_diagonal:lm_head.weight", costs.clone());
    near("output_fisher_diagonal:model.embed_tokens.weight", costs);

    let _ = run(recipe(BOTH, BOTH), &stopped, None).unwrap();
    assert!(folder_bytes(&stopped) == folder_bytes(&out));
    // What wants inputs gets those of the head, and is refused for the table.
    let report =
        run(recipe("rtn(bits=4)", "gptq(bits=4)"), &folder.path().join("g"), None).unwrap();
    assert_eq!(of(&report, "lm_head.weight").fallback, None);
    let refused = run(recipe("gptq(bits=4)", "rtn(bits=4)"), &folder.path().join("r"), None);
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("table of embeddings"), "{refused}");
}
