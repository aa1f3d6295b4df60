//! `tensorpress eval`

use std::path::Path;

use serde::Serialize;
use tensorpress::Result;
use tensorpress::bill::Bill;
use tensorpress::kvcache::KvRecipe;
use tensorpress::model::text::Corpus;
use tensorpress::model::{
    Decoder, Judged, Judgement, Passages, Reading, RepeatPrompts, Source, ThroughCache, compare,
    perplexity, recall,
};

use crate::args::Eval;
use crate::failure::{Failure, Outcome};
use crate::open::{Opened, open};
use crate::output::{bytes, print, print_json, say, table};
use crate::progress::judging;

/// What judging found, and what the model takes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verdict {
    pub(crate) perplexity: f64,
    pub(crate) reference_perplexity: Option<f64>,
    pub(crate) kld_mean: Option<f64>,
    pub(crate) kld_p99: Option<f64>,
    pub(crate) top1_agreement: Option<f64>,
    pub(crate) bits_per_weight: f64,
    pub(crate) file_bytes: u64,
    pub(crate) tokens: usize,
    /// With `--kv`.
    #[serde(flatten)]
    pub(crate) kv: Option<KvVerdict>,
}

/// What caches take, and what a model knows behind them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KvVerdict {
    /// Bytes of keys and values when texts ended, over their tokens.
    kv_bytes_per_token: f64,
    /// What the model itself gains by having read the same random tokens before, in nats a token.
    kv_recall_gain: f64,
    /// The share of it that is left; null if the model gains next to nothing.
    kv_recall: Option<f64>,
}

impl Verdict {
    pub(crate) fn new(judgement: &Judgement, bits_per_weight: f64, file_bytes: u64) -> Self {
        Self {
            perplexity: judgement.perplexity,
            reference_perplexity: judgement.reference_perplexity,
            kld_mean: judgement.kld_mean,
            kld_p99: judgement.kld_p99,
            top1_agreement: judgement.top1_agreement,
            bits_per_weight,
            file_bytes,
            tokens: judgement.tokens,
            kv: None,
        }
    }
}

/// The text to judge on: a file, or what the model brings along.
pub(crate) fn text_of(flag: &str, file: Option<&Path>, opened: &Opened) -> Outcome<Corpus> {
    match (file, &opened.texts) {
        (Some(file), _) => read(file),
        (None, Some(texts)) => {
            Ok(Corpus::from_text(texts.held_out, "demo/heldout.jsonl".as_ref())?)
        }
        (None, None) => {
            Err(Failure::Usage(format!("{flag} FILE is needed: only `demo` brings its own text")))
        }
    }
}

/// Reads texts, and says what a person should know of how they are read.
pub(crate) fn read(file: &Path) -> Outcome<Corpus> {
    let corpus = Corpus::read(file)?;
    if let Some(note) = corpus.note() {
        say!("{}: {note}", file.display());
    }
    Ok(corpus)
}

/// f32 weights up to this size are decoded once; larger models stay as they are stored.
const DECODED: u64 = 2 << 30;

/// The whole model, decoded if it is small.
pub(crate) fn decoder(source: &Source) -> Result<Decoder> {
    source.decoder()?.materialise_within(DECODED)
}

/// A recipe of `--kv`.
pub(crate) fn kv_recipe(text: &str) -> Outcome<KvRecipe> {
    text.parse().map_err(|e| Failure::of_argument("--kv", e))
}

/// Lets the model read random tokens again, behind the caches.
fn recalled(cached: &ThroughCache<'_>, args: &Eval) -> Result<KvVerdict> {
    let kv_bytes_per_token = cached.bytes_per_token();
    let (bar, tell) = judging("recall");
    let passages = Passages::default().with_count(args.kv_passages).with_length(args.kv_passage);
    let recall = recall(cached, passages, &tell)?;
    bar.finish_and_clear();
    Ok(KvVerdict { kv_bytes_per_token, kv_recall_gain: recall.gain, kv_recall: recall.share() })
}

pub(crate) fn run(args: &Eval) -> Outcome {
    let opened = open(&args.model, args.base.as_deref())?;
    let verdict = opened.unmoved(judge(args, &opened))?;
    if args.json { print_json(&verdict) } else { print(&describe(&verdict)) }
}

fn judge(args: &Eval, opened: &Opened) -> Outcome<Verdict> {
    let text = text_of("--text", args.text.as_deref(), opened)?;
    let source = &opened.source;
    source.need_head()?;
    let segments = text.segments(source, args.bos.into(), args.limits.into())?;
    let kv = args.kv.as_deref().map(kv_recipe).transpose()?;
    let mut model = decoder(source)?;
    // A model that reads ids has no words to ask with.
    if let (Some(_), Ok(tokenizer)) = (&kv, source.tokenizer()) {
        model = model.with_repeat_prompts(RepeatPrompts::of(&tokenizer)?);
    }
    let cached = match &kv {
        None => None,
        Some(recipe) => {
            let cached = ThroughCache::new(&model, recipe);
            let reading = Reading::default().with_prefix(args.kv_prefix).with_step(args.kv_step);
            let cached = cached.map_err(|e| Failure::of_argument("--kv", e))?;
            Some(cached.with_reading(reading))
        }
    };
    let judged: &dyn Judged = cached.as_ref().map_or(&model, |cached| cached);
    let (bar, tell) = judging("judging");
    let judgement = match &args.reference {
        None => perplexity(judged, &segments, &tell)?,
        Some(reference) => {
            let reference = open(reference, args.base.as_deref())?;
            let judge = || compare(&decoder(&reference.source)?, judged, &segments, &tell);
            reference.unmoved(judge().map_err(Failure::from))?
        }
    };
    bar.finish_and_clear();
    let kv = cached.as_ref().map(|cached| recalled(cached, args)).transpose()?;
    drop(model);
    let bill = Bill::of(source)?;
    Ok(Verdict { kv, ..Verdict::new(&judgement, bill.bits_per_weight, bill.file_bytes) })
}

fn describe(verdict: &Verdict) -> String {
    let mut rows = vec![vec!["perplexity".to_owned(), format!("{:.4}", verdict.perplexity)]];
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    row("reference perplexity", verdict.reference_perplexity.map(|v| format!("{v:.4}")));
    row("mean KL divergence", verdict.kld_mean.map(|v| format!("{v:.6}")));
    row("99th percentile", verdict.kld_p99.map(|v| format!("{v:.6}")));
    row("top-1 agreement", verdict.top1_agreement.map(|v| format!("{:.2} %", 100.0 * v)));
    row("bits per weight", Some(format!("{:.4}", verdict.bits_per_weight)));
    row("weight files", Some(bytes(verdict.file_bytes)));
    if let Some(kv) = &verdict.kv {
        row("keys and values", Some(format!("{:.1} bytes a token", kv.kv_bytes_per_token)));
        let gain = format!("of {:.3} nats a token", kv.kv_recall_gain);
        let share =
            kv.kv_recall.map_or("none".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        row("recall", Some(format!("{share} {gain}")));
    }
    row("predictions", Some(verdict.tokens.to_string()));
    table(&rows)
}
