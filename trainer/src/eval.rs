//! Bits per byte of a model on texts, each alone and after the begin token.

use std::path::Path;

use anyhow::{Result, anyhow};
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::llama::Llama;
use crate::model::{Batch, Workspace};
use crate::tokenizer;

/// Sums over the predictions of all texts.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Negative log likelihood.
    pub nats: f64,
    /// Bytes of text that the predicted tokens cover.
    pub bytes: usize,
    /// Number of predictions.
    pub predictions: usize,
    /// Tokens that went to each expert, of each block; none of a Llama.
    pub routed: Vec<Vec<usize>>,
}

impl Score {
    /// Bits per byte of text: comparable between tokenizers.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / (std::f64::consts::LN_2 * self.bytes as f64)
    }

    /// Share of each block's visits that each expert got.
    pub fn shares(&self) -> Vec<Vec<f64>> {
        let share = |block: &Vec<usize>| {
            let all = block.iter().sum::<usize>() as f64;
            block.iter().map(|&visits| visits as f64 / all).collect()
        };
        self.routed.iter().map(share).collect()
    }

    /// The two scores' sums.
    fn plus(mut self, other: Score) -> Score {
        self.nats += other.nats;
        self.bytes += other.bytes;
        self.predictions += other.predictions;
        self.routed.resize(other.routed.len().max(self.routed.len()), vec![]);
        for (mine, theirs) in self.routed.iter_mut().zip(other.routed) {
            mine.resize(theirs.len(), 0);
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
        self
    }

    /// Perplexity per token.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.predictions as f64).exp()
    }
}

/// Scores the first `max_tokens` tokens (begin token included) of every text.
pub fn score(
    model: &Llama,
    tokenizer: &Tokenizer,
    texts: &[String],
    max_tokens: usize,
) -> Result<Score> {
    // Several texts at a time keep the products large.
    let parts: Result<Vec<Score>> = texts
        .par_chunks(8)
        .map_init(
            || Workspace::new(model),
            |workspace, texts| {
                let mut batch = Batch::default();
                let mut score = Score::default();
                for text in texts {
                    let encoded = tokenizer.encode(text.as_str(), true).map_err(|e| anyhow!(e))?;
                    let count = encoded.len().min(max_tokens);
                    let ends = encoded.get_offsets()[1..count].iter().map(|o| o.1);
                    score.bytes += ends.max().unwrap_or(0);
                    batch.push(encoded.get_ids()[..count].iter().copied());
                }
                let losses = workspace.losses(model, &batch);
                score.nats = losses.iter().map(|&l| l as f64).sum();
                score.predictions = losses.len();
                score.routed = workspace.routed().collect();
                Ok(score)
            },
        )
        .collect();
    Ok(parts?.into_iter().fold(Score::default(), Score::plus))
}

/// Perplexity of the best model that knows nothing but how often each token comes in these texts.
pub fn unigram_perplexity(
    tokenizer: &Tokenizer,
    texts: &[String],
    max_tokens: usize,
) -> Result<f64> {
    let (mut counts, mut all) = (vec![0usize; tokenizer.get_vocab_size(true)], 0);
    for text in texts {
        let encoded = tokenizer.encode(text.as_str(), true).map_err(|e| anyhow!(e))?;
        let count = encoded.len().min(max_tokens);
        for &id in &encoded.get_ids()[1..count] {
            counts[id as usize] += 1;
        }
        all += count - 1;
    }
    let shares = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / all as f64);
    Ok(shares.map(|share| -share * share.ln()).sum::<f64>().exp())
}

/// Loads a model folder and scores it.
pub fn score_folder(folder: &Path, texts: &[String], max_tokens: usize) -> Result<Score> {
    let tokenizer = tokenizer::load(&std::fs::read(folder.join("tokenizer.json"))?)?;
    score(&Llama::load(folder)?, &tokenizer, texts, max_tokens)
}
