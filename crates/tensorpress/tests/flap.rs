//! FLAP through the pipeline: smaller models compute what the large ones do with everything that went switched off, and
//! what went is what a slow reference chooses.

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tensorpress::model::text::{self, Limits, Windows};
use tensorpress::model::{Block, Observer, Reference, SharedInput, embedded};
use tensorpress::pipeline::{CalibrationText, Event, Progress, partial_of};
use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::{Array2, ArrayView2, Axis, concatenate};
use tensorpress::tensor::node::Dense;
use tensorpress::tensor::{Scratch, Tensor};
use tensorpress_tensor::testing::data;
use tiny::{Tiny, folder_bytes};

const WINDOWS: usize = 6;
const LENGTH: usize = 48;

fn calibration() -> CalibrationText {
    CalibrationText::new(embedded::CALIBRATION).with_windows(WINDOWS).with_length(LENGTH)
}

fn compress(line: &str, source: &Source, out: &Path) -> Result<Report> {
    Compressor::new(Recipe::parse(line)?).with_calibration(calibration()).run(source, out)
}

/// All inputs of the attention's output matrix and of the feed-forward network's, of every block of the model as it is.
fn inputs(source: &Source) -> Vec<[Array2<f32>; 2]> {
    #[derive(Default)]
    struct Keep([Vec<Array2<f32>>; 2]);
    impl Observer for Keep {
        fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
            match input {
                SharedInput::AttentionOutput => self.0[0].push(x.to_owned()),
                SharedInput::MlpOutput => self.0[1].push(x.to_owned()),
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        }
    }
    let model = source.decoder().unwrap();
    let cut = Windows { chars: 120_000, windows: WINDOWS, length: LENGTH };
    let tokenizer = source.tokenizer().unwrap();
    let windows = text::calibration_windows(embedded::CALIBRATION, &tokenizer, cut).unwrap();
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    let mut scratch = Scratch::default();
    let mut hidden = model.embedding().embed(&windows.concat(), &mut scratch).unwrap();
    let one = |block: &Block| {
        let mut keep = Keep::default();
        block
            .forward_sequences(hidden.view_mut(), &lengths, Some(&mut keep), &mut scratch)
            .unwrap();
        keep.0.map(|parts| {
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            concatenate(Axis(0), &views).unwrap()
        })
    };
    model.blocks().iter().map(one).collect()
}

/// Var(x_j) ‖W_:j‖², in two passes.
fn weighted_variance(x: &Array2<f32>, w: &Array2<f32>) -> Vec<f64> {
    let score = |j: usize| {
        let values: Vec<f64> = x.column(j).iter().map(|v| f64::from(*v)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        variance * w.column(j).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
    };
    (0..x.ncols()).map(score).collect()
}

fn matrix(source: &Source, name: &str) -> Array2<f32> {
    source.checkpoint().tensor(name).unwrap().to_matrix().unwrap()
}

/// Numbers of the rows of `large` that are the rows of `small`, in order.
fn rows_of(small: &Array2<f32>, large: &Array2<f32>) -> Vec<usize> {
    let mut at = 0;
    let mut find = |row| {
        while large.row(at) != row {
            at += 1;
        }
        at += 1;
        at - 1
    };
    small.rows().into_iter().map(&mut find).collect()
}

fn logits(source: &Source, ids: &[u32]) -> Array2<f32> {
    let (model, mut scratch) = (source.decoder().unwrap(), Scratch::default());
    let hidden = model.hidden(ids, &mut scratch).unwrap();
    model.head().logits(hidden.view(), &mut scratch).unwrap()
}

fn distance(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The large model whose removed inputs of o and down are switched off, with the biases of the small one; and for each
/// block the rows of q and of up that the small one has.
fn masked(tiny: &Tiny, large: &Source, small: &Source) -> (Tiny, Vec<[Vec<usize>; 2]>) {
    let mut masked = tiny.clone();
    let mut kept = Vec::new();
    for block in 0..large.blocks() {
        let name = |part: &str| format!("model.layers.{block}.{part}");
        let of = |part: &str| {
            let name = name(part);
            rows_of(&matrix(small, &name), &matrix(large, &name))
        };
        let [queries, channels] = ["self_attn.q_proj.weight", "mlp.up_proj.weight"].map(of);
        assert_eq!(of("mlp.gate_proj.weight"), channels);
        assert_eq!(of("self_attn.k_proj.weight"), of("self_attn.v_proj.weight"));
        for (part, columns) in [("self_attn.o_proj", &queries), ("mlp.down_proj", &channels)] {
            masked.switch_off(&name(&format!("{part}.weight")), columns);
            let bias = name(&format!("{part}.bias"));
            if small.checkpoint().contains(&bias) {
                let values = matrix(small, &bias).into_raw_vec_and_offset().0;
                masked.tensors.insert(bias, (vec![values.len()], values));
            }
        }
        kept.push([queries, channels]);
    }
    // The loader takes biases that a config does not know.
    (masked, kept)
}

fn kinds() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("llama"), Just("llama"), Just("mistral"), Just("qwen2"), Just("qwen3")]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pruned_models_compute_what_masked_ones_do(
        kind in kinds(),
        heads in prop_oneof![Just((1, 1)), Just((4, 4)), Just((8, 4)), Just((6, 2)), Just((4, 1))],
        inner in 9usize..60,
        biased in any::<bool>(),
        uniform in any::<bool>(),
        sparsity in 0.0f64..0.8,
        seed in any::<u64>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Tiny::new(kind, heads, 4, inner, biased, seed);
        let large = tiny.source(&folder.path().join("large"));
        let out = folder.path().join("small");
        let line = format!("flap(sparsity={sparsity:?}, uniform={uniform})");
        let report = compress(&line, &large, &out).unwrap();
        let small = open_model(&out).unwrap();
        prop_assert_eq!(uniform, small.raw_config().get("quantization_config").is_none());
        let (masked, kept) = masked(&tiny, &large, &small);
        let masked = masked.source(&folder.path().join("masked"));
        let ids: Vec<u32> = (0..40).map(|i| (i * 37 + seed % 11) as u32 % 200).collect();
        let (exact, pruned) = (logits(&masked, &ids), logits(&small, &ids));
        prop_assert!(distance(&exact, &pruned) < 1e-4, "{}", distance(&exact, &pruned));

        let sayable = |known: &[&str]| !uniform || known.contains(&kind);
        let statistics = inputs(&large);
        for (block, ([queries, channels], x)) in kept.iter().zip(&statistics).enumerate() {
            let shape = &report.blocks[block];
            let config = small.config().shape(block);
            prop_assert_eq!(&shape.after, &config);
            prop_assert_eq!(config.intermediate, channels.len());
            let name = |part: &str| format!("model.layers.{block}.{part}");
            // Channels: those a slow reference scores highest.
            let scores = weighted_variance(&x[1], &matrix(&large, &name("mlp.down_proj.weight")));
            let least = channels.iter().map(|c| scores[*c]).fold(f64::INFINITY, f64::min);
            let gone = (0..inner).filter(|c| !channels.contains(c)).map(|c| scores[c]);
            prop_assert!(gone.fold(0.0, f64::max) <= least * (1.0 + 1e-6));
            if uniform {
                prop_assert_eq!(channels.len(), inner - (inner as f64 * sparsity + 1e-9) as usize);
            }
            // Biases: the mean of what went, through its weights.
            for (part, x, kept, known) in [
                ("self_attn.o_proj", &x[0], queries, &["llama", "qwen3"][..]),
                ("mlp.down_proj", &x[1], channels, &["llama"][..]),
            ] {
                let bias = name(&format!("{part}.bias"));
                let weight = matrix(&large, &name(&format!("{part}.weight")));
                let mean = x.mean_axis(Axis(0)).unwrap();
                let mut want = match large.checkpoint().contains(&bias) {
                    true => matrix(&large, &bias).row(0).to_owned(),
                    false => Array2::zeros((1, weight.nrows())).row(0).to_owned(),
                };
                for j in (0..weight.ncols()).filter(|j| !kept.contains(j) && sayable(known)) {
                    want.scaled_add(mean[j], &weight.column(j));
                }
                let got = match small.checkpoint().contains(&bias) {
                    true => matrix(&small, &bias).row(0).to_owned(),
                    false => Array2::zeros((1, weight.nrows())).row(0).to_owned(),
                };
                prop_assert!((&want - &got).iter().all(|d| d.abs() < 1e-4), "{} {}", line, bias);
                let less = kept.len() < weight.ncols();
                let noted = report.layers.iter().find(|l| l.name == name(&format!("{part}.weight")));
                let noted = noted.unwrap().fallback.as_deref().unwrap_or_default();
                prop_assert_eq!(less && !sayable(known), noted.contains("no bias"), "{}", noted);
            }
        }
        if !uniform {
            let weights = |source: &Source| -> usize {
                let linears = (0..source.blocks()).flat_map(|b| source.linears(b));
                linears.map(|l| l.shape[0] * l.shape[1]).sum()
            };
            let (all, left) = (weights(&large) as f64, weights(&small) as f64);
            prop_assert!(all - left <= sparsity * all + 1e-6);
            let emptied = kept.iter().any(|[_, channels]| channels.len() == 1);
            prop_assert!(emptied || sparsity * all - (all - left) <= 3.0 * tiny::HIDDEN as f64);
        }
    }
}

/// The plain folder has every tensor that others ask for, in the stored type, and no other.
#[test]
fn plain_folders_are_what_others_load() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Source::demo(&registry()).unwrap();
    let out = folder.path().join("out");
    let report = compress("flap(sparsity=0.5, uniform=true)", &demo, &out).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let (was, raw) = (demo.config(), demo.raw_config());
    assert_eq!(config["head_dim"], was.head_dim);
    assert_eq!(config["intermediate_size"], was.intermediate / 2);
    assert!(config["num_attention_heads"].as_u64().unwrap() < was.heads as u64);
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&true.into(), &true.into()));
    assert!(config.get("quantization_config").is_none());
    for key in ["hidden_size", "vocab_size", "model_type", "architectures", "rope_theta"] {
        assert_eq!(config[key], raw[key], "{key}");
    }
    let stored = Checkpoint::open(&out).unwrap();
    let names: Vec<&str> = stored.names().collect();
    let mut expected: Vec<String> = demo.checkpoint().names().map(str::to_owned).collect();
    for block in 0..demo.blocks() {
        for part in [
            "self_attn.q",
            "self_attn.k",
            "self_attn.v",
            "self_attn.o",
            "mlp.gate",
            "mlp.up",
            "mlp.down",
        ] {
            expected.push(format!("model.layers.{block}.{part}_proj.bias"));
        }
    }
    expected.sort();
    assert_eq!(names, expected);
    for name in names {
        let of =
            if name.ends_with(".bias") { name.replace(".bias", ".weight") } else { name.into() };
        assert_eq!(stored.dtype(name).unwrap(), demo.checkpoint().dtype(&of).unwrap(), "{name}");
    }
    assert!(out.join("tokenizer.json").exists());
    assert!(report.bytes_after < report.bytes_before);
    assert_eq!(report.layers.len(), 7 * demo.blocks());
    let bits: Vec<f64> = report.layers.iter().map(|l| l.bits_per_weight).collect();
    assert!(bits.iter().all(|b| *b == 16.0) && report.bits_per_weight == 16.0, "{bits:?}");
    assert!(report.layers.iter().all(|l| l.method == "flap(sparsity=0.5, uniform=true)"));
    // It is a model like any other: pruned again, and compressed.
    let again = folder.path().join("again");
    let small = open_model(&out).unwrap();
    let report = compress("flap(sparsity=0.1) | rtn(bits=8)", &small, &again).unwrap();
    assert!(report.bits_per_weight < 9.0 && open_model(&again).unwrap().decoder().is_ok());
}

struct StopAt {
    judged: Option<usize>,
    block: Option<usize>,
    cancel: Arc<AtomicBool>,
}

impl Progress for StopAt {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Judged { block, .. } if Some(block) == self.judged => {}
            Event::Block { block, .. } if Some(block) == self.block => {}
            _ => return,
        }
        self.cancel.store(true, Ordering::Relaxed);
    }
}

#[test]
fn stopped_work_resumes_and_threads_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Source::demo(&registry()).unwrap();
    for (i, line) in
        ["flap(sparsity=0.3) | gptq(bits=4, group=32)", "flap(sparsity=0.5, uniform=true)"]
            .iter()
            .enumerate()
    {
        let path = |name: &str| folder.path().join(format!("{name}{i}"));
        let whole = compress(line, &demo, &path("whole")).unwrap();
        let out = path("out");
        for (judged, block) in [(Some(1), None), (None, Some(0)), (None, Some(2))] {
            let cancel = Arc::new(AtomicBool::new(false));
            let mut stop = StopAt { judged, block, cancel: cancel.clone() };
            let stopped = Compressor::new(Recipe::parse(line).unwrap())
                .with_calibration(calibration())
                .with_progress(&mut stop)
                .with_cancel(cancel)
                .run(&demo, &out);
            assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
            assert!(!out.exists() && partial_of(&out).exists());
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let resumed = pool.install(|| compress(line, &demo, &out)).unwrap();
        assert!(resumed.resumed_blocks > 0);
        assert_eq!(resumed.layers, whole.layers);
        assert!(folder_bytes(&out) == folder_bytes(&path("whole")), "{line}");
        // Other decisions are other work.
        let cancel = Arc::new(AtomicBool::new(false));
        let mut stop = StopAt { judged: None, block: Some(1), cancel: cancel.clone() };
        let other = path("other");
        let run = Compressor::new(Recipe::parse("flap(sparsity=0.2)").unwrap())
            .with_calibration(calibration())
            .with_progress(&mut stop)
            .with_cancel(cancel);
        assert!(run.run(&demo, &other).is_err());
        let error = compress("flap(sparsity=0.4)", &demo, &other).unwrap_err();
        assert!(error.message().contains("recipe"), "{error}");
    }
}

#[test]
fn bad_input_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Source::demo(&registry()).unwrap();
    let out = folder.path().join("out");
    let missing = Compressor::new(Recipe::parse("flap").unwrap()).run(&demo, &out).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::MissingCalibration);
    assert!(missing.message().contains("`flap`"), "{missing}");
    assert!(!out.exists() && !partial_of(&out).exists());
    // A weight that is not finite is named.
    let mut tiny = Tiny::new("llama", (4, 2), 4, 20, false, 5);
    let name = "model.layers.1.mlp.down_proj.weight";
    tiny.tensors.get_mut(name).unwrap().1[7] = f32::NAN;
    let poisoned = tiny.source(&folder.path().join("poisoned"));
    let error = compress("flap", &poisoned, &folder.path().join("bad")).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Numerical, Some(name)), "{error}");
    assert!(!folder.path().join("bad").exists());
    // What is compressed, or has blocks of different shapes, cannot be made plain.
    let tiny = Tiny::new("llama", (4, 2), 4, 30, false, 6).source(&folder.path().join("tiny"));
    let _ = compress("flap(sparsity=0.4)", &tiny, &folder.path().join("uneven")).unwrap();
    let uneven = open_model(folder.path().join("uneven")).unwrap();
    let error = compress("flap(uniform=true)", &uneven, &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("uniform"), "{error}");
    assert!(!out.exists() && !partial_of(&out).exists());
    let twice = compress("flap(sparsity=0.2)", &uneven, &folder.path().join("twice")).unwrap();
    assert!(twice.bytes_after < twice.bytes_before);
    let _ = compress("rtn(bits=4)", &tiny, &folder.path().join("codes")).unwrap();
    let codes = open_model(folder.path().join("codes")).unwrap();
    let error = compress("flap", &codes, &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

/// Channels that never move go first, and nothing is lost with them.
#[test]
fn dead_channels_go_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::new("llama", (4, 2), 4, 20, false, 8);
    for block in 0..2 {
        let (shape, values) =
            tiny.tensors.get_mut(&format!("model.layers.{block}.mlp.up_proj.weight")).unwrap();
        let width = shape[1];
        values.iter_mut().enumerate().for_each(|(i, v)| {
            if [2, 9, 13].contains(&(i / width)) {
                *v = 0.0;
            }
        });
    }
    let large = tiny.source(&folder.path().join("large"));
    let out = folder.path().join("out");
    let report = compress("flap(sparsity=0.15, uniform=true)", &large, &out).unwrap();
    let small = open_model(&out).unwrap();
    assert!(report.blocks.iter().all(|b| b.after.intermediate == 17));
    let attention = |l: &&tensorpress::pipeline::LayerReport| l.name.contains("o_proj");
    assert!(
        report.layers.iter().filter(attention).all(|l| l
            .fallback
            .as_ref()
            .unwrap()
            .contains("all heads stay"))
    );
    let ids: Vec<u32> = (0..30).collect();
    assert!(distance(&logits(&large, &ids), &logits(&small, &ids)) < 1e-5);
}

/// The story models at 20%, both forms, and before a quantiser.
#[test]
fn stories_keep_talking() {
    let Some(texts) = data::find("data/text") else { return };
    let read = |name: &str| text::read(&texts.join(name)).unwrap();
    let stories = read("tinystories_val_250stories.jsonl");
    let train = CalibrationText::new(read("tinystories_train_2MB_calib.txt"));
    println!("| model | recipe | weights kept | bits/weight | bytes | mean KLD | perplexity |");
    for (model, group) in [("stories260k", 32), ("stories3m", 64)] {
        let Some(folder) = data::find(&format!("data/models/{model}")) else { return };
        let source = open_model(&folder).unwrap();
        let tokenizer = source.tokenizer().unwrap();
        let limits = Limits { max_segments: Some(60), max_tokens: Some(400) };
        let context = source.config().context;
        let segments =
            text::segments(&stories, &PathBuf::from("s.jsonl"), &tokenizer, context, limits)
                .unwrap();
        let exact = source.decoder().and_then(|d| d.materialise()).unwrap();
        let reference = Reference::new(&exact, &segments, &|_, _| ()).unwrap();
        let mut divergence = Vec::new();
        for line in [
            "flap(sparsity=0.2, uniform=true)".to_owned(),
            "flap(sparsity=0.2)".to_owned(),
            "flap(sparsity=0.5, uniform=true)".to_owned(),
            format!("flap(sparsity=0.2) | gptq(bits=4, group={group}, clip=mse)"),
        ] {
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join("out");
            let report = Compressor::new(Recipe::parse(&line).unwrap())
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
                "| {model} | `{line}` | {:.1}% | {:.3} | {} -> {} | {kld:.4} | {:.3} |",
                100.0 * kept,
                report.bits_per_weight,
                report.bytes_before,
                report.bytes_after,
                judged.perplexity
            );
            let shapes: Vec<String> = report
                .blocks
                .iter()
                .map(|b| format!("{}/{}/{}", b.after.heads, b.after.kv_heads, b.after.intermediate))
                .collect();
            println!("{}", shapes.join(" "));
            assert!(report.bytes_after < report.bytes_before && kept < 0.9, "{line}");
            assert!(kld.is_finite() && kld > 0.0, "{line}: {kld}");
            divergence.push(kld);
        }
        // More is lost at a half than at a fifth.
        assert!(divergence[2] > divergence[0], "{model}: {divergence:?}");
    }
}

/// An encoder: alone and uniform only its channels go, for its config cannot say how wide a head is.
#[test]
fn encoders_lose_channels() {
    let Some(folder) = data::minilm() else { return };
    let source = open_model(&folder).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    let texts =
        ["The cat sat on the mat.", "Interest rates rose again.", "A dog slept in the sun."];
    let embed =
        |source: &Source| source.encoder().and_then(|e| e.embed(&tokenizer, &texts)).unwrap();
    let exact = embed(&source);
    let out = tempfile::tempdir().unwrap();
    for (line, plain) in [("flap(sparsity=0.1, uniform=true)", true), ("flap(sparsity=0.1)", false)]
    {
        let out = out.path().join(if plain { "plain" } else { "uneven" });
        let report = Compressor::new(Recipe::parse(line).unwrap())
            .with_calibration(CalibrationText::new(embedded::CALIBRATION))
            .run(&source, &out)
            .unwrap();
        let small = open_model(&out).unwrap();
        let kept: Vec<_> =
            report.blocks.iter().map(|b| (b.after.heads, b.after.intermediate)).collect();
        println!("{line}: {kept:?}, {} -> {} bytes", report.bytes_before, report.bytes_after);
        assert_eq!(plain, small.raw_config().get("quantization_config").is_none());
        assert!(!plain || kept.iter().all(|k| *k == (12, 1536 - 153)));
        let got = embed(&small);
        // What remains computes what the whole one does with the rest switched off.
        let mut masked = source.encoder().unwrap();
        for (index, block) in masked.blocks_mut().iter_mut().enumerate() {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            for (rows, reader) in [
                ("attention.self.query", "attention.output.dense"),
                ("intermediate.dense", "output.dense"),
            ] {
                let weight =
                    |source: &Source, of: &str| matrix(source, &name(&format!("{of}.weight")));
                let kept = rows_of(&weight(&small, rows), &weight(&source, rows));
                let mut values = weight(&source, reader);
                for column in (0..values.ncols()).filter(|c| !kept.contains(c)) {
                    values.column_mut(column).fill(0.0);
                }
                let layer = block.linear_mut(&name(&format!("{reader}.weight"))).unwrap();
                let node = Dense::from_f32(values.view(), DType::F32).unwrap();
                layer.replace(Box::new(node)).unwrap();
                let bias = matrix(&small, &name(&format!("{reader}.bias")));
                layer.set_bias(Some(bias.into_raw_vec_and_offset().0)).unwrap();
            }
        }
        let far = distance(&masked.embed(&tokenizer, &texts).unwrap(), &got);
        println!("{line}: within {far:.1e} of the masked model");
        assert!(far < 1e-4, "{line}: {far}");
        for (a, b) in exact.rows().into_iter().zip(got.rows()) {
            let cosine = a.dot(&b);
            println!("{line}: cosine {cosine:.5}");
            // One threshold for all takes heads here, which cost an encoder of 12 small heads more than channels do.
            assert!(cosine > if plain { 0.9 } else { 0.6 }, "{line}: {cosine}");
        }
    }
}
