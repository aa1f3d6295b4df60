//! What the loss is of.

use tensorpress_tensor::linalg::SplitMix;

use crate::layers::math;

/// Which token each prediction is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Labels {
    /// One drawn from the prediction itself, for every token: by seed, number of the window and position, whatever else
    /// runs. Gradients are then 0 in the mean, and their second moments the Fisher information.
    Sampled {
        /// Seed of the draws.
        seed: u64,
    },
    /// The next token of the window; the last has none.
    Next,
}

impl Labels {
    /// The label of a token with these logits; `total` is the sum of exp(logit - top).
    pub(super) fn of(
        self,
        window: usize,
        ids: &[u32],
        position: usize,
        logits: &[f32],
        [top, total]: [f64; 2],
    ) -> Option<u32> {
        let Self::Sampled { seed } = self else { return ids.get(position + 1).copied() };
        let own = SplitMix::new(SplitMix::new(seed).at(window as u64));
        let share = (own.at(position as u64) >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        let (target, mut sum) = (share * total, 0.0);
        let found = logits.iter().position(|logit| {
            sum += f64::from(math::exp(logit - top as f32));
            sum > target
        });
        // Rounding of the sum may leave a last gap.
        Some(found.unwrap_or_else(|| math::argmax(logits)) as u32)
    }
}
