//! The demo's held-out text, and how far a model is from its source on it.

use std::path::Path;

use tensorpress::model::embedded;
use tensorpress::model::text::{Corpus, Limits};
use tensorpress::prelude::*;

/// Segments of the demo's held-out text.
pub fn held_out(source: &Source) -> Vec<Vec<u32>> {
    let corpus = Corpus::from_text(embedded::HELD_OUT, Path::new("heldout.jsonl")).expect("a text");
    let limits = Limits { max_segments: Some(24), max_tokens: None };
    corpus.segments(source, Default::default(), limits).expect("segments")
}

/// Mean KL divergence of the model in a folder.
pub fn divergence(source: &Source, out: &Path, segments: &[Vec<u32>]) -> f64 {
    let read = |source: &Source| source.decoder().and_then(|d| d.materialise()).expect("a decoder");
    let made = tensorpress::open_model(out).expect("a model");
    let judged = tensorpress::model::compare(&read(source), &read(&made), segments, &|_, _| {});
    judged.expect("judged").kld_mean.expect("a reference")
}
