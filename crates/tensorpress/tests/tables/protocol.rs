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
pub(crate) struct Row {
    pub judgement: Judgement,
    pub size: Size,
}

/// Exact bytes.
pub(crate) struct Size {
    /// Of the linear layers: all parts of the compressed ones, all others as they are stored.
    pub matrices: u64,
    /// Of the files of weights.
    pub files: u64,
    /// 8 x `matrices` over the number of weights the source's linear layers have.
    pub bits_per_weight: f64,
}

impl Size {
    /// Of a model made of `source`.
    pub fn of(made: &Source, source: &Source) -> Self {
        let bill = Bill::of(made).expect("counts");
        let plain = |name: &String| made.checkpoint().stored_bytes(name).unwrap_or(0);
        let linears = |model: &Source| -> Vec<_> {
            (0..model.blocks()).flat_map(|block| model.linears(block)).collect()
        };
        let left: u64 = linears(made).iter().map(|linear| plain(&linear.name)).sum();
        let matrices = bill.storage.bytes() + left;
        let sides = |shape: [usize; 2]| shape[0] * shape[1];
        let weights: usize = linears(source).iter().map(|linear| sides(linear.shape)).sum();
        let bits_per_weight = 8.0 * matrices as f64 / weights as f64;
        Self { matrices, files: bill.file_bytes, bits_per_weight }
    }
}

/// Compresses a model by each recipe, and judges it; nothing may fall back.
pub(crate) fn measure(folder: &Path, texts: &Path, recipes: &[String]) -> BTreeMap<String, Row> {
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
        let size = Size::of(&made, &source);
        let model = made.decoder().and_then(|d| d.materialise()).expect("a decoder");
        let judgement = reference.judge(&model, &|_, _| ()).expect("judged");
        (line.clone(), Row { judgement, size })
    };
    recipes.par_iter().map(one).collect()
}

/// The text of the protocol.
pub(crate) fn calibration(texts: &Path) -> CalibrationText {
    let text = text::read(&texts.join("tinystories_train_2MB_calib.txt")).expect("a text");
    CalibrationText::new(text)
}

/// Compresses a model; nothing may fall back.
pub(crate) fn compress(source: &Source, line: &str, text: &CalibrationText, out: &Path) -> Source {
    let report = Compressor::new(Recipe::parse(line).expect("a recipe"))
        .with_calibration(text.clone())
        .run(source, out)
        .expect("compresses");
    // Where no head may go FLAP says so, and where no block fits a row its type.
    let tells = ["flap", "ggml"].iter().any(|stage| line.starts_with(stage));
    let done = tells || report.layers.iter().all(|l| l.fallback.is_none());
    assert!(done, "{:?}", report.layers);
    Source::open(out, &registry()).expect("a model")
}
