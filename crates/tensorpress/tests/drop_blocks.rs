//! Dropping blocks through the pipeline: a plain smaller model is left, without the blocks that a slow reference finds least
//! influential.

mod tiny;

use std::path::Path;

use tensorpress::model::text::{self, Limits, Windows};
use tensorpress::model::{Reference, embedded};
use tensorpress::pipeline::{BlockReport, CalibrationText};
use tensorpress::prelude::*;
use tensorpress::prune::depth::refit;
use tensorpress::tensor::ndarray::{Array2, Axis, concatenate};
use tensorpress::tensor::rewrite::Outputs;
use tensorpress::tensor::{Scratch, Tensor, Usable};
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

fn windows(source: &Source) -> Vec<Vec<u32>> {
    let cut = Windows { chars: 120_000, windows: WINDOWS, length: LENGTH };
    let tokenizer = source.tokenizer().unwrap();
    text::calibration_windows(embedded::CALIBRATION, &tokenizer, cut).unwrap()
}

/// How much each block turns the hidden states of the calibration windows, by the formula.
fn influences(source: &Source) -> Vec<f64> {
    let model = source.decoder().unwrap();
    let windows = windows(source);
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
    highest(&influences(source), count)
}

/// All but the lowest.
fn highest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
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

/// The squared change of all logits of the calibration windows, a token's mean.
fn change(source: &Source, other: &Source) -> f64 {
    let (mut sum, mut tokens) = (0.0, 0);
    for ids in windows(source) {
        let [was, is] = [source, other].map(|source| logits(source, &ids).mapv(f64::from));
        sum += (is - was).mapv(|d| d * d).sum();
        tokens += ids.len();
    }
    sum / tokens as f64
}

/// Fails where blocks are judged by influence, or hidden states are compared in the place of logits.
#[test]
fn the_blocks_go_that_the_output_misses_least() {
    let folder = tempfile::tempdir().unwrap();
    let mut others = 0;
    for seed in 0..4 {
        let path = |name: &str| folder.path().join(format!("{name}{seed}"));
        let mut tiny = Tiny::deep("llama", 5, (4, 2), 4, 30, false, 40 + seed);
        // The last two blocks turn their states much, but in channels that the head hardly reads.
        let unread = |channel: usize| channel > 6;
        let (_, head) = tiny.tensors.get_mut("lm_head.weight").unwrap();
        let columns = head.iter_mut().enumerate().filter(|(i, _)| unread(i % tiny::HIDDEN));
        columns.for_each(|(_, w)| *w *= 0.01);
        for name in ["self_attn.o_proj", "mlp.down_proj"] {
            for block in [3, 4] {
                let name = format!("model.layers.{block}.{name}.weight");
                let (shape, values) = tiny.tensors.get_mut(&name).unwrap();
                for (channel, row) in values.chunks_exact_mut(shape[1]).enumerate() {
                    row.iter_mut().for_each(|w| *w *= if unread(channel) { 1.5 } else { 0.0 });
                }
            }
        }
        let large = tiny.source(&path("large"));
        let lost = |block: usize| {
            let left: Vec<usize> = (0..5).filter(|b| *b != block).collect();
            change(&large, &without(&tiny, &left).source(&path(&format!("without {block} "))))
        };
        let lost: Vec<f64> = (0..5).map(lost).collect();
        let kept = highest(&lost, 2);
        others += usize::from(kept != left(&large, 2));
        let by_hand = without(&tiny, &kept).source(&path("by hand"));
        for line in ["drop_blocks(count=2, score=output)", "drop_blocks(score=output, share=0.4)"] {
            let out = path(line);
            let report = compress(line, &large, &out).unwrap();
            let small = open_model(&out).unwrap();
            let stayed = report.blocks.iter().filter(|b| b.after.heads > 0).map(|b| b.block);
            assert_eq!(stayed.collect::<Vec<_>>(), kept, "{line}: {lost:?}");
            assert_eq!(change(&by_hand, &small), 0.0);
        }
    }
    assert!(others > 0, "all would go by influence too");
}

#[test]
fn the_last_blocks_go_without_calibration() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::deep("llama", 5, (4, 2), 4, 30, false, 8);
    let large = tiny.source(&folder.path().join("large"));
    for (line, left) in
        [("drop_blocks(count=2, score=last)", 3), ("drop_blocks(score=last, share=0.5)", 2)]
    {
        let out = folder.path().join(line);
        let _ = Compressor::new(Recipe::parse(line).unwrap()).run(&large, &out).unwrap();
        let kept: Vec<usize> = (0..left).collect();
        let by_hand = without(&tiny, &kept).source(&folder.path().join(format!("hand{left}")));
        assert_eq!(change(&by_hand, &open_model(&out).unwrap()), 0.0);
    }
    let magnitude = "drop_blocks(score=magnitude)";
    let out = folder.path().join("magnitude");
    let run = Compressor::new(Recipe::parse(magnitude).unwrap()).run(&large, &out).unwrap();
    assert_eq!(run.blocks.iter().filter(|b| b.after.heads == 0).count(), 1);
    let taylor = compress("drop_blocks(score=taylor)", &large, &folder.path().join("taylor"));
    let taylor = taylor.unwrap();
    assert_eq!(taylor.blocks.iter().filter(|b| b.after.heads == 0).count(), 1);
    assert!(taylor.layers.iter().all(|layer| layer.fallback.is_none()), "{:?}", taylor.layers);
}

/// Fails where the head stays as it was, or is fitted to what the original reads.
#[test]
fn a_refitted_head_stands_behind_the_blocks_that_stay() {
    let folder = tempfile::tempdir().unwrap();
    let dropped = "drop_blocks(count=2, score=last)";
    for tied in [false, true] {
        let path = |name: &str| folder.path().join(format!("{name}{tied}"));
        let mut tiny = Tiny::deep("llama", 5, (4, 2), 4, 30, false, 9);
        if tied {
            tiny.tensors.remove("lm_head.weight");
            tiny.config["tie_word_embeddings"] = true.into();
        }
        let large = tiny.source(&path("large"));
        let bare = without(&tiny, &[0, 1, 2]).source(&path("bare"));
        let report = compress(&format!("{dropped} | refit_head"), &large, &path("out")).unwrap();
        let small = open_model(path("out")).unwrap();
        let raw = small.raw_config();
        assert!(raw.get("quantization_config").is_none());
        assert_eq!(raw.get("tie_word_embeddings").cloned(), tied.then_some(false.into()));
        let said = report.notes.iter().any(|note| note.contains("matrix of its own now"));
        assert_eq!(said, tied, "{:?}", report.notes);
        // All but the head is as it was.
        let tensor = |source: &Source, name: &str| {
            source.checkpoint().tensor(name).unwrap().to_matrix().unwrap()
        };
        for name in bare.checkpoint().names().filter(|name| *name != "lm_head.weight") {
            assert_eq!(tensor(&bare, name), tensor(&small, name), "{name}");
        }
        assert_eq!(
            small.checkpoint().names().count(),
            bare.checkpoint().names().count() + usize::from(tied)
        );
        // The head is what the formula gives of what both models read.
        let reads = |source: &Source| {
            let (model, mut scratch) = (source.decoder().unwrap(), Scratch::default());
            let parts: Vec<Array2<f32>> = windows(source)
                .iter()
                .map(|ids| {
                    let hidden = model.hidden(ids, &mut scratch).unwrap();
                    model.head().input(hidden.view(), &mut scratch).unwrap()
                })
                .collect();
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            concatenate(Axis(0), &views).unwrap()
        };
        let head =
            tensor(&large, if tied { "model.embed_tokens.weight" } else { "lm_head.weight" });
        let (x, y) = (reads(&large), reads(&bare));
        let Usable::Yes(want) = refit(head.view(), Outputs::new(x.view(), y.view()), 0.01).unwrap()
        else {
            panic!("no head")
        };
        let found = tensor(&small, "lm_head.weight");
        assert!((&found - &want).iter().all(|d| d.abs() < 1e-4));
        assert!((&found - &head).iter().any(|d| d.abs() > 0.01));
        let (before, after) = (change(&large, &bare), change(&large, &small));
        assert!(after < 0.8 * before, "{before} {after}");
        // What comes behind sees the new head.
        let line = format!("{dropped} | refit_head | rtn(bits=8, group=8)");
        let _ = compress(&line, &large, &path("rounded")).unwrap();
        let rounded = open_model(path("rounded")).unwrap();
        assert_eq!(tensor(&rounded, "lm_head.weight"), found);
        assert!(change(&large, &rounded) < 0.9 * before);
        // Without a rewrite before it there is nothing to make good.
        let _ = compress("refit_head", &large, &path("alone")).unwrap();
        assert!(change(&large, &open_model(path("alone")).unwrap()) < 1e-6 * before);
    }
}

/// A checkpoint may have the one matrix under either name.
#[test]
fn a_table_stored_as_a_head_stays_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::deep("llama", 3, (4, 2), 4, 30, false, 10);
    tiny.config["tie_word_embeddings"] = true.into();
    let (table, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let both = tiny.clone();
    let mut made = Vec::new();
    for gone in [head, table] {
        let mut tiny = both.clone();
        let matrix = tiny.tensors[table].clone();
        tiny.tensors.insert(head.to_owned(), matrix);
        tiny.tensors.remove(gone);
        let source = tiny.source(&folder.path().join(gone));
        let out = folder.path().join(format!("{gone}-out"));
        let _ = compress("drop_blocks(score=last) | refit_head", &source, &out).unwrap();
        let small = open_model(&out).unwrap();
        assert!(small.checkpoint().contains(table) && small.checkpoint().contains(head));
        made.push(small);
    }
    let ids: Vec<u32> = (0..40).map(|i| i * 5 % 200).collect();
    assert_eq!(logits(&made[0], &ids), logits(&made[1], &ids));
}

#[test]
fn encoders_keep_their_blocks() {
    let Some(folder) = data::minilm() else { return };
    let encoder = open_model(folder).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = compress("drop_blocks", &encoder, &out.path().join("out")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("Bert is an encoder"), "{error}");
    let error = compress("refit_head", &encoder, &out.path().join("out")).unwrap_err();
    assert!(error.message().contains("Bert makes no logits"), "{error}");
}

/// The story models, by the judging protocol.
#[test]
fn stories_without_a_block() {
    let Some(texts) = data::find("data/text") else { return };
    let read = |name: &str| text::read(&texts.join(name)).unwrap();
    let stories = read("tinystories_val_250stories.jsonl");
    let train = CalibrationText::new(read("tinystories_train_2MB_calib.txt"));
    println!("| model | recipe | weights kept | bytes | mean KLD | perplexity |");
    for (model, score) in
        [("stories260k", "count=2, score=output"), ("stories3m", "count=1, score=last")]
    {
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
        let bare = format!("drop_blocks({score})");
        let refitted = format!("{bare} | refit_head");
        for line in [
            "drop_blocks",
            "drop_blocks(count=2)",
            "drop_blocks | flap(sparsity=0.1)",
            &bare,
            &refitted,
        ] {
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
        // Where much is lost, the refit makes good for a part of it.
        assert!(divergence[4] < divergence[3], "{divergence:?}");
    }
}
