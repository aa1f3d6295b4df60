//! Which words of a text may be the answer to a question.

use std::collections::BTreeSet;
use std::ops::Range;

use tensorpress_tensor::stage::Row;
use tensorpress_tensor::{Error, Result};

use super::retrieval::{Attends, QuestionAttention, Retrieval};
use super::{WordScore, english};
use crate::stage::{TokenPart, TokenRole};

/// Scores words by the attention that they get while a language model answers the question, and by what is asked for.
///
/// sqrt(n a) of each of n words, a its share of the attention from the answer, mean over `answering`'s heads. Function words
/// and words of the question count 0.3 of that; numbers gain 2 where a number is asked for (how many, when), names where a
/// name is (who, where). The lists are English; other languages go by attention alone. For [`super::Squeeze::with_core`].
#[derive(Debug, Clone)]
pub struct AnswerWords<'a> {
    attention: QuestionAttention<'a>,
}

/// What words that cannot be the answer count.
const UNLIKELY: f32 = 0.3;
/// What words of the kind that is asked for gain: the score of one that gets four times its share of attention.
const KIND: f32 = 2.0;

impl<'a> AnswerWords<'a> {
    /// The heads of SmolLM2-135M-Instruct, found as those of [`Retrieval`] were, by the rank of the answer's words.
    #[must_use]
    pub fn heads() -> Retrieval {
        let answering = vec![(22, 4), (21, 8), (23, 1), (23, 7), (23, 2), (23, 4)];
        Retrieval { asking: Vec::new(), answering, ..Retrieval::default() }
    }

    /// Looks at the answering heads of a model.
    ///
    /// # Errors
    /// `InvalidArgument` without such heads; as [`QuestionAttention::new`].
    pub fn new(model: &'a dyn Attends, how: Retrieval) -> Result<Self> {
        if how.answering.is_empty() {
            return Err(Error::invalid("0 answering heads to look at; at least 1 is needed"));
        }
        Ok(Self { attention: QuestionAttention::new(model, how)? })
    }
}

impl WordScore for AnswerWords<'_> {
    /// `Unsupported`: without a question there is no answer.
    fn score(&self, _: &str, _: &[Range<usize>]) -> Result<Vec<f32>> {
        Err(Error::unsupported("words of an answer without a question"))
    }

    fn score_asked(
        &self,
        question: Option<&str>,
        text: &str,
        words: &[Range<usize>],
    ) -> Result<Vec<f32>> {
        let Some(question) = question else { return self.score(text, words) };
        let texts: Vec<&str> = words.iter().map(|word| &text[word.clone()]).collect();
        let shares = self.attention.answer_shares(question, &texts)?;
        let asked: BTreeSet<String> = question
            .split_whitespace()
            .filter(|w| !english::is_function(w))
            .map(english::stem)
            .collect();
        let kind = english::kind(question);
        let score = |(at, share): (usize, f32)| {
            let word = texts[at];
            let mut score = (share * texts.len() as f32).sqrt();
            if english::is_function(word) {
                score *= UNLIKELY;
            }
            if asked.contains(&english::stem(word)) {
                score *= UNLIKELY;
            }
            let fits = match kind {
                Some(english::Kind::Number) => english::is_number(word),
                Some(english::Kind::Name) => {
                    let before = at.checked_sub(1).map(|at| texts[at]);
                    english::is_name(before, word, texts.get(at + 1).copied())
                }
                None => false,
            };
            if fits { score + KIND } else { score }
        };
        Ok(shares.into_iter().enumerate().map(score).collect())
    }
}

pub(super) fn stage() -> Row<TokenPart> {
    let about = "scores words by what heads of a language model look at while it answers; with `fill(core=...)`";
    Row::new("answer_words", TokenRole::Words, about, AnswerWords::heads, |how: Retrieval, _| {
        Ok(TokenPart::Words(Box::new(move |models| {
            let model = models.attends_for("answer_words")?;
            Ok(Box::new(AnswerWords::new(model, how.clone())?))
        })))
    })
}
