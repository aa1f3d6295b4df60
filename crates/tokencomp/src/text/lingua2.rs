//! Compression as classification: Pan, Wu, Jiang, Xia, Luo, Zhang, Lin, Rühle, Yang, Lin, Zhao, Qiu, Zhang, *LLMLingua-2:
//! Data Distillation for Efficient and Faithful Task-Agnostic Prompt Compression*, 2024.

mod annotate;
mod compress;

use std::ops::Range;

use tensorpress_tensor::{Error, Result};

use super::{Piece, WordScore, word_means};

pub use annotate::{Annotation, Annotator, trustworthy};
pub use compress::LlmLingua2;
pub(super) use compress::stage;

/// Any classifier of tokens into kept and dropped.
pub trait KeepProbability: std::fmt::Debug {
    /// For every token of `text`: its bytes, and the probability that it should be kept, 0 to 1.
    ///
    /// # Errors
    /// Whatever the classifier cannot do.
    fn keep_probabilities(&self, text: &str) -> Result<Vec<Piece>>;

    /// The bytes of the same tokens, of a text that may be longer than the classifier can read: by them it is cut into
    /// chunks. By default those of [`Self::keep_probabilities`], for classifiers that read any text.
    ///
    /// # Errors
    /// Whatever the tokenizer cannot do.
    fn pieces(&self, text: &str) -> Result<Vec<Range<usize>>> {
        Ok(self.keep_probabilities(text)?.into_iter().map(|(at, _)| at).collect())
    }
}

/// Scores words by a classifier: the mean over their tokens. For [`super::Squeeze`].
#[derive(Debug, Clone, Copy)]
pub struct Classified<'a> {
    classifier: &'a dyn KeepProbability,
}

impl<'a> Classified<'a> {
    /// Scores by this classifier.
    #[must_use]
    pub fn new(classifier: &'a dyn KeepProbability) -> Self {
        Self { classifier }
    }
}

impl WordScore for Classified<'_> {
    fn score(&self, text: &str, words: &[Range<usize>]) -> Result<Vec<f32>> {
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return Ok(Vec::new());
        };
        let start = first.start;
        let mut pieces = self.classifier.keep_probabilities(&text[start..last.end])?;
        pieces.iter_mut().for_each(|(at, _)| *at = at.start + start..at.end + start);
        Ok(word_means(&pieces, words, 0.0))
    }
}

/// A word and what the classifier says of its pieces.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifiedWord {
    /// The word.
    pub text: String,
    /// Pieces and their keep-probabilities.
    pub pieces: Vec<(String, f32)>,
    /// Tokens of the word by the tokenizer that the rate is about.
    pub tokens: usize,
}

/// A word's probability from its pieces'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WordProbability {
    /// Their mean.
    #[default]
    Mean,
    /// That of the first.
    First,
}

/// Labels words at a rate, as the official code does; see [`Labelling::label`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Labelling {
    rate: f64,
    /// A word's probability from its pieces'.
    pub probability: WordProbability,
    /// Words that stay wherever they are.
    pub forced: Vec<String>,
    /// Words with a digit in them stay.
    pub digits: bool,
    /// Of forced words with nothing kept between them, only the first stays.
    pub drop_consecutive: bool,
}

/// Half of the tokens.
impl Default for Labelling {
    fn default() -> Self {
        let (probability, forced) = (WordProbability::Mean, Vec::new());
        Self { rate: 0.5, probability, forced, digits: false, drop_consecutive: false }
    }
}

impl Labelling {
    /// Keeps about this share of the tokens, 0 to 1.
    ///
    /// # Errors
    /// `InvalidArgument` for another rate.
    pub fn new(rate: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&rate) {
            return Err(Error::invalid(format!("rate = {rate}; allowed are 0 to 1")));
        }
        Ok(Self { rate, ..Self::default() })
    }

    /// Which words of one chunk stay: those strictly above the percentile of rank int(100 (1 - rate) + 1) of the words'
    /// probabilities, each counted once a token.
    ///
    /// # Errors
    /// `InvalidArgument` for a word without pieces; `Numerical` for a probability that is not finite.
    pub fn label(&self, words: &[ClassifiedWord]) -> Result<Vec<bool>> {
        let mut probabilities: Vec<f64> =
            words.iter().map(|w| self.probability(w)).collect::<Result<_>>()?;
        let drop_rate = 1.0 - self.rate;
        let is_forced = |word: &ClassifiedWord| self.forced.contains(&word.text);
        if self.drop_consecutive && !words.is_empty() {
            let threshold = percentile(probabilities.clone(), (100.0 * drop_rate).floor());
            let (mut between, mut previous) = (false, None);
            for (word, probability) in words.iter().zip(&mut probabilities) {
                if !is_forced(word) {
                    between |= *probability > threshold;
                    continue;
                }
                if between {
                    between = false;
                } else if previous == Some(&word.text) {
                    *probability = 0.0;
                }
                previous = Some(&word.text);
            }
        }
        let repeated =
            words.iter().zip(&probabilities).flat_map(|(w, p)| std::iter::repeat_n(*p, w.tokens));
        let repeated: Vec<f64> = repeated.collect();
        if repeated.is_empty() {
            return Ok(vec![false; words.len()]);
        }
        let threshold = percentile(repeated, (100.0 * drop_rate + 1.0).floor().min(100.0));
        let mut labels = Vec::with_capacity(words.len());
        let mut last_kept: Option<&str> = None;
        for (word, probability) in words.iter().zip(&probabilities) {
            let above = *probability > threshold || (threshold == 1.0 && *probability == threshold);
            let again = self.drop_consecutive && is_forced(word) && last_kept == Some(&word.text);
            if above && !again {
                last_kept = Some(&word.text);
            }
            labels.push(above && !again);
        }
        Ok(labels)
    }

    /// Which words of a text stay, chunk by chunk: each chunk is labelled by itself, has at most so many pieces (510 for
    /// classifiers of 512 tokens, two of them special), and ends after its last full stop or line break, if it has one
    /// and is not the last. Words are not cut: one of more pieces is a chunk of its own.
    ///
    /// # Errors
    /// `InvalidArgument` for 0 pieces; those of [`Labelling::label`].
    pub fn label_chunks(&self, words: &[ClassifiedWord], pieces: usize) -> Result<Vec<bool>> {
        check_chunk(pieces)?;
        let mut labels = Vec::with_capacity(words.len());
        while labels.len() < words.len() {
            let rest = &words[labels.len()..];
            labels.extend(self.label(&rest[..first_chunk(rest, pieces)])?);
        }
        Ok(labels)
    }

    fn probability(&self, word: &ClassifiedWord) -> Result<f64> {
        let forced = self.forced.contains(&word.text);
        let one = |(i, (text, probability)): (usize, &(String, f32))| {
            let digit = self.digits && text.contains(|c: char| c.is_numeric());
            if digit || (forced && i == 0) { 1.0 } else { f64::from(*probability) }
        };
        let pieces: Vec<f64> = word.pieces.iter().enumerate().map(one).collect();
        if let Some(bad) = pieces.iter().find(|p| !p.is_finite()) {
            return Err(Error::numerical(format!("keep-probability of `{}` is {bad}", word.text)));
        }
        match self.probability {
            _ if pieces.is_empty() => {
                Err(Error::invalid(format!("the word `{}` has no pieces", word.text)))
            }
            WordProbability::First => Ok(pieces[0]),
            WordProbability::Mean => Ok(pieces.iter().sum::<f64>() / pieces.len() as f64),
        }
    }
}

fn check_chunk(pieces: usize) -> Result<()> {
    match pieces {
        0 => Err(Error::invalid("chunks of 0 pieces; at least 1 is needed")),
        _ => Ok(()),
    }
}

/// Words of the first chunk: at least 1.
fn first_chunk(words: &[ClassifiedWord], pieces: usize) -> usize {
    let mut sum = 0;
    let fits = |word: &&ClassifiedWord| {
        sum += word.pieces.len();
        sum <= pieces
    };
    let most = words.iter().take_while(fits).count();
    if most == words.len() {
        return most;
    }
    let ends = |word: &ClassifiedWord| matches!(word.text.as_str(), "." | "\n");
    words[..most].iter().rposition(ends).map_or(most.max(1), |last| last + 1)
}

/// Percentile of values, linear between the two nearest.
fn percentile(mut values: Vec<f64>, percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = percent / 100.0 * (values.len() - 1) as f64;
    let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
    let share = at.fract();
    // From the nearer end, so that both ends are met exactly.
    if share < 0.5 { low + (high - low) * share } else { high - (high - low) * (1.0 - share) }
}
