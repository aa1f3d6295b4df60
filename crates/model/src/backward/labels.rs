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
    /// The label of a token with these powers of e, in proportion to its probabilities, and their sum.
    pub(super) fn of(
        self,
        window: usize,
        ids: &[u32],
        position: usize,
        powers: &[f32],
        total: f64,
    ) -> Option<u32> {
        let Self::Sampled { seed } = self else { return ids.get(position + 1).copied() };
        let own = SplitMix::new(SplitMix::new(seed).at(window as u64));
        let share = (own.at(position as u64) >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        let (target, mut sum) = (share * total, 0.0);
        let found = powers.iter().position(|power| {
            sum += f64::from(*power);
            sum > target
        });
        // Rounding of the sum may leave a last gap.
        Some(found.unwrap_or_else(|| math::argmax(powers)) as u32)
    }
}
