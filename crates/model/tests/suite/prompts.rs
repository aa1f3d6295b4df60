//! Prompts made shorter by the models of this crate.

use std::ops::Range;

use tensorpress_model::{LanguageModel, SentenceSimilarity, Source, Tokenizer, embedded};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Registry, Result, Scratch};
use tensorpress_tokencomp::text::{
    Bm25, Fused, QuestionLikelihood, Relevance, Squeeze, Surprise, TokenCount, TokenLogProbs,
    WordScore,
};

use crate::common::open;

const FACTS: &str = include_str!("../../../tokencomp/tests/data/facts.txt");
/// Written without knowledge of the method, and unchanged since.
const BLIND: &str = include_str!("../../../tokencomp/tests/data/facts_blind.txt");

struct Case {
    question: &'static str,
    fact: &'static str,
    answer: &'static str,
    context: String,
}

/// The contexts with their facts, planted after sentences from the first to the last.
fn cases(facts: &'static str) -> Vec<Case> {
    let case = |(i, text): (usize, &'static str)| {
        let line = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).expect("a line");
        let (fact, answer, context) = (line("F: "), line("A: "), line("C: "));
        let ends: Vec<usize> = context.match_indices(". ").map(|(at, _)| at + 2).collect();
        let (before, after) = context.split_at(ends[i * 7 % ends.len()]);
        let question = text.lines().next().expect("a question");
        Case { question, fact, answer, context: format!("{before}{fact} {after}") }
    };
    facts.split("\nQ: ").skip(1).enumerate().map(case).collect()
}

/// The beginning of a text, cut between words.
fn truncate(tokenizer: &Tokenizer, text: &str, budget: usize) -> String {
    let mut short = text;
    while tokenizer.count(short).unwrap() > budget {
        short = short.trim_end().rsplit_once(char::is_whitespace).map_or("", |(before, _)| before);
    }
    short.to_owned()
}

/// Draws without regard to anything: a baseline.
#[derive(Debug)]
struct Chance(u64);

impl Relevance for Chance {
    fn relevance(&self, _: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let draws = SplitMix::new(self.0);
        Ok((0..passages.len()).map(|i| (draws.at(i as u64) >> 40) as f32).collect())
    }
}

impl WordScore for Chance {
    fn score(&self, _: &str, words: &[Range<usize>]) -> Result<Vec<f32>> {
        let draws = SplitMix::new(self.0);
        Ok(words.iter().map(|w| (draws.at(w.start as u64) >> 40) as f32).collect())
    }
}

/// How many answers, and whole facts, survive at a quarter of the tokens: by method, the best first.
fn survivors(what: &str, cases: &[Case], demo: bool) -> Option<Vec<[usize; 2]>> {
    let folder = data::minilm()?;
    let source = open(&folder).unwrap();
    let (tokenizer, encoder) = (source.tokenizer().unwrap(), source.encoder().unwrap());
    let encoder = encoder.materialise().unwrap();
    let source = Source::demo(&Registry::default()).unwrap();
    let (decoder, demo_tokenizer) =
        (source.decoder().unwrap().materialise().unwrap(), source.tokenizer().unwrap());
    let model = LanguageModel::new(&decoder, &demo_tokenizer).unwrap();

    let (similarity, bm25) = (SentenceSimilarity::new(&encoder, &tokenizer), Bm25::new());
    let fused = Fused::new().with(&similarity, 1.0).with(&bm25, 0.25);
    let (likelihood, surprise) = (QuestionLikelihood::new(&model), Surprise::new(&model));
    let base = Squeeze::new(&tokenizer);
    let mut names =
        vec!["MiniLM + BM25", "truncation", "random sentences", "random words", "MiniLM", "BM25"];
    if demo {
        names.extend(["demo model, question", "demo model, no question"]);
    }
    let mut survived = vec![[0; 2]; names.len()];
    for (i, case) in cases.iter().enumerate() {
        let budget = tokenizer.count(&case.context).unwrap() / 4;
        let chance = Chance(i as u64);
        let ask = |squeeze: Squeeze<'_>| {
            let short = squeeze.squeeze(&case.context, Some(case.question), budget).unwrap();
            assert_eq!(short.tokens, tokenizer.count(&short.text).unwrap());
            assert!(short.tokens <= budget && 4 * short.tokens <= short.tokens_before);
            short.text
        };
        let words = base.clone().with_words(&chance).with_whole(0.0).unwrap();
        let mut texts = vec![
            ask(base.clone().with_relevance(&fused)),
            truncate(&tokenizer, &case.context, budget),
            ask(base.clone().with_relevance(&chance)),
            ask(words.with_coarse(9.0).unwrap()),
            ask(base.clone().with_relevance(&similarity)),
            ask(base.clone().with_relevance(&bm25)),
        ];
        if demo {
            let unasked = base.clone().with_words(&surprise);
            texts.extend([
                ask(base.clone().with_relevance(&likelihood).with_words(&surprise)),
                unasked.squeeze(&case.context, None, budget).unwrap().text,
            ]);
        }
        if !texts[0].contains(case.answer) {
            println!("lost: {}", case.question);
        }
        for (text, survived) in texts.iter().zip(&mut survived) {
            survived[0] += usize::from(text.contains(case.answer));
            survived[1] += usize::from(text.contains(case.fact));
        }
    }
    println!("{what}: {} contexts at a quarter of their tokens", cases.len());
    for (name, [answer, fact]) in names.iter().zip(&survived) {
        println!("{name:24} answer {answer:2} of {}, whole fact {fact:2}", cases.len());
    }
    Some(survived)
}

#[test]
fn facts_survive_a_question() {
    let cases = cases(FACTS);
    assert_eq!(cases.len(), 40);
    let Some(survived) = survivors("facts", &cases, true) else { return };
    let best = survived[0][0];
    assert!(10 * best >= 9 * cases.len(), "{best} answers survive");
    assert!(survived[1..4].iter().all(|[answer, _]| *answer < best));
}

#[test]
fn facts_of_a_stranger_survive_a_question() {
    let cases = cases(BLIND);
    assert_eq!(cases.len(), 80);
    let Some(survived) = survivors("blind facts", &cases, false) else { return };
    let best = survived[0][0];
    assert!(survived[1..4].iter().all(|[answer, _]| 2 * *answer < best), "{survived:?}");
}

#[test]
fn log_probabilities_are_the_models() {
    let source = Source::demo(&Registry::default()).unwrap();
    let (decoder, tokenizer) =
        (source.decoder().unwrap().materialise().unwrap(), source.tokenizer().unwrap());
    let model = LanguageModel::new(&decoder, &tokenizer).unwrap();
    let text = &embedded::CALIBRATION[..4000];
    let tokens = model.log_probs("", text).unwrap();
    // Windows overlap by half, so that each token sees at least 256 before it: none is far from the exact value.
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokens.len() + 1, ids.len());
    assert!(ids.len() > 2 * decoder.config().context, "several windows");
    let context = decoder.config().context;
    for (row, (bytes, log_prob)) in tokens.iter().enumerate().step_by(97) {
        assert!(bytes.end <= text.len() && bytes.start <= bytes.end);
        let exact = |from: usize| {
            let logits = decoder.hidden(&ids[from..=row], &mut Scratch::new(Par::Seq)).unwrap();
            let logits = decoder.head().logits(logits.view(), &mut Scratch::new(Par::Seq)).unwrap();
            let logits = logits.row(row - from);
            let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            f64::from(logits[ids[row + 1] as usize]) - sum.ln()
        };
        if row < context / 2 {
            assert!((exact(0) - f64::from(*log_prob)).abs() < 1e-3, "{row}");
        }
        assert!(log_prob.is_finite() && *log_prob < 0.0);
    }
    // Context matters, and one that is too long is forgotten from its beginning.
    let mean = |context: &str| {
        let tokens = model.log_probs(context, "They were happy with their big red ball.").unwrap();
        tokens.iter().map(|(_, p)| p).sum::<f32>() / tokens.len() as f32
    };
    assert!(mean("Tom and Sue got a big red ball.") > mean(""));
    assert!(mean(&(text.repeat(3) + " Tom and Sue got a big red ball.")).is_finite());
    assert!(model.log_probs("context", "").unwrap().is_empty());
}
