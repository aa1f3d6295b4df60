//! What a small language model finds surprising is worth keeping: Jiang, Wu, Lin, Yang, Qiu, *LLMLingua: Compressing Prompts
//! for Accelerated Inference of Large Language Models*, 2023.

use std::ops::Range;

use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use super::{TokenLogProbs, WordScore, word_means};
use crate::stage::{TokenPart, TokenRole};

/// How the text is read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    segment: usize,
    rate: f64,
    memory: usize,
}

impl Default for Reading {
    fn default() -> Self {
        Self { segment: 100, rate: 0.5, memory: 1024 }
    }
}

impl Knobs for Reading {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("segment", &mut self.segment, 1..=1 << 20, "words that are read at once")?;
        let about = "share of a segment's words that is the context of the next";
        keys.float("rate", &mut self.rate, 0.0..=1.0, about)?;
        let about = "words of that context, the last ones, that a segment is read after";
        keys.int("memory", &mut self.memory, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<TokenPart> {
    let (name, about) = ("surprise", "keeps the words that a language model finds most surprising");
    Row::new(
        name,
        TokenRole::Words,
        about,
        Reading::default,
        move |Reading { segment, rate, memory }, _| {
            Ok(TokenPart::Words(Box::new(move |models| {
                let surprise = Surprise::new(models.language_for(name)?).with_segment(segment)?;
                Ok(Box::new(surprise.with_rate(rate)?.with_memory(memory)))
            })))
        },
    )
}

/// Scores words by a language model: the mean of -ln p over their tokens. The text is read in segments, each after what
/// the last words of what the segments before it would be compressed to (LLMLingua's iterative compression; its model
/// forgets the rest too). So the model reads no more than a fixed multiple of the text.
#[derive(Debug, Clone, Copy)]
pub struct Surprise<'a> {
    model: &'a dyn TokenLogProbs,
    segment: usize,
    rate: f64,
    memory: usize,
}

impl<'a> Surprise<'a> {
    /// Segments of 100 words, half of which are kept for the segments to come, each of which is read after the last 1024
    /// kept ones.
    #[must_use]
    pub fn new(model: &'a dyn TokenLogProbs) -> Self {
        let Reading { segment, rate, memory } = Reading::default();
        Self { model, segment, rate, memory }
    }

    /// Reads segments of so many words.
    ///
    /// # Errors
    /// `InvalidArgument` for 0.
    pub fn with_segment(mut self, words: usize) -> Result<Self> {
        if words == 0 {
            return Err(Error::invalid("segment = 0 words; at least 1 is needed"));
        }
        self.segment = words;
        Ok(self)
    }

    /// Keeps this share of each segment's words as the context of the next.
    ///
    /// # Errors
    /// `InvalidArgument` for a share outside 0 to 1.
    pub fn with_rate(mut self, rate: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&rate) {
            return Err(Error::invalid(format!("rate = {rate}; allowed are 0 to 1")));
        }
        self.rate = rate;
        Ok(self)
    }

    /// Reads each segment after so many words of that context, the last ones.
    #[must_use]
    pub fn with_memory(mut self, words: usize) -> Self {
        self.memory = words;
        self
    }
}

impl WordScore for Surprise<'_> {
    fn score(&self, text: &str, words: &[Range<usize>]) -> Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(words.len());
        let mut kept: Vec<&str> = Vec::new();
        for segment in words.chunks(self.segment) {
            let start = segment[0].start;
            let part = &text[start..segment[segment.len() - 1].end];
            let mut context = String::new();
            for word in &kept[kept.len().saturating_sub(self.memory)..] {
                context += word;
                context.push(' ');
            }
            let mut pieces = self.model.log_probs(&context, part)?;
            for (at, value) in &mut pieces {
                *at = at.start + start..at.end + start;
                *value = -*value;
            }
            let found = word_means(&pieces, segment, 0.0);
            if let Some(bad) = found.iter().position(|s| !s.is_finite()) {
                let word = &text[segment[bad].clone()];
                return Err(Error::numerical(format!(
                    "the log-probability of `{word}` is {}",
                    -found[bad]
                )));
            }
            let mut order: Vec<usize> = (0..segment.len()).collect();
            order.sort_by(|a, b| found[*b].total_cmp(&found[*a]));
            order.truncate((self.rate * segment.len() as f64).ceil() as usize);
            order.sort_unstable();
            kept.extend(order.into_iter().map(|word| &text[segment[word].clone()]));
            scores.extend(found);
        }
        Ok(scores)
    }
}
