//! What passages have to do with a question.

use std::collections::BTreeMap;

use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};
use unicode_segmentation::UnicodeSegmentation;

use super::recipe::ranking;
use super::{Relevance, TokenLogProbs};
use crate::stage::TokenPart;

/// What ranks sentences.
pub(super) fn stages() -> [Row<TokenPart>; 3] {
    [
        ranking(
            "likelihood",
            "ranks sentences by how probable a language model finds the question after them",
            || (),
            |(), models| Ok(Box::new(QuestionLikelihood::new(models.language_for("likelihood")?))),
        ),
        ranking(
            "similarity",
            "ranks sentences by how similar a model finds them to the question, or to the whole text",
            || (),
            |(), models| {
                let missing =
                    || Error::unsupported("`similarity` asks a model of sentences: an encoder");
                Ok(Box::new(Lent(models.similarity.ok_or_else(missing)?)))
            },
        ),
        ranking(
            "bm25",
            "ranks sentences by the words they share with the question, rare ones more",
            Bm25::new,
            |bm25, _| Ok(Box::new(*bm25)),
        ),
    ]
}

/// An opinion that somebody else holds.
#[derive(Debug, Clone, Copy)]
struct Lent<'a>(&'a dyn Relevance);

impl Relevance for Lent<'_> {
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        self.0.relevance(question, passages)
    }
}

impl Knobs for Bm25 {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("k1", &mut self.k1, 0.0..=100.0, "how soon a repeated word stops counting")?;
        keys.float("b", &mut self.b, 0.0..=1.0, "how much long passages are held back")
    }
}

/// BM25 over the passages (Robertson, Zaragoza, 2009): words they share with the question, rare ones more, in lower case.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Bm25 {
    /// How soon a repeated word stops counting.
    pub k1: f32,
    /// How much long passages are held back, 0 to 1.
    pub b: f32,
}

impl Bm25 {
    /// k1 = 1.2, b = 0.75.
    #[must_use]
    pub fn new() -> Self {
        Self { k1: 1.2, b: 0.75 }
    }
}

impl Default for Bm25 {
    fn default() -> Self {
        Self::new()
    }
}

impl Relevance for Bm25 {
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let terms = |text: &str| text.unicode_words().map(str::to_lowercase).collect::<Vec<_>>();
        let mut asked = terms(question);
        asked.sort_unstable();
        asked.dedup();
        let documents: Vec<Vec<String>> = passages.iter().map(|p| terms(p)).collect();
        let mean =
            documents.iter().map(Vec::len).sum::<usize>() as f32 / documents.len().max(1) as f32;
        // Only what a passage holds is looked at: a question may be as long as all passages together.
        let counts = |document: &Vec<String>| {
            let mut counts: BTreeMap<usize, f32> = BTreeMap::new();
            let known = document.iter().filter_map(|word| asked.binary_search(word).ok());
            known.for_each(|word| *counts.entry(word).or_default() += 1.0);
            counts
        };
        let counted: Vec<_> = documents.iter().map(counts).collect();
        let mut holding = vec![0.0f32; asked.len()];
        counted.iter().flat_map(BTreeMap::keys).for_each(|word| holding[*word] += 1.0);
        let score = |(counts, document): (&BTreeMap<usize, f32>, &Vec<String>)| {
            let length = 1.0 - self.b + self.b * document.len() as f32 / mean.max(1.0);
            let of_word = |(word, count): (&usize, &f32)| {
                let holding = holding[*word];
                let idf = (1.0 + (passages.len() as f32 - holding + 0.5) / (holding + 0.5)).ln();
                idf * count * (self.k1 + 1.0) / (count + self.k1 * length)
            };
            counts.iter().map(of_word).fold(0.0, |sum, part| sum + part)
        };
        Ok(counted.iter().zip(&documents).map(score).collect())
    }
}

/// How probable a language model finds the question after a passage: the mean log-probability of its tokens (Jiang et al.,
/// *LongLLMLingua*, 2024, equation 2). A run of the model a passage.
#[derive(Debug, Clone, Copy)]
pub struct QuestionLikelihood<'a> {
    model: &'a dyn TokenLogProbs,
}

impl<'a> QuestionLikelihood<'a> {
    /// Asks this model.
    #[must_use]
    pub fn new(model: &'a dyn TokenLogProbs) -> Self {
        Self { model }
    }
}

impl Relevance for QuestionLikelihood<'_> {
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let one = |passage: &&str| {
            let tokens = self.model.log_probs(passage, question)?;
            let sum: f64 = tokens.iter().map(|(_, p)| f64::from(*p)).sum();
            Ok((sum / tokens.len().max(1) as f64) as f32)
        };
        passages.iter().map(one).collect()
    }
}

/// Several opinions as one: each is brought to mean 0 and deviation 1 over the passages, then weighted and summed.
#[derive(Debug, Clone, Default)]
pub struct Fused<'a> {
    opinions: Vec<(&'a dyn Relevance, f32)>,
}

impl<'a> Fused<'a> {
    /// No opinion yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an opinion with a weight.
    #[must_use]
    pub fn with(mut self, opinion: &'a dyn Relevance, weight: f32) -> Self {
        self.opinions.push((opinion, weight));
        self
    }
}

impl Relevance for Fused<'_> {
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let mut sum = vec![0.0; passages.len()];
        for (opinion, weight) in &self.opinions {
            let scores = opinion.relevance(question, passages)?;
            if scores.len() != passages.len() {
                let message = format!("{} scores of {} passages", scores.len(), passages.len());
                return Err(Error::shape(message));
            }
            sum.iter_mut().zip(standard(&scores)).for_each(|(sum, score)| *sum += weight * score);
        }
        Ok(sum)
    }
}

/// Scores brought to mean 0 and deviation 1; to 0 where all are equal.
pub(super) fn standard(scores: &[f32]) -> Vec<f32> {
    let n = scores.len().max(1) as f32;
    let mean = scores.iter().sum::<f32>() / n;
    let deviation = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f32>() / n).sqrt();
    let scale = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
    scores.iter().map(|score| (score - mean) * scale).collect()
}
