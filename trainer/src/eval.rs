//! Bits per byte of a model on texts, each alone and after the begin token.

use std::path::Path;

use anyhow::{Result, anyhow};
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::llama::Llama;
use crate::model::{Batch, Workspace};
use crate::tokenizer;

/// Sums over the predictions of all texts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    /// Negative log likelihood.
    pub nats: f64,
    /// Bytes of text that the predicted tokens cover.
    pub bytes: usize,
    /// Number of predictions.
    pub predictions: usize,
}

impl Score {
    /// Bits per byte of text: comparable between tokenizers.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / (std::f64::consts::LN_2 * self.bytes as f64)
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
                Ok(score)
            },
        )
        .collect();
    Ok(parts?.into_iter().fold(Score::default(), |a, b| Score {
        nats: a.nats + b.nats,
        bytes: a.bytes + b.bytes,
        predictions: a.predictions + b.predictions,
    }))
}

/// Loads a model folder and scores it.
pub fn score_folder(folder: &Path, texts: &[String], max_tokens: usize) -> Result<Score> {
    let tokenizer = tokenizer::load(&std::fs::read(folder.join("tokenizer.json"))?)?;
    score(&Llama::load(folder)?, &tokenizer, texts, max_tokens)
}
