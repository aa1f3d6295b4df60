//! Structured pruners through the pipeline: smaller models compute what the large ones do with all that went switched off,
//! stopped runs end in the same bytes, and what they lose beside FLAP.

mod tiny;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorpress::model::text::{self, Limits};
use tensorpress::model::{Reference, embedded};
use tensorpress::pipeline::{CalibrationText, Event, Progress};
use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::{Array2, s};
use tensorpress::tensor::stats::{Supplied, Supply};
use tensorpress::tensor::{Scratch, Tensor};
use tensorpress_tensor::testing::data;
use tiny::{Tiny, folder_bytes};

/// Recipes, and whether what stays keeps its rows.
const LINES: &[(&str, bool)] = &[
    ("ziplm(sparsity=0.3)", true),
    ("cfsp(sparsity=0.2, multiple=1, steepness=3)", true),
    ("modegpt(sparsity=0.2, epsilon=1)", true),
    ("intra_fusion(sparsity=0.2)", false),
    ("udfc(sparsity=0.2)", true),
    ("prunenet(sparsity=0.2, rounds=2)", true),
    ("nirvana(sparsity=0.3, multiple=1)", true),
];

fn calibration() -> CalibrationText {
    CalibrationText::new(embedded::CALIBRATION).with_windows(6).with_length(48)
}

fn compress(line: &str, source: &Source, out: &Path) -> Result<Report> {
    Compressor::new(Recipe::parse(line)?).with_calibration(calibration()).run(source, out)
}

fn matrix(source: &Source, name: &str) -> Array2<f32> {
    source.checkpoint().tensor(name).unwrap().to_matrix().unwrap()
}

fn logits(source: &Source, ids: &[u32]) -> Array2<f32> {
    let (model, mut scratch) = (source.decoder().unwrap(), Scratch::default());
    let hidden = model.hidden(ids, &mut scratch).unwrap();
    model.head().logits(hidden.view(), &mut scratch).unwrap()
}

/// Numbers of the rows of `large` that are the rows of `small`, in order.
fn rows_of(small: &Array2<f32>, large: &Array2<f32>) -> Vec<usize> {
    let mut rows = 0..large.nrows();
    let mut find = |row| rows.find(|at| large.row(*at) == row).expect("a row of the large matrix");
    small.rows().into_iter().map(&mut find).collect()
}

fn weights(source: &Source) -> usize {
    let linears = (0..source.blocks()).flat_map(|b| source.linears(b));
    linears.map(|l| l.shape[0] * l.shape[1]).sum()
}

#[test]
fn smaller_models_compute_what_masked_ones_do() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (kind, heads, biased)) in
        [("llama", (4, 4), true), ("qwen2", (4, 2), false), ("qwen3", (6, 3), false)]
            .iter()
            .enumerate()
    {
        let tiny = Tiny::new(kind, *heads, 4, 24, *biased, 7 + index as u64);
        let large = tiny.source(&folder.path().join(format!("large{index}")));
        for (number, (line, _)) in LINES.iter().enumerate().filter(|(_, (_, cut))| *cut) {
            let out = folder.path().join(format!("{index}-{number}"));
            compress(line, &large, &out).map(drop).unwrap();
            let small = open_model(&out).unwrap();
            assert!(weights(&small) < weights(&large), "{line}");
            let mut masked = tiny.clone();
            for block in 0..large.blocks() {
                for (rows, reader) in
                    [("self_attn.q_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj")]
                {
                    let name = |part: &str| format!("model.layers.{block}.{part}.weight");
                    let kept = rows_of(&matrix(&small, &name(rows)), &matrix(&large, &name(rows)));
                    let columns = matrix(&small, &name(reader));
                    let mut whole = Array2::zeros(matrix(&large, &name(reader)).dim());
                    for (from, to) in columns.columns().into_iter().zip(&kept) {
                        whole.column_mut(*to).assign(&from);
                    }
                    masked.tensors.get_mut(&name(reader)).unwrap().1 =
                        whole.into_raw_vec_and_offset().0;
                }
            }
            let masked = masked.source(&folder.path().join(format!("masked{index}-{number}")));
            let ids: Vec<u32> = (0..40).map(|i| (i * 37) % 200).collect();
            let (exact, pruned) = (logits(&masked, &ids), logits(&small, &ids));
            let far = exact.iter().zip(&pruned).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "{kind}, {line}: {far}");
        }
    }
}

struct StopAt(usize, Arc<AtomicBool>);

impl Progress for StopAt {
    fn event(&mut self, event: Event<'_>) {
        if matches!(event, Event::Judged { block, .. } if block == self.0) {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn stopped_work_resumes_and_threads_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = Tiny::new("llama", (4, 2), 4, 20, true, 3).source(&folder.path().join("model"));
    for (index, (line, _)) in LINES.iter().enumerate() {
        let path = |name: &str| folder.path().join(format!("{name}{index}"));
        compress(line, &source, &path("whole")).map(drop).unwrap();
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt(1, cancel.clone());
        let stopped = Compressor::new(Recipe::parse(line).unwrap())
            .with_calibration(calibration())
            .with_progress(&mut stop)
            .with_cancel(cancel)
            .run(&source, &path("out"));
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted, "{line}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| compress(line, &source, &path("out"))).map(drop).unwrap();
        assert!(folder_bytes(&path("out")) == folder_bytes(&path("whole")), "{line}");
    }
}

/// Gradients come from one pass of the model's own; what a caller supplies stands in their place, and needs no text.
#[test]
fn gradients_come_from_a_pass_or_from_the_caller() {
    let folder = tempfile::tempdir().unwrap();
    let source = Tiny::new("llama", (4, 2), 4, 20, false, 3).source(&folder.path().join("model"));
    let line = "nirvana(sparsity=0.3, multiple=1)";
    let path = |name: &str| folder.path().join(name);
    let report = compress(line, &source, &path("own")).unwrap();
    assert!(report.layers.iter().all(|layer| layer.fallback.is_none()), "{:?}", report.layers);
    let error =
        Compressor::new(Recipe::parse(line).unwrap()).run(&source, &path("none")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingCalibration);
    // Nothing depends on the first five channels: they go before all others.
    let even = Compressor::new(Recipe::parse(line).unwrap())
        .with_supplied(Arc::new(Unused(source.checkpoint().clone(), 5)));
    even.run(&source, &path("even")).map(drop).unwrap();
    let small = open_model(path("even")).unwrap();
    for block in 0..source.blocks() {
        let name = format!("model.layers.{block}.mlp.up_proj.weight");
        let kept = rows_of(&matrix(&small, &name), &matrix(&source, &name));
        assert!(kept.len() < 15 && kept[0] >= 5, "{kept:?}");
    }
    let files: Vec<String> = folder_bytes(&path("own")).into_keys().collect();
    assert!(files.iter().all(|name| !name.starts_with("tensorpress.")), "{files:?}");
}

/// Gradients of 1 / (1 + |w|), but 0 for the first channels of feed-forward networks.
#[derive(Debug)]
struct Unused(Checkpoint, usize);

impl Supplied for Unused {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        let mut gradient = self.0.tensor(tensor)?.to_matrix()?.mapv(|w| 1.0 / (1.0 + w.abs()));
        if tensor.contains("gate_proj") || tensor.contains("up_proj") {
            gradient.slice_mut(s![..self.1, ..]).fill(0.0);
        }
        if tensor.contains("down_proj") {
            gradient.slice_mut(s![.., ..self.1]).fill(0.0);
        }
        Ok((supply == Supply::GRADIENT).then_some(gradient))
    }
    fn identify(&self, hash: &mut dyn std::hash::Hasher) -> Result<()> {
        hash.write(b"unused");
        Ok(())
    }
}

/// The smallest story model with a fifth fewer weights: what the repair is for.
#[test]
fn a_story_model_loses_less_than_by_flap() {
    let (Some(texts), Some(folder)) =
        (data::find("data/text"), data::find("data/models/stories260k"))
    else {
        return;
    };
    let read = |name: &str| text::read(&texts.join(name)).unwrap();
    let train = CalibrationText::new(read("tinystories_train_2MB_calib.txt"));
    let source = open_model(&folder).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    let limits = Limits { max_segments: Some(60), max_tokens: Some(400) };
    let stories = read("tinystories_val_250stories.jsonl");
    let context = source.config().context;
    let segments =
        text::segments(&stories, Path::new("s.jsonl"), &tokenizer, context, limits).unwrap();
    let exact = source.decoder().and_then(|d| d.materialise()).unwrap();
    let reference = Reference::new(&exact, &segments, &|_, _| ()).unwrap();
    let out = tempfile::tempdir().unwrap();
    println!("| recipe | weights kept | mean KLD | perplexity |");
    let divergence = |line: &str| {
        let out = out.path().join(format!(
            "{:x}",
            line.bytes().fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(b))
        ));
        Compressor::new(Recipe::parse(line).unwrap())
            .with_calibration(train.clone())
            .run(&source, &out)
            .map(drop)
            .unwrap();
        let small = open_model(&out).unwrap();
        let judged = small.decoder().unwrap().materialise().unwrap();
        let judged = reference.judge(&judged, &|_, _| ()).unwrap();
        let kld = judged.kld_mean.unwrap();
        let kept = weights(&small) as f64 / weights(&source) as f64;
        println!("| `{line}` | {:.1}% | {kld:.4} | {:.3} |", 100.0 * kept, judged.perplexity);
        kld
    };
    // Of about the same size: the uniform form loses no heads below a quarter.
    let flap = [divergence("flap(sparsity=0.2)"), divergence("flap(sparsity=0.249, uniform=true)")];
    let repaired = [divergence("ziplm(sparsity=0.2)"), divergence("modegpt(sparsity=0.2)")];
    for line in [
        "cfsp(sparsity=0.2, multiple=1)",
        "intra_fusion(sparsity=0.2)",
        "udfc(sparsity=0.2)",
        "prunenet(sparsity=0.2)",
        "nirvana(sparsity=0.2)",
        "nirvana(sparsity=0.2, heads=false, multiple=1)",
    ] {
        divergence(line);
    }
    let least = flap[0].min(flap[1]);
    assert!(repaired.iter().all(|kld| *kld < least), "{repaired:?} {flap:?}");
}
