//! What holds for every text and budget.

use std::ops::Range;

use proptest::prelude::*;
use tensorpress_tensor::{ErrorKind, Result};
use tensorpress_tokencomp::text::{
    Bm25, Classified, Fused, KeepProbability, Piece, Relevance, Squeeze, Surprise, TokenCount,
    TokenLogProbs, WordScore,
};

/// A tokenizer of pieces of three bytes, and one token for a space: joining texts changes their tokens.
#[derive(Debug)]
struct Threes;

impl TokenCount for Threes {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split(' ').map(|word| word.len().div_ceil(3)).sum::<usize>()
            + text.matches(' ').count() / 2)
    }
}

/// A model that finds long pieces surprising.
#[derive(Debug)]
struct Lengths;

impl TokenLogProbs for Lengths {
    fn log_probs(&self, _: &str, text: &str) -> Result<Vec<Piece>> {
        let mut at = 0;
        let piece = |part: &str| {
            at += part.len();
            (at - part.len()..at, -(part.len() as f32))
        };
        Ok(text.split_inclusive(' ').map(piece).collect())
    }
}

fn texts() -> impl Strategy<Value = String> {
    let words = prop_oneof![
        "[a-zA-Z]{1,9}[.,!?]?",
        "\\PC{1,6}",
        "[我喜欢猫狗。]{1,8}",
        Just("\n```\ncode here. And more\n```\n".to_owned()),
        Just("\n\n".to_owned()),
        Just("KEEP-me".to_owned()),
        // Any Unicode: control characters, marks, joiners, unassigned.
        proptest::collection::vec(any::<char>(), 1..6).prop_map(String::from_iter),
    ];
    proptest::collection::vec(words, 0..40).prop_map(|words| words.join(" "))
}

/// The fences of the texts above.
fn fences(text: &str) -> usize {
    text.matches("And more").count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn budgets_are_met_and_words_are_whole(text in texts(), budget in 1usize..80, scored: bool, asked: bool) {
        let (surprise, bm25) = (Surprise::new(&Lengths), Bm25::new());
        let mut squeeze = Squeeze::new(&Threes).with_relevance(&bm25);
        if scored {
            squeeze = squeeze.with_words(&surprise);
        }
        let squeeze = squeeze.with_forced(&["KEEP"]).unwrap();
        let before = Threes.count(&text).unwrap();
        let short = match squeeze.squeeze(&text, asked.then_some("Which cat? 猫"), budget) {
            Ok(short) => short,
            Err(error) => {
                // Only what must stay can be too much.
                prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                prop_assert!(text.contains("```") || text.contains("KEEP") || text.contains("~~~"));
                return Ok(());
            }
        };
        prop_assert_eq!(short.tokens_before, before);
        prop_assert_eq!(short.tokens, Threes.count(&short.text).unwrap());
        prop_assert!(short.tokens <= budget);
        if before <= budget {
            prop_assert_eq!(&short.text, &text);
        }
        prop_assert_eq!(fences(&short.text), fences(&text));
        prop_assert_eq!(short.text.matches("KEEP-me").count(), text.matches("KEEP-me").count());
        // Words in the order of the text, none cut; those with ideographs in them may give several.
        let words: Vec<&str> = text.split_whitespace().collect();
        let ideographs = |w: &str| w.chars().any(|c| c >= '\u{2E80}');
        let mut next = 0;
        for word in short.text.split_whitespace() {
            let stands_for = |w: &&str| *w == word || (ideographs(w) && word.chars().all(|c| w.contains(c)));
            let found = words[next..].iter().position(stands_for);
            prop_assert!(found.is_some(), "`{}` of {:?}", word, text);
            next += found.unwrap();
            next += usize::from(!ideographs(words[next]));
        }
    }
}

#[test]
fn limits() {
    let bm25 = Bm25::new();
    let squeeze = Squeeze::new(&Threes).with_relevance(&bm25);
    let empty = squeeze.squeeze("", Some("what?"), 5).unwrap();
    assert_eq!((empty.text.as_str(), empty.tokens, empty.tokens_before), ("", 0, 0));
    let error = squeeze.squeeze("some text", None, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("budget = 0"), "{error}");
    let error = squeeze.squeeze("See:\n```\nabcdefghij\n```\nend of it", None, 3).unwrap_err();
    assert!(error.to_string().contains("take 6"), "{error}");
    assert_eq!(
        squeeze.squeeze("incomprehensibilities", None, 2).unwrap().text,
        "",
        "one word that is too long"
    );
    assert_eq!(squeeze.squeeze(" \n ".repeat(9).as_str(), None, 1).unwrap().text, "", "space only");
    assert!(
        squeeze.clone().with_forced(&["two words"]).is_err()
            && squeeze.clone().with_forced(&[""]).is_err()
    );
    assert!(squeeze.clone().with_whole(1.1).is_err() && squeeze.clone().with_coarse(0.5).is_err());
    assert!(squeeze.with_coarse(f64::NAN).is_err());
}

/// What a scorer may say wrongly.
#[derive(Debug)]
struct Says(Vec<f32>);

impl Relevance for Says {
    fn relevance(&self, _: &str, _: &[&str]) -> Result<Vec<f32>> {
        Ok(self.0.clone())
    }
}

impl WordScore for Says {
    fn score(&self, _: &str, _: &[Range<usize>]) -> Result<Vec<f32>> {
        Ok(self.0.clone())
    }
}

impl KeepProbability for Says {
    fn keep_probabilities(&self, text: &str) -> Result<Vec<Piece>> {
        Ok(self.0.iter().map(|p| (0..text.len(), *p)).collect())
    }
}

#[test]
fn impossible_scores_are_named() {
    let text = "One is here. Two is there.";
    let refused = |squeeze: Squeeze<'_>, question, kind, says: &str| {
        let error = squeeze.squeeze(text, question, 3).expect_err(says);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "`{error}` lacks `{says}`");
    };
    let (nan, few) = (Says(vec![1.0, f32::NAN]), Says(vec![1.0]));
    let ask = Some("Who?");
    let squeeze = || Squeeze::new(&Threes);
    use ErrorKind::{Numerical, ShapeMismatch};
    refused(squeeze().with_relevance(&nan), ask, Numerical, "score 1 of 2 sentences is NaN");
    refused(squeeze().with_relevance(&few), ask, ShapeMismatch, "1 scores of 2 sentences");
    let fused = Fused::new().with(&nan, 1.0);
    refused(squeeze().with_relevance(&fused), ask, Numerical, "of 2 sentences is NaN");
    refused(squeeze().with_words(&few), None, ShapeMismatch, "1 scores of 6 words");
    let nan = Says(vec![1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0]);
    refused(squeeze().with_words(&nan), None, Numerical, "score 3 of 6 words is NaN");
    let classified = Classified::new(&nan);
    refused(squeeze().with_words(&classified), None, Numerical, "of 6 words is NaN");
}

#[test]
fn relevant_sentences_come_first() {
    let text = "Cats sleep all day. The bridge was built in 1931 by Otto Rehn. Dogs bark at night. Rain fell. The bridge \
                is red.";
    let bm25 = Bm25::new();
    let squeeze = Squeeze::new(&Threes).with_relevance(&bm25);
    let budget = Threes.count("The bridge was built in 1931 by Otto Rehn.").unwrap();
    let short = squeeze.squeeze(text, Some("Who built the bridge?"), budget).unwrap();
    assert_eq!(short.text, "The bridge was built in 1931 by Otto Rehn.");
    // Words of the next sentence fill what is left, where words have scores.
    let surprise = Surprise::new(&Lengths);
    let filled = squeeze
        .with_words(&surprise)
        .squeeze(text, Some("Who built the bridge?"), budget + 4)
        .unwrap();
    assert!(filled.text.contains("The bridge was built in 1931 by Otto Rehn."), "{}", filled.text);
    assert!(filled.text.len() > short.text.len());
}

#[test]
fn opinions_are_fused() {
    let (a, b, flat) = (Says(vec![0.0, 2.0]), Says(vec![300.0, 100.0]), Says(vec![5.0, 5.0]));
    let fused = Fused::new().with(&a, 1.0).with(&b, 0.5).with(&flat, 9.0);
    let scores = fused.relevance("", &["x", "y"]).unwrap();
    assert!((scores[0] + 0.5).abs() < 1e-6 && (scores[1] - 0.5).abs() < 1e-6, "{scores:?}");
    assert!(fused.relevance("", &["x"]).is_err());
    assert!(Fused::new().with(&a, 1.0).relevance("", &[]).is_err());
    assert_eq!(Bm25::new().relevance("what", &[]).unwrap(), [0.0; 0]);
}
