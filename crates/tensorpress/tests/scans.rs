//! State-space models through the pipeline.

use std::path::Path;

use tensorpress::model::text::Corpus;
use tensorpress::model::{Reads, compare};
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, Tensor};

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
