//! Every golden model through the pipeline: compressed by methods of each kind, read back, and judged.

use std::path::{Path, PathBuf};

use tensorpress::model::text::Corpus;
use tensorpress::model::{Encoder, Source, compare};
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, Scratch};

/// The golden folders, sorted.
fn folders() -> Vec<(String, PathBuf)> {
    let Some(models) = data::find("golden/models") else { return Vec::new() };
    let entries = std::fs::read_dir(models).expect("a folder").map(|e| e.expect("an entry").path());
    let name = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), path);
    let mut all: Vec<_> = entries.filter(|path| path.is_dir()).map(name).collect();
    // MiniLM has no weights here.
    all.retain(|(name, _)| name != "minilm");
    all.sort();
    all
}

/// Token ids of a folder; of images none.
fn ids(folder: &Path) -> Vec<Vec<u32>> {
    let path = folder.join("expected.safetensors");
    let expected = Checkpoint::open(path).expect("opens");
    let Ok(tensor) = expected.tensor("ids") else { return Vec::new() };
    let values = tensor.bytes().as_chunks::<8>().0.iter();
    let values: Vec<u32> = values.map(|b| i64::from_le_bytes(*b) as u32).collect();
    values.chunks(tensorpress::tensor::Tensor::shape(&tensor)[1]).map(<[u32]>::to_vec).collect()
}

/// A model's own token ids and images, which need no tokenizer.
fn corpus(folder: &Path) -> Corpus {
    Corpus::read(&folder.join("expected.safetensors")).expect("token ids")
}

fn calibration(folder: &Path) -> CalibrationText {
    CalibrationText::new(corpus(folder)).with_length(24)
}

/// Logits of decoders, last hidden states of encoders, of two towers both.
fn outputs(source: &Source, folder: &Path) -> Array2<f32> {
    let (mut scratch, ids) = (Scratch::default(), ids(folder));
    let ids = ids.first().map(Vec::as_slice).unwrap_or_default();
    let (mask, types) = (vec![1; ids.len()], vec![0; ids.len()]);
    if source.config().images.is_some() {
        let images = corpus(folder).images(source, 1).expect("images");
        let image = images.index_axis(Axis(0), 0);
        let see = |encoder: &Encoder, scratch: &mut Scratch| {
            encoder.image_hidden_state(image, scratch).expect("runs")
        };
        if source.config().towers.is_none() {
            return see(&source.encoder().expect("an encoder"), &mut scratch);
        }
        let towers = source.towers().expect("two towers");
        let seen = see(towers.images(), &mut scratch);
        let read = towers.texts().last_hidden_state(ids, &mask, &types, &mut scratch);
        return concatenate(Axis(0), &[read.expect("runs").view(), seen.view()]).expect("a width");
    }
    if source.config().architecture.is_decoder() {
        let model = source.decoder().expect("a decoder");
        let hidden = model.hidden(ids, &mut scratch).expect("runs");
        return model.head().logits(hidden.view(), &mut scratch).expect("logits");
    }
    let encoder = source.encoder().expect("an encoder");
    encoder.last_hidden_state(ids, &mask, &types, &mut scratch).expect("runs")
}

fn has_head(folder: &Path) -> bool {
    let expected = Checkpoint::open(folder.join("expected.safetensors")).expect("opens");
    let source = open_model(folder).expect("opens");
    source.config().architecture.is_decoder() && expected.contains("logits")
}

#[test]
fn every_golden_model_is_compressed_read_back_and_judged() {
    let parent = tempfile::tempdir().expect("a folder");
    let (mut checked, mut unseen) = (0, 0);
    for (name, folder) in folders() {
        let source = open_model(&folder).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut errors = Vec::new();
        for line in
            ["rtn(bits=4, group=16)", "gptq(bits=4, group=16)", "wanda", "svd_llm(ratio=0.9)"]
        {
            let out = parent.path().join(format!("{name}-{checked}"));
            let report = Compressor::new(Recipe::parse(line).expect("a recipe"))
                .with_calibration(calibration(&folder))
                .run(&source, &out)
                .unwrap_or_else(|e| panic!("{name}, {line}: {e}"));
            let linears: usize = (0..source.blocks()).map(|b| source.linears(b).len()).sum();
            assert_eq!(report.layers.len(), linears, "{name}, {line}");
            unseen += report.layers.iter().filter(|layer| layer.fallback.is_some()).count();
            let error: f64 = report.layers.iter().filter_map(|layer| layer.error).sum();
            errors.push(error);
            let again = open_model(&out).unwrap_or_else(|e| panic!("{name}, {line}: {e}"));
            assert_eq!(again.trees().len(), linears, "{name}, {line}");
            let (was, is) = (outputs(&source, &folder), outputs(&again, &folder));
            let size = was.iter().map(|x| x * x).sum::<f32>();
            let apart = was.iter().zip(&is).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / size;
            assert!(apart.is_finite() && apart > 0.0 && apart < 2.0, "{name}, {line}: {apart}");
            if has_head(&folder) {
                let (was, is) = (source.decoder().expect("it"), again.decoder().expect("it"));
                let judged = compare(&was, &is, &ids(&folder), &|_, _| {}).expect("judged");
                let kld = judged.kld_mean.expect("a reference");
                assert!(kld.is_finite() && kld > 0.0, "{name}, {line}: {kld}");
                println!("checked: {name}, {line}: mean KL divergence {kld:.5}");
            }
            checked += 1;
        }
        assert!(
            errors[1] <= errors[0] * 1.001,
            "{name}: gptq {} against rtn {}",
            errors[1],
            errors[0]
        );
    }
    println!("checked: {checked} runs of golden models, {unseen} layers fell back");
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let parent = tempfile::tempdir().expect("a folder");
    for (name, folder) in folders() {
        let source = open_model(&folder).expect("opens");
        let out = parent.path().join(&name);
        let done = Compressor::new(Recipe::parse("flap(sparsity=0.2)").expect("a recipe"))
            .with_calibration(calibration(&folder))
            .run(&source, &out);
        match done {
            Ok(_) => {
                assert!(source.config().architecture.is_editable(), "{name}");
                assert!(open_model(&out).is_ok(), "{name}");
            }
            Err(error) => {
                assert!(!source.config().architecture.is_editable(), "{name}: {error}");
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
                assert!(!out.exists(), "{name}");
            }
        }
    }
}
