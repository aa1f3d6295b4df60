//! What a language model looks at while it answers: a few of its heads are those that find the place in the text. Wu, Wang,
//! Xiao, Peng, Fu, *Retrieval Head Mechanistically Explains Long-Context Factuality*, 2025; Chen, Gutiérrez, Su, *Attention
//! in Large Language Models Yields Efficient Zero-Shot Re-Rankers*, 2025.

use std::fmt::{self, Debug};
use std::ops::Range;
use std::str::FromStr;

use ndarray::{Array2, Axis, s};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use super::Relevance;
use super::recipe::ranking;
use super::relevance::standard;
use crate::stage::TokenPart;

/// A layer, and one of its query heads; both from 0.
pub type Head = (usize, usize);

/// A text in the middle of what a model is told.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Comes first.
    pub before: &'a str,
    /// The text that is looked at.
    pub context: &'a str,
    /// Between text and question.
    pub between: &'a str,
    /// The question.
    pub question: &'a str,
    /// Behind the question; the model goes on from here.
    pub after: &'a str,
    /// Tokens that the model goes on for, or fewer if it ends.
    pub answer: usize,
}

/// The attention that the tokens of a context get, each a probability: those of a head sum to at most 1.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Bytes of the context's tokens.
    pub tokens: Vec<Range<usize>>,
    /// From the question, `[heads asked for, tokens]`: the mean over its tokens.
    pub question: Array2<f32>,
    /// From the model's answer, `[heads asked for, tokens]`: the mean over the tokens that it went on for; 0 without any.
    pub answer: Array2<f32>,
}

/// Any causal language model whose attention can be seen.
pub trait Attends: Debug {
    /// Tokens that it reads at once.
    fn reads(&self) -> usize;

    /// Tokens of a text.
    ///
    /// # Errors
    /// Whatever the tokenizer cannot do.
    fn length(&self, text: &str) -> Result<usize>;

    /// Reads, answers greedily, and says which tokens of the context these heads looked at.
    ///
    /// # Errors
    /// `InvalidArgument` for a head that it does not have or more tokens than it reads; whatever else it cannot do.
    fn attention(&self, asking: Asking<'_>, heads: &[Head]) -> Result<Attention>;
}

/// The heads that find what was asked about, by model.
///
/// The defaults are those of SmolLM2-135M-Instruct. They were found on 80 planted facts: of all 270 heads, those under whose
/// attention the fact's sentence ranks best. Other models have others: [`retrieval_heads`] finds them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Retrieval {
    /// Heads whose attention from the question counts.
    pub asking: Vec<Head>,
    /// Heads whose attention from the answer counts.
    pub answering: Vec<Head>,
    /// Tokens of the answer.
    pub answer: usize,
    /// Tokens of the context that are read at once.
    pub window: usize,
}

impl Default for Retrieval {
    fn default() -> Self {
        let answering = vec![(15, 6), (21, 8), (22, 4), (23, 2)];
        Self { asking: vec![(15, 6)], answering, answer: 20, window: 1024 }
    }
}

/// Ranks passages by the attention that they get while a model reads the question behind them and answers it.
///
/// The model reads all passages as one text, then the question, and answers; a passage's words are judged in the light of all
/// words before them. A passage's score is z(ln(eps + q)) + z(ln(eps + a)), eps = 1e-4: q and a are the attention mass of
/// its tokens, mean over the heads, from the question's tokens and from the answer's; z brings each to mean 0 and deviation 1
/// over the passages. Texts of more than `window` tokens are read in windows of whole passages.
#[derive(Debug, Clone)]
pub struct QuestionAttention<'a> {
    model: &'a dyn Attends,
    how: Retrieval,
}

const EPSILON: f32 = 1e-4;

/// What the model is told. The markers of turns are ChatML's: tokens of models that know them, text to others.
const BEFORE: &str = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                      <|im_start|>user\nText: ";
const BETWEEN: &str = "\n\nQuestion: ";
const AFTER: &str = " Answer with a few words from the text.<|im_end|>\n<|im_start|>assistant\n";

impl<'a> QuestionAttention<'a> {
    /// Looks at these heads of a model.
    ///
    /// # Errors
    /// `InvalidArgument` without heads, or for a window of 0.
    pub fn new(model: &'a dyn Attends, how: Retrieval) -> Result<Self> {
        if how.asking.is_empty() && how.answering.is_empty() {
            return Err(Error::invalid("0 heads to look at; at least 1 is needed"));
        }
        if how.window == 0 {
            return Err(Error::invalid("window = 0 tokens; at least 1 is needed"));
        }
        Ok(Self { model, how })
    }

    /// Runs of passages of at most a window of tokens: at least one passage each.
    fn windows(&self, question: &str, passages: &[&str]) -> Result<Vec<Range<usize>>> {
        let around = [BEFORE, BETWEEN, question, AFTER];
        let around = around.iter().map(|t| self.model.length(t)).sum::<Result<usize>>()?;
        let room = self.model.reads().saturating_sub(around + self.how.answer + 8);
        let room = room.min(self.how.window);
        let (mut found, mut from, mut tokens) = (Vec::new(), 0, 0);
        for (at, passage) in passages.iter().enumerate() {
            let length = self.model.length(passage)? + 1;
            if at > from && tokens + length > room {
                found.push(from..at);
                (from, tokens) = (at, 0);
            }
            tokens += length;
        }
        found.push(from..passages.len());
        Ok(found)
    }

    /// Attention mass of each passage, `[heads, passages]`, from the question and from the answer.
    fn masses(
        &self,
        question: &str,
        passages: &[&str],
        heads: &[Head],
    ) -> Result<[Array2<f32>; 2]> {
        let mut masses = [(); 2].map(|()| Array2::zeros((heads.len(), passages.len())));
        for window in self.windows(question, passages)? {
            let context = passages[window.clone()].join(" ");
            let (context, answer) = (context.as_str(), self.how.answer);
            let (before, between, after) = (BEFORE, BETWEEN, AFTER);
            let asking = Asking { before, context, between, question, after, answer };
            let seen = self.model.attention(asking, heads)?;
            let mut end = 0;
            let ends = passages[window.clone()].iter().map(|passage| {
                end += passage.len() + 1;
                end - 1
            });
            let ends: Vec<usize> = ends.collect();
            for (masses, seen_from) in masses.iter_mut().zip([&seen.question, &seen.answer]) {
                if seen_from.dim() != (heads.len(), seen.tokens.len()) {
                    let (found, tokens) = (seen_from.dim(), seen.tokens.len());
                    let message =
                        format!("attention {found:?} of {} heads and {tokens} tokens", heads.len());
                    return Err(Error::shape(message));
                }
                for (bytes, column) in seen.tokens.iter().zip(seen_from.columns()) {
                    let at = ends.partition_point(|end| *end < bytes.end).min(ends.len() - 1);
                    let mut sums = masses.column_mut(window.start + at);
                    sums += &column;
                }
            }
        }
        Ok(masses)
    }
}

impl QuestionAttention<'_> {
    /// The share of the answering heads' attention that each passage gets from the answer: they sum to 1, or are all 0.
    pub(super) fn answer_shares(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        if passages.is_empty() {
            return Ok(Vec::new());
        }
        let [_, mut masses] = self.masses(question, passages, &self.how.answering)?;
        for mut row in masses.rows_mut() {
            let sum = row.sum();
            if sum > 0.0 {
                row /= sum;
            }
        }
        Ok(masses.mean_axis(Axis(0)).map_or_else(Vec::new, |mean| mean.to_vec()))
    }
}

impl Relevance for QuestionAttention<'_> {
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let mut scores = vec![0.0; passages.len()];
        if passages.is_empty() {
            return Ok(scores);
        }
        let heads = [&self.how.asking[..], &self.how.answering].concat();
        let [asked, answered] = self.masses(question, passages, &heads)?;
        let first = self.how.asking.len();
        for masses in [asked.slice(s![..first, ..]), answered.slice(s![first.., ..])] {
            let Some(mean) = masses.mean_axis(Axis(0)) else { continue };
            let logs: Vec<f32> = mean.iter().map(|mass| (EPSILON + mass).ln()).collect();
            scores.iter_mut().zip(standard(&logs)).for_each(|(score, z)| *score += z);
        }
        Ok(scores)
    }
}

/// A question whose answer lies in one known passage.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The question.
    pub question: &'a str,
    /// The passages of a text.
    pub passages: &'a [&'a str],
    /// The one that has the answer.
    pub answer: usize,
}

/// The heads under which the passage with the answer ranks best among the others, on average over these questions: `count` of
/// them by the attention from the question, and as many by that from the answer; the best first. `layers` and `heads` are the
/// model's.
///
/// # Errors
/// `InvalidArgument` without questions, or for an answer outside its passages; those of the model.
pub fn retrieval_heads(
    model: &dyn Attends,
    known: &[Known<'_>],
    (layers, heads): (usize, usize),
    count: usize,
) -> Result<[Vec<Head>; 2]> {
    if known.is_empty() {
        return Err(Error::invalid("0 questions to find heads by; at least 1 is needed"));
    }
    let all: Vec<Head> =
        (0..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head))).collect();
    // Sums of ranks, twice, so that ties count by halves.
    let mut ranks = [vec![0usize; all.len()], vec![0usize; all.len()]];
    for Known { question, passages, answer } in known {
        if *answer >= passages.len() {
            let n = passages.len();
            return Err(Error::invalid(format!("answer = {answer}; allowed are 0 to {n} - 1")));
        }
        let how = Retrieval { asking: all.clone(), ..Retrieval::default() };
        let masses = QuestionAttention::new(model, how)?.masses(question, passages, &all)?;
        for (ranks, masses) in ranks.iter_mut().zip(masses) {
            for (rank, masses) in ranks.iter_mut().zip(masses.rows()) {
                let own = masses[*answer];
                let more = masses.iter().filter(|mass| **mass > own).count();
                let equal = masses.iter().filter(|mass| **mass == own).count() - 1;
                *rank += 2 * more + equal;
            }
        }
    }
    let best = |ranks: &Vec<usize>| {
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|at| ranks[*at]);
        order.into_iter().take(count).map(|at| all[at]).collect()
    };
    Ok([best(&ranks[0]), best(&ranks[1])])
}

/// Heads as a recipe writes them: `15.6+21.8`.
#[derive(Debug, Clone, PartialEq)]
struct Heads(Vec<Head>);

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(l, h)| format!("{l}.{h}")).collect();
        f.write_str(&words.join("+"))
    }
}

impl FromStr for Heads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let one = |word: &str| {
            let (layer, head) = word.split_once('.')?;
            Some((layer.parse().ok()?, head.parse().ok()?))
        };
        let bad = || Error::invalid(format!("heads {text:?}; allowed are such as \"15.6+21.8\""));
        let words = text.split('+').filter(|word| !word.is_empty());
        Ok(Self(words.map(one).collect::<Option<_>>().ok_or_else(bad)?))
    }
}

impl Knobs for Retrieval {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        const ALLOWED: &str = "layers and heads, such as \"15.6+21.8\"";
        let mut heads = |name, heads: &mut Vec<Head>, about| {
            let mut read = Heads(std::mem::take(heads));
            let done = keys.text(name, &mut read, ALLOWED, about);
            *heads = read.0;
            done
        };
        heads("asking", &mut self.asking, "heads whose attention from the question counts")?;
        heads("answering", &mut self.answering, "heads whose attention from the answer counts")?;
        keys.int("answer", &mut self.answer, 0..=1 << 16, "tokens that the model answers with")?;
        keys.int("window", &mut self.window, 1..=1 << 20, "tokens of the text read at once")
    }
}

pub(super) fn stage() -> Row<TokenPart> {
    ranking(
        "retrieval",
        "ranks sentences by what retrieval heads of a language model look at while it answers",
        Retrieval::default,
        |how, models| {
            let model = models.attends_for("retrieval")?;
            Ok(Box::new(QuestionAttention::new(model, how.clone())?))
        },
    )
}
