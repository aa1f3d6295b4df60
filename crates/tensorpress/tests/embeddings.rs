//! Stores of embeddings and product quantisers on those of all-MiniLM-L6-v2: what their bytes find.

use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress::quant::embedding::{
    EmbeddingPrecision, Jpq, ProductCodes, ProductQuantizer, ProductSpec, Similarity, best_within,
    pareto, sweep,
};
use tensorpress::tensor::linalg::Par;
use tensorpress::tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::testing::data;

/// Passages, of which the beginnings are stored, and the other halves are the queries.
const PASSAGES: usize = 800;
const TRAINED: usize = 200;
const ASKED: usize = 100;

fn cut(text: &str, from: usize, to: usize) -> String {
    text.chars().skip(from).take(to - from).collect()
}

/// The share of queries whose passage is among the first ten.
fn found(
    quantizer: &ProductQuantizer,
    codes: &ProductCodes,
    queries: ArrayView2<'_, f32>,
    first: usize,
) -> f64 {
    let hit = |(i, query)| {
        let best = quantizer.search(query, codes, 10).expect("searches");
        best.iter().any(|(passage, _)| *passage == first + i)
    };
    let hits = queries.rows().into_iter().enumerate().filter(|asked| hit(*asked)).count();
    hits as f64 / queries.nrows() as f64
}

#[test]
#[ignore = "takes minutes: cargo xtask more tables"]
fn minilm() {
    let Some(folder) = data::minilm() else { return };
    let Some(text) = data::find("data/text/wikitext2_test.txt") else { return };
    let text = std::fs::read_to_string(text).expect("a text");
    let long: Vec<&str> =
        text.lines().filter(|line| line.chars().count() >= 480).take(PASSAGES).collect();
    assert_eq!(long.len(), PASSAGES);
    let source = open_model(&folder).expect("opens");
    let encoder = source.encoder().expect("an encoder").materialise().expect("floats");
    let tokenizer = source.tokenizer().expect("a tokenizer");
    let embed = |texts: Vec<String>| -> Array2<f32> {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        encoder.embed(&tokenizer, &texts).expect("embeds")
    };
    let passages = embed(long.iter().map(|line| cut(line, 0, 240)).collect());
    let asked = long.iter().take(TRAINED + ASKED);
    let queries = embed(asked.map(|line| cut(line, 240, 480)).collect());
    let held_out = queries.slice(s![TRAINED.., ..]);

    let dims = [None, Some(192), Some(96), Some(48)];
    let precisions = EmbeddingPrecision::ALL;
    let figures =
        sweep(passages.view(), held_out, &dims, &precisions, Similarity::Cosine, 10, Par::Rayon)
            .expect("sweeps");
    for figure in &figures {
        let (spec, bytes) = (figure.spec, figure.vector_bytes);
        println!(
            "{:?} {:?}: {bytes} bytes, recall {:.4}",
            spec.dims, spec.precision, figure.recall
        );
    }
    let of = |dims, precision| {
        let is = |f: &&tensorpress::quant::embedding::StoreFigure| {
            f.spec.dims == dims && f.spec.precision == precision
        };
        figures.iter().find(is).expect("swept").recall
    };
    assert!(of(None, EmbeddingPrecision::F16) > 0.99);
    assert!(of(None, EmbeddingPrecision::E4M3) > of(None, EmbeddingPrecision::E5M2));
    assert!(of(None, EmbeddingPrecision::Binary) < of(None, EmbeddingPrecision::E5M2));
    assert!(!pareto(&figures).is_empty() && best_within(&figures, 0).is_none());

    let relevant: Vec<Vec<usize>> = (0..TRAINED).map(|i| vec![i]).collect();
    let train = queries.slice(s![..TRAINED, ..]);
    for parts in [8, 16] {
        for rotations in [0, 10] {
            let spec = ProductSpec::new(parts, 64).with_rotations(rotations);
            let mut quantizer = spec.train(passages.view(), Par::Rayon).expect("trains");
            let codes = quantizer.encode(passages.view(), Par::Rayon).expect("encodes");
            let before = found(&quantizer, &codes, held_out, TRAINED);
            let losses = Jpq::default()
                .with_rounds(30, 0.1)
                .train(&mut quantizer, &codes, train, &relevant)
                .expect("learns");
            let after = found(&quantizer, &codes, held_out, TRAINED);
            println!(
                "{parts} bytes, {rotations} turns: passage found {before:.2}, trained {after:.2}; loss {:.4} to {:.4}",
                losses[0],
                losses[losses.len() - 1]
            );
            assert!(losses[losses.len() - 1] < losses[0]);
        }
    }
    let exact = |i: usize| {
        let scores = passages.dot(&held_out.row(i));
        let own = scores[TRAINED + i];
        scores.iter().filter(|score| **score > own).count() < 10
    };
    let exact = (0..ASKED).filter(|i| exact(*i)).count();
    println!("1536 bytes: passage found {:.2}", exact as f64 / ASKED as f64);
}

/// How near embeddings stay to those of the model as it was: coded grids at 3 bits before GPTQ at more.
#[test]
#[ignore = "takes minutes: cargo xtask more tables"]
fn minilm_compressed() {
    let Some(folder) = data::minilm() else { return };
    let Some(text) = data::find("data/text/wikitext2_test.txt") else { return };
    let text = std::fs::read_to_string(text).expect("a text");
    let long = text.lines().filter(|line| line.chars().count() >= 240);
    let long: Vec<String> = long.map(|line| cut(line, 0, 240)).collect();
    let passages: Vec<&str> = long.iter().map(String::as_str).take(ASKED).collect();
    let source = open_model(&folder).expect("opens");
    let tokenizer = source.tokenizer().expect("a tokenizer");
    let embed = |source: &Source| {
        let encoder = source.encoder().expect("an encoder").materialise().expect("floats");
        encoder.embed(&tokenizer, &passages).expect("embeds")
    };
    let exact = embed(&source);
    let out = tempfile::tempdir().expect("a folder");
    let cosine = |recipe: &str| {
        let job = Compressor::new(Recipe::parse(recipe).expect("a recipe")).with_force(true);
        // None of it is judged.
        let calibration = CalibrationText::new(long[ASKED..].join("\n")).with_chars(200_000);
        let report = job
            .with_calibration(calibration)
            .run(&source, &out.path().join("out"))
            .expect("compresses");
        let made = embed(&open_model(out.path().join("out")).expect("opens"));
        let mean = (&exact * &made).sum() / exact.nrows() as f32;
        println!("{recipe}: {:.3} bits, mean cosine {mean:.5}", report.bits_per_weight);
        mean
    };
    for (gptq, coded) in [
        ("gptq(bits=3, group=64, clip=mse)", "watersic(bits=3) | coded(rans)"),
        ("gptq(bits=4, group=64, clip=mse)", "watersic(bits=4) | coded(rans)"),
        ("drift | gptq(bits=3, group=64, clip=mse)", "drift | watersic(bits=3) | coded(rans)"),
    ] {
        let (gptq, coded) = (cosine(gptq), cosine(coded));
        assert!(coded > gptq, "{coded} against {gptq}");
    }
}
