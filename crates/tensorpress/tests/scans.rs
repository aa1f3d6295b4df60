//! State-space models through the pipeline.

mod tiny;

use std::ops::ControlFlow;
use std::path::Path;

use tensorpress::model::text::Corpus;
use tensorpress::model::{Observer, Reads, SharedInput, compare};
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, Scratch, Tensor};
use tiny::Tiny;

fn corpus(folder: &Path) -> Corpus {
    Corpus::read(&folder.join("expected.safetensors")).expect("token ids")
}

fn compress(line: &str, folder: &Path, out: &Path) -> (Source, Report) {
    let text = CalibrationText::new(corpus(folder)).with_length(24);
    let report = Compressor::new(Recipe::parse(line).expect("a recipe"))
        .with_calibration(text)
        .run(&open_model(folder).expect("opens"), out)
        .expect(line);
    (open_model(out).expect("opens"), report)
}

/// Mean KL divergence from the model as it was.
fn divergence(folder: &Path, made: &Source) -> f64 {
    let source = open_model(folder).expect("opens");
    let cut = tensorpress::model::text::Limits::default();
    let segments = corpus(folder).segments(&source, Default::default(), cut).expect("ids");
    let judged = compare(
        &source.decoder().expect("a decoder"),
        &made.decoder().expect("a decoder"),
        &segments,
        &|_, _| {},
    );
    judged.expect("judged").kld_mean.expect("a reference")
}

fn bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    checkpoint.tensor(name).expect(name).bytes()[..].to_vec()
}

/// The matrix into a scan, its columns times the weights of the norm before it.
fn behind_norm(source: &Source, block: usize) -> Array2<f32> {
    let norm = format!("{}norm.weight", source.block_prefix(block));
    let norm = source.checkpoint().tensor(&norm).expect("a norm").to_matrix().expect("values");
    let block = source.block(block).expect("a block");
    let linear = block.linears().next().expect("a matrix");
    linear.decode().expect("decodes") * norm
}

#[test]
fn matrices_alone_are_compressed_and_scales_go_into_the_norm_before_a_scan() {
    let parent = tempfile::tempdir().expect("a folder");
    for (name, matrices) in [("mamba", 4), ("mamba2", 2)] {
        let Some(folder) = data::find(&format!("golden/models/{name}")) else { return };
        let source = open_model(&folder).expect("opens");
        assert_eq!(source.config().stacks(), [(0..3, Reads::Tokens)]);
        let (plain, report) = compress("rtn(bits=8, group=8)", &folder, &parent.path().join(name));
        assert_eq!(report.layers.len(), 3 * matrices, "{name}");
        // Convolutions, decays, biases of steps, norms, tables: not a bit of them changes.
        let extras = source.extras();
        for ending in
            ["conv1d.weight", "conv1d.bias", "A_log", ".D", "norm.weight", "norm_f.weight"]
        {
            assert!(extras.iter().any(|extra| extra.ends_with(ending)), "{name}: {ending}");
        }
        for extra in &extras {
            let [was, is] = [&source, &plain].map(|s| bytes(s.checkpoint(), extra));
            assert_eq!(was, is, "{name}: {extra}");
        }
        let out = parent.path().join(format!("{name}-scaled"));
        let (scaled, _) = compress("awq(bits=8, group=8)", &folder, &out);
        let changed = |extra: &&String| {
            bytes(source.checkpoint(), extra) != bytes(scaled.checkpoint(), extra)
        };
        let changed: Vec<&String> = extras.iter().filter(changed).collect();
        assert!(!changed.is_empty(), "{name}: no scale was folded");
        for extra in changed {
            // The one inside Mamba 2, behind the scan, is nobody's.
            let before = extra.ends_with(".norm.weight") && !extra.contains("mixer");
            assert!(before, "{name}: {extra}");
        }
        // What the norm gained, the matrix behind it lost.
        for block in 0..source.blocks() {
            let [was, is] = [&source, &scaled].map(|made| behind_norm(made, block));
            let size = was.iter().map(|w| w * w).sum::<f32>();
            let apart = was.iter().zip(&is).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / size;
            assert!(apart.sqrt() < 0.01, "{name}, block {block}: {apart}");
        }
        let [ours, rounding] = [&scaled, &plain].map(|made| divergence(&folder, made));
        println!("checked: {name}: mean KL divergence {ours:.6}, rounded to nearest {rounding:.6}");
        assert!(ours < 0.005 && rounding < 0.005, "{name}: {ours} and {rounding}");
    }
}

/// What the matrix into a scan reads.
struct Watch(Vec<Array2<f32>>);

impl Observer for Watch {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        if input == SharedInput::Scan {
            self.0.push(x.to_owned());
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Heads and channels that stay of each block, by what the matrix makes of the calibration tokens: channels by the sum over
/// heads, then heads within their group.
fn kept(source: &Source, ids: &[Vec<u32>], [heads, groups]: [usize; 2]) -> Vec<Vec<usize>> {
    let config = source.raw_config();
    let [all, width] = ["num_heads", "head_dim"].map(|key| config[key].as_u64().unwrap() as usize);
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    let mut scratch = Scratch::default();
    let mut hidden = source.embedding().unwrap().embed_sequences(ids, 0, &mut scratch).unwrap();
    let each = |block: usize| {
        let block = source.block(block).unwrap();
        let mut watch = Watch(Vec::new());
        let run =
            block.forward_sequences(hidden.view_mut(), &lengths, Some(&mut watch), &mut scratch);
        run.unwrap();
        let weight = block.linears().next().unwrap().decode().unwrap().mapv(f64::from);
        let mut squares = vec![0.0; all * width];
        for x in &watch.0 {
            let made = x.mapv(f64::from).dot(&weight.t());
            for (channel, sum) in squares.iter_mut().enumerate() {
                *sum += made.column(all * width + channel).mapv(|v| v * v).sum();
            }
        }
        let top = |scores: Vec<(f64, usize)>, count: usize| {
            let mut order = scores;
            order.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut top: Vec<usize> = order.into_iter().take(count).map(|(_, at)| at).collect();
            top.sort_unstable();
            top
        };
        let of_channel = |c: usize| (0..all).map(|h| squares[h * width + c]).sum::<f64>();
        let channels = top((0..width).map(|c| (of_channel(c), c)).collect(), width / 2);
        let of_head = |h: usize| channels.iter().map(|c| squares[h * width + c]).sum::<f64>();
        let size = all / groups;
        let of_group = |g: usize| {
            top((g * size..(g + 1) * size).map(|h| (of_head(h), h)).collect(), heads / groups)
        };
        let stay: Vec<usize> = (0..groups).flat_map(of_group).collect();
        stay.iter().flat_map(|h| channels.iter().map(move |c| h * width + c)).collect()
    };
    (0..source.blocks()).map(each).collect()
}

fn logits(source: &Source, ids: &[u32]) -> Array2<f32> {
    let (model, mut scratch) = (source.decoder().unwrap(), Scratch::default());
    let hidden = model.hidden(ids, &mut scratch).unwrap();
    model.head().logits(hidden.view(), &mut scratch).unwrap()
}

/// What is left computes what the whole model computes whose other channels have a gate that is shut. Fails where heads are
/// ranked across groups, where any one tensor is cut otherwise, and where the norm behind the scan is not made good for.
#[test]
fn heads_of_every_group_go_and_the_rest_computes_the_same() {
    let Some(folder) = data::find("golden/models/mamba2") else { return };
    let parent = tempfile::tempdir().unwrap();
    let golden = open_model(&folder).unwrap();
    for weak in [false, true] {
        let path = |name: &str| parent.path().join(format!("{name}{weak}"));
        let mut tiny = Tiny::of(&golden);
        // What is added to a mean over fewer channels weighs less.
        tiny.config["layer_norm_epsilon"] = 1e-12.into();
        if weak {
            // All heads of the first group say little: across groups, none of them would stay.
            for block in 0..3 {
                let name = format!("backbone.layers.{block}.mixer.in_proj.weight");
                let (shape, values) = tiny.tensors.get_mut(&name).unwrap();
                values[64 * shape[1]..96 * shape[1]].iter_mut().for_each(|w| *w *= 0.05);
            }
        }
        let large = tiny.source(&path("large"));
        let corpus = corpus(&folder);
        let text = CalibrationText::new(corpus.clone()).with_length(24);
        let run = |line: &str, out: &Path| {
            Compressor::new(Recipe::parse(line).unwrap())
                .with_calibration(text.clone())
                .run(&large, out)
        };
        let line = "drop_scan_heads(heads=0.5, channels=0.5)";
        let report = run(line, &path("small")).unwrap();
        assert!(report.layers.iter().all(|layer| layer.fallback.is_none()), "{:?}", report.layers);
        let small = open_model(path("small")).unwrap();
        let raw = small.raw_config();
        assert_eq!((raw["num_heads"].as_u64(), raw["head_dim"].as_u64()), (Some(4), Some(4)));
        assert_eq!((raw["n_groups"].as_u64(), raw["expand"].as_f64()), (Some(2), Some(0.5)));
        assert!(
            raw.get("quantization_config").is_none() && report.bytes_after < report.bytes_before
        );

        // 64 channels of 8 heads; gates are the first rows.
        let cut = tensorpress::model::text::Limits::default();
        let ids = corpus.segments(&large, Default::default(), cut).unwrap();
        let ids: Vec<Vec<u32>> = ids.iter().map(|ids| ids[..ids.len().min(24)].to_vec()).collect();
        let kept = kept(&large, &ids, [4, 2]);
        let mut masked = tiny.clone();
        for (block, kept) in kept.iter().enumerate() {
            let name = format!("backbone.layers.{block}.mixer.in_proj.weight");
            let (shape, values) = masked.tensors.get_mut(&name).unwrap();
            let rows = values.chunks_exact_mut(shape[1]).take(64).enumerate();
            rows.filter(|(row, _)| !kept.contains(row)).for_each(|(_, row)| row.fill(0.0));
        }
        let masked = masked.source(&path("masked"));
        for ids in &ids {
            let [want, found, whole] = [&masked, &small, &large].map(|source| logits(source, ids));
            let far = |a: &Array2<f32>| {
                a.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            assert!(far(&found) < 2e-3 && far(&whole) > 0.05, "{} {}", far(&found), far(&whole));
        }
        // What comes behind sees the smaller layers; so does another of its kind, and the head's refit.
        let all =
            format!("{line} | drop_scan_heads(heads=0.5) | refit_head | rtn(bits=8, group=4)");
        let _ = run(&all, &path("all")).unwrap();
        let least = open_model(path("all")).unwrap();
        assert_eq!((least.raw_config()["num_heads"].as_u64(), least.trees().len()), (Some(2), 6));
        let far = divergence_of(&large, &least, &ids);
        assert!(far.is_finite());
    }
    let Some(first) = data::find("golden/models/mamba") else { return };
    let first = open_model(first).unwrap();
    let error = Compressor::new(Recipe::parse("drop_scan_heads").unwrap())
        .with_calibration(CalibrationText::new(corpus(&folder)).with_length(24))
        .run(&first, &parent.path().join("first"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("block 0 of Mamba has no heads"), "{error}");
}

/// The largest change of a logit.
fn divergence_of(one: &Source, other: &Source, ids: &[Vec<u32>]) -> f32 {
    let far = |ids: &Vec<u32>| {
        (logits(one, ids) - logits(other, ids)).iter().map(|d| d.abs()).fold(0.0, f32::max)
    };
    ids.iter().map(far).fold(0.0, f32::max)
}
