//! LLMLingua-2 from text to text: the official answers, and what holds for every text and rate.

use std::cell::Cell;
use std::ops::Range;

use proptest::prelude::*;
use serde_json::Value;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, Error, ErrorKind, Result, Tensor};
use tensorpress_tokencomp::PromptModels;
use tensorpress_tokencomp::text::{
    KeepProbability, Labelling, LlmLingua2, Piece, PromptRecipe, TokenCount, WordProbability,
};

/// Counts one token a call: the golden labels count each word once.
#[derive(Debug)]
struct One;

impl TokenCount for One {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(usize::from(!text.is_empty()))
    }
}

/// A classifier that says what the stored one said of these texts, and knows the pieces of a text made of them.
#[derive(Debug, Clone, Default)]
struct Stored(Vec<(String, Vec<Piece>)>);

impl KeepProbability for Stored {
    fn keep_probabilities(&self, text: &str) -> Result<Vec<Piece>> {
        let known = self.0.iter().find(|(known, _)| known.trim() == text);
        let (known, pieces) = known.ok_or_else(|| Error::invalid(format!("not stored: {text}")))?;
        let before = known.len() - known.trim_start().len();
        Ok(pieces.iter().map(|(at, p)| (at.start - before..at.end - before, *p)).collect())
    }

    fn pieces(&self, text: &str) -> Result<Vec<Range<usize>>> {
        let mut found = Vec::new();
        for (known, pieces) in &self.0 {
            let Some(start) = text.find(known.trim()) else { continue };
            let before = known.len() - known.trim_start().len();
            let at = |(at, _): &Piece| at.start + start - before..at.end + start - before;
            found.extend(pieces.iter().map(at));
        }
        Ok(found)
    }
}

/// Where WordPiece tokens of lower case stand in a text.
fn pieces(text: &str, tokens: &Value, probabilities: &[f32]) -> Vec<Piece> {
    let mut at = 0;
    let tokens = tokens.as_array().expect("tokens").iter().zip(probabilities);
    let mut found = Vec::new();
    for (token, probability) in tokens {
        let token = token.as_str().expect("a token");
        if matches!(token, "[CLS]" | "[SEP]") {
            // The text speaks of them too.
            let rest = text[at..].trim_start();
            at = text.len() - rest.strip_prefix(token).unwrap_or(rest).len();
            continue;
        }
        at += text[at..].len() - text[at..].trim_start().len();
        let end = at + token.trim_start_matches("##").len();
        assert_eq!(text[at..end].to_lowercase(), token.trim_start_matches("##"));
        found.push((at..end, *probability));
        at = end;
    }
    assert!(text[at..].trim().is_empty());
    found
}

/// Without spaces and capitals: the official text is spaced and written by its tokenizer.
fn bare(text: &str) -> String {
    text.split_whitespace().collect::<String>().to_lowercase()
}

#[test]
fn texts_are_the_official_ones() {
    let (Some(json), Some(values)) =
        (data::find("golden/kv/llmlingua2.json"), data::find("golden/kv/llmlingua2.safetensors"))
    else {
        return;
    };
    let json: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let file = Checkpoint::open(values).unwrap();
    let mut cases = Vec::new();
    for case in json["cases"].as_array().expect("cases") {
        let options = &case["kw"];
        let mut labelling = Labelling::new(options["rate"].as_f64().unwrap()).unwrap();
        for forced in options["force_tokens"].as_array().into_iter().flatten() {
            labelling.forced.push(forced.as_str().unwrap().to_owned());
        }
        labelling.digits = options["force_reserve_digit"] == true;
        labelling.drop_consecutive = options["drop_consecutive"] == true;
        if options["token_to_word"] == "first" {
            labelling.probability = WordProbability::First;
        }
        let text = case["text"].as_str().expect("a text").to_owned();
        let name = format!("{}.keep_prob", case["i"]);
        let probabilities = file.tensor(&name).unwrap().to_matrix().unwrap();
        let pieces = pieces(&text, &case["tokens"], probabilities.as_slice().unwrap());
        let official = bare(case["compressed"].as_str().expect("a text"));
        let classifier = Stored(vec![(text.clone(), pieces)]);
        let short = LlmLingua2::new(&classifier, &One, labelling.clone()).compress(&text).unwrap();
        assert_eq!(bare(&short.text), official, "{options}");
        cases.push((labelling, text, classifier, official));
    }
    assert_eq!(cases.len(), 10);
    // Two texts as one, in chunks that the first just fits: the classifier is asked about each alone.
    let (first, second) = cases.split_at(5);
    for ((labelling, one, stored, official), (_, other, more, official_more)) in
        first.iter().zip(second)
    {
        let both = Stored([&stored.0[..], &more.0].concat());
        let ours = LlmLingua2::new(&both, &One, labelling.clone()).with_chunk(292).unwrap();
        let short = ours.compress(&format!("{one}\n\n{other}")).unwrap();
        assert_eq!(bare(&short.text), format!("{official}{official_more}"), "{labelling:?}");
    }
    println!("checked: llmlingua2, {} texts, 5 pairs in chunks", cases.len());
}

/// A classifier of pieces of at most three small letters that remembers how many pieces it was given, at most and how
/// often.
#[derive(Debug, Default)]
struct Threes {
    seed: u64,
    most: Cell<usize>,
    calls: Cell<usize>,
}

impl KeepProbability for Threes {
    fn keep_probabilities(&self, text: &str) -> Result<Vec<Piece>> {
        let pieces = self.pieces(text)?;
        self.most.set(pieces.len().max(self.most.get()));
        self.calls.set(self.calls.get() + 1);
        let random = SplitMix::new(self.seed + text.len() as u64);
        let value = |i: usize| (random.at(i as u64) >> 40) as f32 / (1 << 24) as f32;
        Ok(pieces.into_iter().enumerate().map(|(i, at)| (at, value(i))).collect())
    }

    fn pieces(&self, text: &str) -> Result<Vec<Range<usize>>> {
        let small = |piece: &str| piece.bytes().all(|b| b.is_ascii_lowercase());
        let mut found: Vec<Range<usize>> = Vec::new();
        for (at, c) in text.char_indices().filter(|(_, c)| !c.is_whitespace()) {
            let end = at + c.len_utf8();
            match found.last_mut() {
                Some(last) if last.end == at && last.len() < 3 && small(&text[last.start..end]) => {
                    last.end = end;
                }
                _ => found.push(at..end),
            }
        }
        Ok(found)
    }
}

/// Tokens are words, as the rate is about them.
#[derive(Debug)]
struct Words;

impl TokenCount for Words {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }
}

fn texts() -> impl Strategy<Value = String> {
    let words = prop_oneof![
        6 => "[a-z]{1,9}",
        1 => "[a-z]{1,5}[.,]",
        1 => "\\PC{1,4}",
        1 => Just("KEEP-me".to_owned()),
        1 => Just("\n```\ncode here. And more\n```\n".to_owned()),
        1 => proptest::collection::vec(any::<char>(), 1..4).prop_map(String::from_iter),
    ];
    proptest::collection::vec(words, 0..120).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn words_are_whole_and_what_is_forced_stays(text in texts(), percent in 0u32..=100, chunk in 4usize..60, seed in 0u64..99) {
        let mut labelling = Labelling::new(f64::from(percent) / 100.0).unwrap();
        labelling.forced.push("KEEP".into());
        let classifier = Threes { seed, ..Threes::default() };
        let ours = LlmLingua2::new(&classifier, &Words, labelling).with_chunk(chunk).unwrap();
        let short = ours.compress(&text).unwrap();
        prop_assert_eq!(short.tokens, Words.count(&short.text).unwrap());
        prop_assert_eq!(short.tokens_before, Words.count(&text).unwrap());
        for stays in ["KEEP", "```\ncode here. And more\n```"] {
            prop_assert_eq!(short.text.matches(stays).count(), text.matches(stays).count());
        }
        if percent == 100 {
            prop_assert_eq!(&short.text, &text);
        }
        // Runs of small letters are words: none is cut, and they stay in order.
        let runs = |text: &str| -> Vec<String> {
            let letters = text.split(|c: char| !c.is_ascii_lowercase()).filter(|w| !w.is_empty());
            letters.map(str::to_owned).collect()
        };
        let before = runs(&text);
        let mut next = 0;
        for word in runs(&short.text) {
            let found = before[next..].iter().position(|w| *w == word);
            prop_assert!(found.is_some(), "`{}` of {:?}", word, text);
            next += found.unwrap() + 1;
        }
        // Only one word may be longer than a chunk.
        let longest = text.split_whitespace().map(|w| w.chars().count()).max().unwrap_or(0);
        prop_assert!(classifier.most.get() <= chunk.max(longest));
    }

    #[test]
    fn the_rate_is_met(count in 150usize..800, percent in 10u32..95, chunk in 100usize..600, seed in 0u64..99) {
        let mut random = SplitMix::new(seed);
        let mut text = String::new();
        for _ in 0..count {
            let length = 1 + random.next_u64() % 8;
            (0..length).for_each(|_| text.push(char::from(b'a' + (random.next_u64() % 26) as u8)));
            text.push_str(if random.next_u64().is_multiple_of(12) { ". " } else { " " });
        }
        let rate = f64::from(percent) / 100.0;
        let classifier = Threes { seed, ..Threes::default() };
        let ours = LlmLingua2::new(&classifier, &One, Labelling::new(rate).unwrap());
        let short = ours.with_chunk(chunk).unwrap().compress(&text).unwrap();
        // Full stops are words too: each is one token.
        let words = |text: &str| {
            let letters = text.split([' ', '.']).filter(|w| !w.is_empty()).count();
            (letters + text.matches('.').count()) as f64
        };
        // The threshold is a whole percentile, and each chunk is cut to a word.
        let (kept, all, chunks) = (words(&short.text), words(&text), classifier.calls.get() as f64);
        prop_assert!(kept <= rate * all + chunks && kept >= (rate - 0.02) * all - chunks, "{} of {} for {}", kept, all, rate);
        prop_assert!(chunks >= 1.0 && chunks <= 2.0 + 30.0 * all / chunk as f64);
    }
}

#[test]
fn recipes_have_a_rate() {
    let text =
        "the quick brown fox jumps over the lazy dog, and the dog sleeps on. It dreams of foxes.";
    let classifier = Threes::default();
    let models = PromptModels::default().with_classifier(&classifier);
    let recipe: PromptRecipe = "llmlingua2(rate=0.4, probability=first)".parse().unwrap();
    let short = recipe.squeeze((&Words, &models), &["fox"], (text, None), usize::MAX).unwrap();
    let mut labelling = Labelling::new(0.4).unwrap();
    labelling.probability = WordProbability::First;
    labelling.forced.push("fox".into());
    let alone = LlmLingua2::new(&classifier, &Words, labelling).compress(text).unwrap();
    assert_eq!(short, alone);
    assert!(short.text.contains("fox") && short.text.contains("foxes"), "{}", short.text);
    assert!(short.tokens < short.tokens_before);
    // A budget holds after a rate too.
    let recipe: PromptRecipe = "llmlingua2(rate=0.8) | bm25".parse().unwrap();
    let short = recipe.squeeze((&Words, &models), &[], (text, Some("Who dreams?")), 5).unwrap();
    assert!(short.tokens <= 5 && short.tokens_before == Words.count(text).unwrap());
    let none = PromptModels::default();
    let error = recipe.squeeze((&Words, &none), &[], (text, None), 5).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("classifier"), "{error}");
    for bad in [
        "llmlingua2(rate=1.5)",
        "bm25 | llmlingua2",
        "llmlingua2 | llmlingua2",
        "llmlingua2(chunk=0)",
    ] {
        assert!(bad.parse::<PromptRecipe>().is_err(), "{bad}");
    }
    assert!(LlmLingua2::new(&classifier, &Words, Labelling::default()).with_chunk(0).is_err());
}
