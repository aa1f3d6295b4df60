//! A synthetic recall test: what a model reads a second time it should know, if the cache still holds the first.

use ndarray::{Array2, s};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{Error, Result};

use crate::config::Config;
use crate::eval::{Judged, Progress, each};
use crate::layers::math;

/// Passages of tokens drawn at random: nothing but the past tells what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Passages {
    /// How many.
    pub count: usize,
    /// Tokens of each; it is read twice, after BOS.
    pub length: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Passages {
    /// 16 passages of 64 tokens.
    fn default() -> Self {
        Self { count: 16, length: 64, seed: 0 }
    }
}

impl Passages {
    /// Sets how many passages there are.
    #[must_use]
    pub fn with_count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// Sets how long they are.
    #[must_use]
    pub fn with_length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// BOS, and every passage twice. No passage is longer than fits twice into the model's context, and none has a
    /// token that begins or ends a text.
    ///
    /// # Errors
    /// `InvalidArgument` unless there is a passage, of at least 2 tokens.
    pub fn draw(&self, config: &Config) -> Result<Vec<Vec<u32>>> {
        let bos = config.bos;
        let length = self.length.min(config.context.saturating_sub(bos.iter().count()) / 2);
        if self.count == 0 || length < 2 {
            let Self { count, .. } = self;
            let message = format!("recall: {count} passages of {length} tokens: at least 1 of 2");
            return Err(Error::invalid(message));
        }
        let mut random = SplitMix::new(self.seed);
        let special = |id: &u32| bos == Some(*id) || config.eos.contains(id);
        let mut token = || loop {
            let id = (random.next_f64() * config.vocab as f64) as u32;
            if !special(&id) {
                return id;
            }
        };
        let mut draw = || {
            let passage: Vec<u32> = (0..length).map(|_| token()).collect();
            bos.iter().chain(&passage).chain(&passage).copied().collect()
        };
        Ok((0..self.count).map(|_| draw()).collect())
    }
}

/// How much of what it read a model knows behind a cache; negative log-likelihoods are natural, means over the passages'
/// tokens but the first of each.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Recall {
    /// Of the first reading, by the model itself.
    pub first: f64,
    /// Of the second reading, by the model itself.
    pub second: f64,
    /// Of the second reading, behind the cache.
    pub cached: f64,
}

/// A gain below this, in nats a token, is no recall to lose.
const LEAST: f64 = 0.1;

impl Recall {
    /// What the model itself gains by having read a passage before, in nats a token.
    #[must_use]
    pub fn gain(&self) -> f64 {
        self.first - self.second
    }

    /// The share of that gain which is there behind the cache: 1 where nothing is lost, 0 or less where the second reading
    /// is no better than a first. `None` for a model that itself gains less than 0.1 nats.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.gain() >= LEAST).then(|| (self.first - self.cached) / self.gain())
    }
}

/// Lets a model read passages twice, without and with what stands between it and its past.
///
/// # Errors
/// Those of [`Passages::draw`] and [`Judged::hidden`].
pub fn recall(cached: &dyn Judged, passages: Passages, progress: &Progress<'_>) -> Result<Recall> {
    let model = cached.decoder();
    let sequences = passages.draw(model.config())?;
    let start = usize::from(model.config().bos.is_some());
    let sums = each(&sequences, progress, |_, ids, scratch| {
        let length = (ids.len() - start) / 2;
        let exact = model.hidden(ids, scratch)?;
        let ours = cached.hidden(ids, scratch)?;
        let mut nll = |hidden: &Array2<f32>, from: usize| -> Result<f64> {
            // The first token of a passage follows from nothing, in either reading.
            let rows = from..from + length - 1;
            let logits = model.head().logits(hidden.slice(s![rows.clone(), ..]), scratch)?;
            let each = logits.rows().into_iter().zip(&ids[rows.start + 1..]);
            let sum = each.map(|(logits, next)| {
                let logits = logits.to_slice().expect("rows of a new matrix");
                math::log_sum_exp(logits) - f64::from(logits[*next as usize])
            });
            Ok(sum.sum::<f64>() / (length - 1) as f64)
        };
        Ok([nll(&exact, start)?, nll(&exact, start + length)?, nll(&ours, start + length)?])
    })?;
    let mean = |i: usize| sums.iter().map(|sums| sums[i]).sum::<f64>() / sums.len() as f64;
    Ok(Recall { first: mean(0), second: mean(1), cached: mean(2) })
}
