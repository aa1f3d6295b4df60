//! Importance matrices of our own statistics.

use tensorpress::ErrorKind;
use tensorpress::formats::imatrix::Imatrix;
use tensorpress::model::embedded::CALIBRATION;
use tensorpress::model::text::Corpus;
use tensorpress::pipeline::{CalibrationText, Convert, Importance};
use tensorpress::prelude::*;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Scratch, Tensor};

use super::{distance, folders, outputs};

fn text() -> CalibrationText {
    CalibrationText::new(CALIBRATION).with_windows(5).with_length(48)
}

fn close(a: &[f32], b: &[f64]) -> bool {
    let near = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 1e-4 * b.abs() + 1e-9;
    a.len() == b.len() && a.iter().zip(b).all(near)
}

/// What the first block's attention reads is known by hand: embeddings over their root mean square, times the norm.
#[test]
fn sums_of_squares_are_those_of_the_inputs() {
    let source = Source::demo(&registry()).expect("opens");
    let made = Importance::new(text()).run(&source).expect("runs");
    let ids = text().text.windows(
        &source,
        text().bos,
        tensorpress::model::text::Windows { chars: 120_000, windows: 5, length: 48 },
    );
    let embedding = source.embedding().expect("an embedding");
    let norm = source.checkpoint().tensor("model.layers.0.input_layernorm.weight").unwrap();
    let norm = norm.to_matrix().unwrap().into_raw_vec_and_offset().0;
    let eps = source.raw_config()["rms_norm_eps"].as_f64().unwrap_or(1e-5);
    let mut sums = vec![0.0f64; norm.len()];
    let mut tokens = 0;
    let mut scratch = Scratch::default();
    for window in ids.expect("windows") {
        for row in embedding.embed(&window, &mut scratch).unwrap().rows() {
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64;
            for ((sum, v), n) in sums.iter_mut().zip(row).zip(&norm) {
                *sum += (f64::from(*v) * f64::from(*n)).powi(2) / (mean + eps);
            }
            tokens += 1;
        }
    }
    for part in ["attn_q", "attn_k", "attn_v"] {
        let squares = &made.matrices[&format!("blk.0.{part}.weight")];
        assert_eq!(squares.counts, [tokens as f32]);
        assert!(close(&squares.sums, &sums), "{part}");
    }
    // One for each matrix of the blocks, of its width; those that share an input are alike.
    assert_eq!(made.matrices.len(), 7 * source.blocks());
    assert_eq!(made.chunks, 5);
    for block in 0..source.blocks() {
        let of = |part: &str| &made.matrices[&format!("blk.{block}.{part}.weight")];
        assert_eq!(of("ffn_gate"), of("ffn_up"));
        let down =
            decode(&*source.weight(&format!("model.layers.{block}.mlp.down_proj.weight")).unwrap());
        assert_eq!(of("ffn_down").inputs(), down.unwrap().ncols());
        assert!(of("ffn_down").sums.iter().all(|sum| *sum >= 0.0));
    }
    // Both forms keep it.
    assert_eq!(Imatrix::read(made.write().unwrap()).unwrap(), made);
    let old = Imatrix::read(made.write_old().unwrap()).unwrap();
    for (name, squares) in &made.matrices {
        let (a, b) = (squares.importance(0).unwrap(), old.matrices[name].importance(0).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs()), "{name}");
    }
}

/// It is for what it is for: outputs come nearer, and the types that need it are made.
#[test]
fn importance_serves_the_types() {
    let parent = tempfile::tempdir().expect("a folder");
    let Some(model) = data::find("data/models/stories3m") else { return };
    let source = open_model(model).expect("opens");
    let ids: Vec<u32> = (1..40).collect();
    let before = outputs(&source, &ids);
    let file = |to: &str, text: Option<CalibrationText>| {
        let out = parent.path().join(format!("{to}-{}.gguf", text.is_some()));
        let mut job = Convert::new(to.parse().unwrap());
        if let Some(text) = text {
            job = job.with_calibration(text);
        }
        job.run(&source, &out)
            .map(|_| distance(&before, &outputs(&open_model(&out).unwrap(), &ids)))
    };
    for to in ["gguf(IQ2_XXS)", "gguf(IQ2_XS)", "gguf(IQ1_S)"] {
        assert_eq!(file(to, None).unwrap_err().kind(), ErrorKind::MissingCalibration, "{to}");
        assert!(file(to, Some(text())).expect("made").is_finite(), "{to}");
    }
    let (mut better, types) = (0, ["gguf(Q2_K)", "gguf(Q3_K)", "gguf(Q4_K)", "gguf(IQ3_S)"]);
    for to in types {
        let (without, with) = (file(to, None).unwrap(), file(to, Some(text())).unwrap());
        println!("{to}: {without:.4} without, {with:.4} with importance");
        better += usize::from(with < without);
    }
    assert!(better >= 3, "{better} of {}", types.len());
}

/// Experts: each has what came to it, and all of them what the router sent.
#[test]
fn experts_are_counted_apart() {
    let mut checked = 0;
    for (name, folder) in folders() {
        let source = open_model(&folder).expect("opens");
        if !source.config().architecture.is_decoder() {
            continue;
        }
        let ids = "{\"ids\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 1, 2]}\n";
        let text = CalibrationText::new(Corpus::from_text(ids, "ids".as_ref()).expect("ids"));
        let made = Importance::new(text.with_length(12)).run(&source);
        let made = made.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!made.matrices.is_empty(), "{name}");
        for (matrix, squares) in &made.matrices {
            let all: f32 = squares.counts.iter().sum();
            if matrix.contains("_exps") {
                let config = source.raw_config();
                let top = config["num_experts_per_tok"].as_f64().expect("how many") as f32;
                assert_eq!(all, 12.0 * top, "{name}: {matrix}");
                assert!(squares.counts.len() > 1, "{name}: {matrix}");
                checked += 1;
            } else {
                assert_eq!(squares.counts, [12.0], "{name}: {matrix}");
            }
        }
    }
    assert!(checked > 0 || data::shared().is_none());
}

/// Where nothing is quantised by it, it is refused, not passed over.
#[test]
fn nobody_is_given_what_he_does_not_use() {
    let parent = tempfile::tempdir().expect("a folder");
    let source = Source::demo(&registry()).expect("opens");
    for to in ["gguf", "gptq", "tensorpress", "safetensors"] {
        let out = parent.path().join(to);
        let given = Convert::new(to.parse().unwrap()).with_importance(Imatrix::default());
        let made = Convert::new(to.parse().unwrap()).with_calibration(text());
        for job in [given, made] {
            let error = job.with_requantize(true).run(&source, &out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{to}: {error}");
            assert!(error.to_string().contains("gguf(TYPE)") && !out.exists(), "{to}: {error}");
        }
    }
}

#[test]
fn what_has_no_names_is_refused() {
    let Some(models) = data::find("golden/models") else { return };
    for entry in std::fs::read_dir(models).unwrap() {
        let path = entry.unwrap().path();
        let Ok(source) = open_model(&path) else { continue };
        let kind = source.raw_config()["model_type"].as_str().unwrap_or_default().to_owned();
        if ["gpt2", "opt", "bloom", "falcon"].contains(&kind.as_str()) {
            let error = Importance::new(text()).run(&source).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{kind}: {error}");
        }
    }
}
