//! Dropping blocks through the pipeline: a plain smaller model is left, without the blocks that a slow reference finds least
//! influential.

mod tiny;

use std::path::Path;

use tensorpress::model::text::{self, Limits, Windows};
use tensorpress::model::{Reference, embedded};
use tensorpress::pipeline::{BlockReport, CalibrationText};
use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::Array2;
use tensorpress::tensor::{Scratch, Tensor};
use tensorpress_tensor::testing::data;
use tiny::Tiny;

const WINDOWS: usize = 4;
const LENGTH: usize = 32;

fn compress(line: &str, source: &Source, out: &Path) -> Result<Report> {
    let text =
        CalibrationText::new(embedded::CALIBRATION).with_windows(WINDOWS).with_length(LENGTH);
    Compressor::new(Recipe::parse(line)?).with_calibration(text).run(source, out)
}

fn logits(source: &Source, ids: &[u32]) -> Array2<f32> {
    let (model, mut scratch) = (source.decoder().unwrap(), Scratch::default());
    let hidden = model.hidden(ids, &mut scratch).unwrap();
    model.head().logits(hidden.view(), &mut scratch).unwrap()
}

/// How much each block turns the hidden states of the calibration windows, by the formula.
fn influences(source: &Source) -> Vec<f64> {
    let model = source.decoder().unwrap();
    let cut = Windows { chars: 120_000, windows: WINDOWS, length: LENGTH };
    let tokenizer = source.tokenizer().unwrap();
    let windows = text::calibration_windows(embedded::CALIBRATION, &tokenizer, cut).unwrap();
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    let mut scratch = Scratch::default();
    let mut hidden = model.embedding().embed(&windows.concat(), &mut scratch).unwrap();
    let mut all = Vec::new();
    for block in model.blocks() {
        let before = hidden.mapv(f64::from);
        block.forward_sequences(hidden.view_mut(), &lengths, None, &mut scratch).unwrap();
        let after = hidden.mapv(f64::from);
        let cosine = |i: usize| {
            let (x, y) = (before.row(i), after.row(i));
            x.dot(&y) / (x.dot(&x) * y.dot(&y)).sqrt()
        };
        all.push(1.0 - (0..before.nrows()).map(cosine).sum::<f64>() / before.nrows() as f64);
    }
    all
}

/// The blocks that stay if the least influential go.
fn left(source: &Source, count: usize) -> Vec<usize> {
    let influences = influences(source);
    let mut order: Vec<usize> = (0..influences.len()).collect();
    order.sort_by(|a, b| influences[*a].total_cmp(&influences[*b]));
    let mut left = order.split_off(count);
    left.sort_unstable();
    left
}

/// The model with these of its blocks, made by hand.
fn without(tiny: &Tiny, left: &[usize]) -> Tiny {
    let mut small = tiny.clone();
    small.tensors.retain(|name, _| !name.contains(".layers."));
    for (new, old) in left.iter().enumerate() {
        for (name, tensor) in &tiny.tensors {
            if let Some(rest) = name.strip_prefix(&format!("model.layers.{old}.")) {
                small.tensors.insert(format!("model.layers.{new}.{rest}"), tensor.clone());
            }
        }
    }
    small.config["num_hidden_layers"] = left.len().into();
    small
}

#[test]
fn the_least_influential_blocks_go_and_a_plain_model_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..40).map(|i| i * 5 % 200).collect();
    for (i, (kind, heads)) in
        [("llama", (4, 4)), ("mistral", (8, 2)), ("qwen2", (6, 2)), ("qwen3", (4, 1))]
            .into_iter()
            .enumerate()
    {
        let path = |name: &str| folder.path().join(format!("{name}{i}"));
        let mut tiny = Tiny::deep(kind, 5, heads, 4, 30, true, 11 + i as u64);
        if kind == "qwen3" {
            let [full, sliding] = ["full_attention", "sliding_attention"];
            tiny.config["layer_types"] = vec![full, sliding, full, full, sliding].into();
            tiny.config["sliding_window"] = 6.into();
            tiny.config["use_sliding_window"] = true.into();
        }
        let large = tiny.source(&path("large"));
        let count = 1 + i % 3;
        let line = format!("drop_blocks(count={count})");
        let report = compress(&line, &large, &path("out")).unwrap();
        let kept = left(&large, count);
        let small = open_model(path("out")).unwrap();
        let raw = small.raw_config();
        assert_eq!(
            (raw["num_hidden_layers"].as_u64(), small.blocks()),
            (Some(5 - count as u64), 5 - count)
        );
        assert!(raw.get("quantization_config").is_none());
        let mut by_hand = without(&tiny, &kept);
        if kind == "qwen3" {
            let all = tiny.config["layer_types"].as_array().unwrap();
            by_hand.config["layer_types"] =
                kept.iter().map(|block| all[*block].clone()).collect::<Vec<_>>().into();
            assert_eq!(raw["layer_types"], by_hand.config["layer_types"]);
        }
        let by_hand = by_hand.source(&path("by hand"));
        for name in by_hand.checkpoint().names() {
            let [want, got] = [&by_hand, &small].map(|s| s.checkpoint().tensor(name).unwrap());
            assert_eq!(
                (want.dtype(), want.bytes()[..].to_vec()),
                (got.dtype(), got.bytes()[..].to_vec())
            );
        }
        assert_eq!(by_hand.checkpoint().names().count(), small.checkpoint().names().count());
        assert_eq!(logits(&by_hand, &ids), logits(&small, &ids));
        // What there is to say about it.
        let stayed = |b: &&BlockReport| b.after.heads > 0;
        let stayed: Vec<usize> = report.blocks.iter().filter(stayed).map(|b| b.block).collect();
        assert_eq!((report.blocks.len(), stayed), (5, kept));
        assert_eq!(report.layers.len(), 7 * (5 - count));
        assert!(report.layers.iter().all(|l| l.method == line && l.bits_per_weight == 32.0));
        assert!(report.bytes_after < report.bytes_before);
    }
}

#[test]
fn encoders_keep_their_blocks() {
    let Some(folder) = data::minilm() else { return };
    let encoder = open_model(folder).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = compress("drop_blocks", &encoder, &out.path().join("out")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("Bert is an encoder"), "{error}");
}

/// The story models, by the judging protocol.
#[test]
fn stories_without_a_block() {
    let Some(texts) = data::find("data/text") else { return };
    let read = |name: &str| text::read(&texts.join(name)).unwrap();
    let stories = read("tinystories_val_250stories.jsonl");
    let train = CalibrationText::new(read("tinystories_train_2MB_calib.txt"));
    println!("| model | recipe | weights kept | bytes | mean KLD | perplexity |");
    for model in ["stories260k", "stories3m"] {
        let Some(folder) = data::find(&format!("data/models/{model}")) else { return };
        let source = open_model(&folder).unwrap();
        let tokenizer = source.tokenizer().unwrap();
        let limits = Limits { max_segments: Some(60), max_tokens: Some(400) };
        let context = source.config().context;
        let segments =
            text::segments(&stories, "s.jsonl".as_ref(), &tokenizer, context, limits).unwrap();
        let exact = source.decoder().and_then(|d| d.materialise()).unwrap();
        let reference = Reference::new(&exact, &segments, &|_, _| ()).unwrap();
        let mut divergence = Vec::new();
        for line in ["drop_blocks", "drop_blocks(count=2)", "drop_blocks | flap(sparsity=0.1)"] {
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join("out");
            let report = Compressor::new(Recipe::parse(line).unwrap())
                .with_calibration(train.clone())
                .run(&source, &out)
                .unwrap();
            let small = open_model(&out).unwrap();
            let weights = |source: &Source| -> usize {
                let linears = (0..source.blocks()).flat_map(|b| source.linears(b));
                linears.map(|l| l.shape[0] * l.shape[1]).sum()
            };
            let kept = weights(&small) as f64 / weights(&source) as f64;
            let judged = reference
                .judge(&small.decoder().unwrap().materialise().unwrap(), &|_, _| ())
                .unwrap();
            let kld = judged.kld_mean.unwrap();
            println!(
                "| {model} | `{line}` | {:.1}% | {} -> {} | {kld:.4} | {:.3} |",
                100.0 * kept,
                report.bytes_before,
                report.bytes_after,
                judged.perplexity
            );
            divergence.push(kld);
        }
        assert!(divergence.iter().all(|kld| kld.is_finite() && *kld > 0.0));
        assert!(divergence[0] < divergence[1], "{divergence:?}");
    }
}
