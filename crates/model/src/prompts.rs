//! Models of this crate as what [`tensorpress_tokencomp::text`] asks for: a tokenizer that counts, a language model that
//! scores words, an encoder that compares passages with a question.

mod attends;

use std::ops::Range;

use ndarray::s;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Error, Result, Scratch};
use tensorpress_tokencomp::text::{Piece, Relevance, TokenCount, TokenLogProbs};

use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::layers::math;
use crate::tokenizer::Tokenizer;

impl TokenCount for Tokenizer {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(self.encode_plain(text)?.len())
    }
}

/// A decoder and its tokenizer. Texts longer than the model's context are read in windows that overlap by half.
#[derive(Debug, Clone, Copy)]
pub struct LanguageModel<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
}

impl<'a> LanguageModel<'a> {
    /// A model that scores texts.
    ///
    /// # Errors
    /// `Unsupported` for a context of fewer than 4 tokens.
    pub fn new(decoder: &'a Decoder, tokenizer: &'a Tokenizer) -> Result<Self> {
        if decoder.config().context < 4 {
            let message =
                format!("a context of {} tokens; at least 4 are needed", decoder.config().context);
            return Err(Error::unsupported(message));
        }
        Ok(Self { decoder, tokenizer })
    }

    /// Log-probabilities of the tokens `which` of a sequence, each after those before it that fit the context. A first
    /// token that nothing comes before is as probable as any.
    fn score(&self, ids: &[u32], which: Range<usize>) -> Result<Vec<f32>> {
        let (vocab, context) = (self.decoder.head().vocab(), self.decoder.config().context);
        let mut scratch = Scratch::new(Par::Rayon);
        let mut found = Vec::with_capacity(which.len());
        if which.start == 0 && !which.is_empty() {
            found.push(-(vocab as f32).ln());
        }
        while which.start + found.len() < which.end {
            // The next token to score has at least half a context before it, as far as there is one.
            let next = which.start + found.len();
            let end = which.end.min(next + context / 2);
            let start = end.saturating_sub(context);
            let hidden = self.decoder.hidden(&ids[start..end], &mut scratch)?;
            let rows = hidden.slice(s![next - 1 - start..end - 1 - start, ..]);
            let logits = self.decoder.head().logits(rows, &mut scratch)?;
            for (logits, id) in logits.rows().into_iter().zip(&ids[next..end]) {
                let logits = logits.to_slice().expect("rows of a new matrix");
                let log_prob = f64::from(logits[*id as usize]) - math::log_sum_exp(logits);
                found.push(log_prob as f32);
            }
        }
        Ok(found)
    }
}

impl TokenLogProbs for LanguageModel<'_> {
    fn log_probs(&self, context: &str, text: &str) -> Result<Vec<Piece>> {
        let before = self.tokenizer.encode(context)?;
        let tokens = self.tokenizer.encode_with_offsets(text)?;
        // Only what a window can hold is worth passing on.
        let room = self.decoder.config().context;
        let ids: Vec<u32> = match before.len() > room {
            true => before[..1].iter().chain(&before[before.len() - room + 1..]).copied().collect(),
            false => before,
        };
        let first = ids.len();
        let ids: Vec<u32> = ids.into_iter().chain(tokens.iter().map(|(id, _)| *id)).collect();
        let scores = self.score(&ids, first..ids.len())?;
        Ok(tokens.into_iter().map(|(_, bytes)| bytes).zip(scores).collect())
    }
}

/// An encoder and its tokenizer: passages are as relevant as their embeddings are similar to the question's.
#[derive(Debug, Clone, Copy)]
pub struct SentenceSimilarity<'a> {
    encoder: &'a Encoder,
    tokenizer: &'a Tokenizer,
}

impl<'a> SentenceSimilarity<'a> {
    /// Compares by these embeddings.
    #[must_use]
    pub fn new(encoder: &'a Encoder, tokenizer: &'a Tokenizer) -> Self {
        Self { encoder, tokenizer }
    }
}

impl Relevance for SentenceSimilarity<'_> {
    fn relevance(&self, question: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let question = self.encoder.embed(self.tokenizer, &[question])?;
        let passages = self.encoder.embed(self.tokenizer, passages)?;
        Ok(passages.dot(&question.row(0)).to_vec())
    }
}
