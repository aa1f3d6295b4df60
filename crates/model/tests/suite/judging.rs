//! Reference figures of real models, and what judging guarantees.

use std::time::Instant;

use tensorpress_model::eval::{Reference, compare, perplexity};
use tensorpress_model::text::{self, Limits};
use tensorpress_model::{Source, embedded};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{DType, Registry, node::Dense};

use crate::common::open;

const QUIET: &(dyn Fn(usize, usize) + Sync) = &|_, _| {};

fn stories(source: &Source, max_segments: Option<usize>) -> Option<Vec<Vec<u32>>> {
    let file = data::find("data/text/tinystories_val_250stories.jsonl")?;
    let limits = Limits { max_segments, max_tokens: Some(400) };
    let text = text::read(&file).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    Some(text::segments(&text, &file, &tokenizer, source.config().context, limits).unwrap())
}

fn reproduces(model: &str, all: f64, predictions: usize, first_60: f64) {
    let Some(folder) = data::find(&format!("data/models/{model}")) else { return };
    let source = open(folder).unwrap();
    let decoder = source.decoder().unwrap().materialise().unwrap();
    let Some(segments) = stories(&source, None) else { return };
    let start = Instant::now();
    let judged = perplexity(&decoder, &segments, QUIET).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("checked: {model}, {} in {seconds:.2} s", judged.perplexity);
    assert_eq!(judged.tokens, predictions);
    assert!((judged.perplexity / all - 1.0).abs() < 0.002, "{}", judged.perplexity);
    let judged = perplexity(&decoder, &segments[..60], QUIET).unwrap();
    println!("checked: {model}, first 60 stories {}", judged.perplexity);
    assert!((judged.perplexity / first_60 - 1.0).abs() < 0.002, "{}", judged.perplexity);
}

#[test]
fn stories260k_reproduces_the_reference() {
    reproduces("stories260k", 3.560, 81_486, 3.621);
}

#[test]
fn stories3m_reproduces_the_reference() {
    reproduces("stories3m", 3.512, 45_243, 3.490);
}

#[test]
fn plain_text_is_judged_in_windows() {
    let Some(folder) = data::find("data/models/stories3m") else { return };
    let Some(file) = data::find("data/text/wikitext2_test.txt") else { return };
    let source = open(folder).unwrap();
    let (text, tokenizer) = (text::read(&file).unwrap(), source.tokenizer().unwrap());
    let start = Instant::now();
    let limits = Limits { max_segments: Some(8), max_tokens: None };
    let segments = text::segments(&text, &file, &tokenizer, 512, limits).unwrap();
    println!("checked: {} characters cut in {:?}", text.len(), start.elapsed());
    assert!(segments.len() == 8 && segments.iter().all(|s| s.len() == 512 && s[0] == 1));
    let model = source.decoder().unwrap().materialise().unwrap();
    let judged = perplexity(&model, &segments, QUIET).unwrap();
    assert_eq!(judged.tokens, 8 * 511);
    // Far from stories for children, and told so.
    assert!(judged.perplexity > 100.0, "{}", judged.perplexity);
}

fn demo() -> (Source, Vec<Vec<u32>>) {
    let source = Source::demo(&Registry::default()).unwrap();
    let limits = Limits { max_segments: Some(12), max_tokens: Some(200) };
    let tokenizer = source.tokenizer().unwrap();
    let file = "heldout.jsonl".as_ref();
    let segments = text::segments(embedded::HELD_OUT, file, &tokenizer, 512, limits).unwrap();
    (source, segments)
}

#[test]
fn a_model_agrees_with_itself() {
    let (source, segments) = demo();
    let model = source.decoder().unwrap();
    let judged = compare(&model, &model, &segments, QUIET).unwrap();
    assert_eq!(judged.kld_mean, Some(0.0));
    assert_eq!(judged.kld_p99, Some(0.0));
    assert_eq!(judged.top1_agreement, Some(1.0));
    assert_eq!(judged.reference_perplexity, Some(judged.perplexity));
    let alone = perplexity(&model, &segments, QUIET).unwrap();
    assert!((alone.perplexity / judged.perplexity - 1.0).abs() < 1e-9);
    assert_eq!((alone.tokens, alone.kld_mean), (judged.tokens, None));
}

#[test]
fn judging_is_deterministic_and_cached_references_change_nothing() {
    let (source, segments) = demo();
    let reference = source.decoder().unwrap().materialise().unwrap();
    let mut model = source.decoder().unwrap();
    for block in model.blocks_mut() {
        for linear in block.linears_mut() {
            // A coarse rounding, so that there is something to see.
            let coarse = linear.decode().unwrap().mapv(|w| (w * 16.0).round() / 16.0);
            linear.replace(Box::new(Dense::from_f32(coarse.view(), DType::F32).unwrap())).unwrap();
        }
    }
    let model = model.materialise().unwrap();
    let judge = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| compare(&reference, &model, &segments, QUIET).unwrap())
    };
    let one = judge(1);
    assert_eq!(one, judge(3));
    let kept = Reference::new(&reference, &segments, QUIET).unwrap();
    assert_eq!(one, kept.judge(&model, QUIET).unwrap());
    println!("{one:?}");
    assert!(one.kld_mean > Some(1e-4) && one.kld_p99 > one.kld_mean);
    assert!(one.top1_agreement < Some(1.0));
    let json = serde_json::to_value(&one).unwrap();
    for key in ["perplexity", "reference_perplexity", "kld_mean", "kld_p99", "top1_agreement"] {
        assert!(json[key].is_number(), "{key}");
    }
    assert_eq!(json["tokens"], one.tokens);
}
