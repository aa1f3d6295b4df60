//! A synthetic recall test: what a model has read it should know when it comes again, if the cache still holds it.

use ndarray::s;
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
    /// Tokens of each.
    pub length: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Passages {
    /// 32 passages of 32 tokens.
    fn default() -> Self {
        Self { count: 32, length: 32, seed: 0 }
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

    /// The passages, and one more. None is longer than fits twice into the model's context behind BOS, and none has a token
    /// that begins or ends a text.
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
        let special = |id: &u32| bos == Some(*id) || config.eos.contains(id);
        let usual: Vec<u32> = (0..config.vocab as u32).filter(|id| !special(id)).collect();
        if usual.is_empty() {
            return Err(Error::invalid("recall: every token begins or ends a text"));
        }
        let mut random = SplitMix::new(self.seed);
        let mut token = || usual[(random.next_f64() * usual.len() as f64) as usize];
        Ok((0..=self.count).map(|_| (0..length).map(|_| token()).collect()).collect())
    }
}

/// What a model gains by having read a passage before: mean over the passages' tokens (but the first of each) of their
/// log-likelihood behind the same passage, less that behind another one, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Recall {
    /// The model itself.
    pub gain: f64,
    /// Behind the cache.
    pub cached: f64,
}

/// A gain below this, in nats a token, is no recall to lose.
const LEAST: f64 = 0.1;

impl Recall {
    /// The share of the gain that is there behind the cache: about 1 where nothing is lost, 0 where it does not matter what
    /// was read. `None` for a model that itself gains less than 0.1 nats.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.gain >= LEAST).then(|| self.cached / self.gain)
    }
}

/// Lets a model read passages behind themselves and behind others, without and with what stands between it and its past.
///
/// # Errors
/// Those of [`Passages::draw`] and [`Judged::hidden`].
pub fn recall(cached: &dyn Judged, passages: Passages, progress: &Progress<'_>) -> Result<Recall> {
    let model = cached.decoder();
    let drawn = passages.draw(model.config())?;
    let gains = each(&drawn[1..], progress, |i, passage, scratch| {
        let mut nll = |judged: &dyn Judged, before: &[u32]| -> Result<f64> {
            let bos = model.config().bos;
            let ids: Vec<u32> = bos.iter().chain(before).chain(passage).copied().collect();
            let hidden = judged.hidden(&ids, scratch)?;
            // The first token of a passage follows from nothing.
            let rows = ids.len() - passage.len()..ids.len() - 1;
            let logits = model.head().logits(hidden.slice(s![rows, ..]), scratch)?;
            let each = logits.rows().into_iter().zip(&passage[1..]);
            let sum = each.map(|(logits, next)| {
                let logits = logits.to_slice().expect("rows of a new matrix");
                math::log_sum_exp(logits) - f64::from(logits[*next as usize])
            });
            Ok(sum.sum::<f64>() / (passage.len() - 1) as f64)
        };
        let mut gain = |judged| Ok(nll(judged, &drawn[i])? - nll(judged, passage)?);
        Ok([gain(model as &dyn Judged)?, gain(cached)?])
    })?;
    let mean = |i: usize| gains.iter().map(|gain| gain[i]).sum::<f64>() / gains.len() as f64;
    Ok(Recall { gain: mean(0), cached: mean(1) })
}
