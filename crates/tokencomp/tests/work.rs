//! How much is read of a text to make it shorter: in proportion to its length; and that no budget is exceeded, whatever a
//! tokenizer makes of joined parts.

use std::cell::Cell;
use std::ops::Range;

use proptest::prelude::*;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{ErrorKind, Result};
use tensorpress_tokencomp::text::{
    Bm25, Piece, Relevance, Squeeze, Surprise, TokenCount, TokenLogProbs, WordScore,
};

/// A tokenizer of four bytes a token that starts anew at every line: it joins what stands side by side. Adds up what it
/// reads.
#[derive(Debug, Default)]
struct Fours(Cell<usize>);

impl TokenCount for Fours {
    fn count(&self, text: &str) -> Result<usize> {
        self.0.set(self.0.get() + text.len());
        Ok(text.lines().map(|line| line.len().div_ceil(4)).sum())
    }
}

/// A language model, and a similarity, by a hash of each word. Adds up what it reads.
#[derive(Debug, Default)]
struct Draws(Cell<usize>);

impl Draws {
    fn of(text: &str) -> f32 {
        let seed = text.bytes().fold(7u64, |hash, b| hash.wrapping_mul(31) ^ u64::from(b));
        (SplitMix::new(seed).at(0) >> 40) as f32 / 1e6
    }
}

impl TokenLogProbs for Draws {
    fn log_probs(&self, context: &str, text: &str) -> Result<Vec<Piece>> {
        self.0.set(self.0.get() + context.len() + text.len());
        let mut at = 0;
        let piece = |part: &str| {
            at += part.len();
            (at - part.len()..at, -Self::of(part.trim()))
        };
        Ok(text.split_inclusive(' ').map(piece).collect())
    }
}

impl Relevance for Draws {
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let read = question.len() + passages.iter().map(|p| p.len()).sum::<usize>();
        self.0.set(self.0.get() + read);
        Ok(passages.iter().map(|p| Self::of(p)).collect())
    }
}

fn words(count: usize, seed: u64) -> impl Iterator<Item = String> {
    let mut random = SplitMix::new(seed);
    (0..count).map(move |_| {
        let length = 1 + random.next_u64() % 9;
        (0..length).map(|_| char::from(b'a' + (random.next_u64() % 26) as u8)).collect()
    })
}

/// Texts of about so many words: sentences, no sentence at all, nothing but abbreviations, lines, rows, no spaces.
fn texts(count: usize) -> Vec<(&'static str, String)> {
    let all: Vec<String> = words(count, 1).collect();
    let joined = |per: usize, by: &str, end: &str| {
        all.chunks(per).map(|line| line.join(by) + end).collect::<String>()
    };
    let han = |word: &String| char::from_u32(0x4E00 + u32::from(word.as_bytes()[0])).expect("Han");
    vec![
        ("sentences", joined(9, " ", ". So ")),
        ("no end", joined(9, " ", " ")),
        ("abbreviations", "A. Dr. ".repeat(count / 2)),
        ("lines", joined(15, " ", "\n")),
        ("rows", joined(5, " | ", "\n")),
        ("no spaces", all.iter().map(han).collect()),
    ]
}

/// Kept words that a segment is read after: few, so that the shorter texts have as many.
const MEMORY: usize = 256;

/// What tokenizer and models read of a text, for a share of its tokens.
fn read(text: &str, share: usize, words: bool, ranked: bool, memory: usize) -> usize {
    let (counter, model) = (Fours::default(), Draws::default());
    let surprise = Surprise::new(&model).with_memory(memory);
    let mut squeeze = Squeeze::new(&counter);
    if words {
        squeeze = squeeze.with_words(&surprise);
    }
    if ranked {
        squeeze = squeeze.with_relevance(&model);
    }
    let budget = Fours::default().count(text).unwrap() / share;
    let short = squeeze.squeeze(text, None, budget).unwrap();
    assert_eq!(short.tokens, Fours::default().count(&short.text).unwrap());
    assert!(short.tokens <= budget);
    counter.0.get() + model.0.get()
}

#[test]
fn ten_times_the_text_is_ten_times_the_work() {
    for (words, ranked) in [(true, false), (true, true), (false, true), (false, false)] {
        for share in [2, 20] {
            let sizes = [20_000, 200_000].map(texts);
            for ((what, short), (_, long)) in sizes[0].iter().zip(&sizes[1]) {
                let [before, after] =
                    [short, long].map(|text| read(text, share, words, ranked, MEMORY));
                let growth =
                    after as f64 / before as f64 / (long.len() as f64 / short.len() as f64);
                println!(
                    "{what:14} 1/{share:<2} words {words:5} ranked {ranked:5}: {:5.1} and {:5.1} times the text",
                    before as f64 / short.len() as f64,
                    after as f64 / long.len() as f64
                );
                assert!(growth < 1.2, "{what}, 1/{share}, {words}, {ranked}: {growth}");
            }
        }
    }
}

/// What the test above would see of a model that is given all of the past.
#[test]
fn a_memory_without_end_is_more_work() {
    let sizes = [4_000, 40_000].map(|count| texts(count).swap_remove(0).1);
    let [before, after] = sizes.each_ref().map(|text| read(text, 20, true, false, 1 << 20));
    assert!(after > 50 * before, "{before} and {after}");
}

/// Counts that obey no law: as many tokens as words, and some that depend on every byte.
#[derive(Debug)]
struct Lawless;

impl TokenCount for Lawless {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count() + Draws::of(text) as usize % 7)
    }
}

/// Says the same of all.
#[derive(Debug)]
struct Alike;

impl WordScore for Alike {
    fn score(&self, _: &str, words: &[Range<usize>]) -> Result<Vec<f32>> {
        Ok(vec![1.0; words.len()])
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_tokenizer_exceeds_a_budget(kind in 0usize..6, count in 20usize..400, budget in 1usize..200, scored: bool, lawless: bool) {
        let (_, text) = texts(count).swap_remove(kind);
        let fours = Fours::default();
        let counter: &dyn TokenCount = if lawless { &Lawless } else { &fours };
        let bm25 = Bm25::new();
        let mut squeeze = Squeeze::new(counter).with_relevance(&bm25);
        if scored {
            squeeze = squeeze.with_words(&Alike);
        }
        match squeeze.squeeze(&text, None, budget) {
            Ok(short) => {
                prop_assert_eq!(short.tokens, counter.count(&short.text).unwrap());
                prop_assert!(short.tokens <= budget);
            }
            // Even nothing may be too much for a tokenizer without laws.
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                prop_assert!(counter.count("").unwrap() > budget);
            }
        }
    }
}

/// BM25 as it is written down, word by word.
fn bm25(question: &str, passages: &[&str]) -> Vec<f64> {
    let terms = |text: &str| -> Vec<String> {
        let word = |w: &str| w.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        text.split_whitespace().map(word).collect()
    };
    let documents: Vec<Vec<String>> = passages.iter().map(|p| terms(p)).collect();
    let (n, mut asked) = (passages.len() as f64, terms(question));
    asked.sort();
    asked.dedup();
    let mean = documents.iter().map(Vec::len).sum::<usize>() as f64 / n;
    let score = |document: &Vec<String>| {
        let of = |word: &String| {
            let count = document.iter().filter(|w| *w == word).count() as f64;
            let holding = documents.iter().filter(|d| d.contains(word)).count() as f64;
            let idf = (1.0 + (n - holding + 0.5) / (holding + 0.5)).ln();
            idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * document.len() as f64 / mean))
        };
        asked.iter().map(of).sum()
    };
    documents.iter().map(score).collect()
}

#[test]
fn bm25_is_the_slow_sum() {
    let (_, text) = texts(600).swap_remove(0);
    let text = format!("The cat and the bird. {text} A bird sat; the cat, the big cat, ran.");
    let passages: Vec<&str> = text.split_inclusive(". ").collect();
    for question in ["Which cat and bird?", &text, "", "nothing of it"] {
        let ours = Bm25::new().relevance(question, &passages).unwrap();
        for (ours, slow) in ours.iter().zip(bm25(question, &passages)) {
            assert!((f64::from(*ours) - slow).abs() < 1e-4 * (1.0 + slow), "{ours} for {slow}");
        }
    }
    // Nothing of a repeated word's worth depends on a constant of 0.
    let mut plain = Bm25::new();
    plain.k1 = 0.0;
    let scores = plain.relevance("a b", &["a", "a a", "c"]).unwrap();
    assert!(scores[0] > 0.0 && scores[0] == scores[1] && scores[2] == 0.0, "{scores:?}");
}
