//! The judging protocol of the tables: calibration is the default (64 windows of 255 tokens after BOS, from the first
//! 120,000 characters); judged are the first 60 stories, each alone after BOS, its first 400 tokens.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use tensorpress::model::text::{self, Limits};
use tensorpress::model::{Judgement, Reference};
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;

/// What a recipe makes of a model.
pub struct Row {
    pub judgement: Judgement,
    pub bill: Bill,
}

/// Compresses a model by each recipe, and judges it; nothing may fall back.
pub fn measure(folder: &Path, texts: &Path, recipes: &[String]) -> BTreeMap<String, Row> {
    let source = Source::open(folder, &registry()).expect("a model");
    let read = |name: &str| text::read(&texts.join(name)).expect("a text");
    let stories = "tinystories_val_250stories.jsonl";
    let limits = Limits { max_segments: Some(60), max_tokens: Some(400) };
    let tokenizer = source.tokenizer().expect("a tokenizer");
    let context = source.config().context;
    let segments = text::segments(&read(stories), stories.as_ref(), &tokenizer, context, limits)
        .expect("stories");
    let exact = source.decoder().and_then(|d| d.materialise()).expect("a decoder");
    let reference = Reference::new(&exact, &segments, &|_, _| ()).expect("a reference");
    let calibration = calibration(texts);
    let one = |line: &String| {
        let out = tempfile::tempdir().expect("a folder");
        let out = out.path().join("out");
        let made = compress(&source, line, &calibration, &out);
        let bill = Bill::of(&made).expect("counts");
        let model = made.decoder().and_then(|d| d.materialise()).expect("a decoder");
        let judgement = reference.judge(&model, &|_, _| ()).expect("judged");
        (line.clone(), Row { judgement, bill })
    };
    recipes.par_iter().map(one).collect()
}

/// The text of the protocol.
pub fn calibration(texts: &Path) -> CalibrationText {
    let text = text::read(&texts.join("tinystories_train_2MB_calib.txt")).expect("a text");
    CalibrationText::new(text)
}

/// Compresses a model; nothing may fall back.
pub fn compress(source: &Source, line: &str, text: &CalibrationText, out: &Path) -> Source {
    let report = Compressor::new(Recipe::parse(line).expect("a recipe"))
        .with_calibration(text.clone())
        .run(source, out)
        .expect("compresses");
    assert!(report.layers.iter().all(|l| l.fallback.is_none()), "{:?}", report.layers);
    Source::open(out, &registry()).expect("a model")
}
