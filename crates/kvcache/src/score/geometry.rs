use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Result, ndarray};

use super::describe::described;
use super::{Held, Score};

/// Minus the norm of the key (Knorm, Devoto et al., 2024): small keys draw attention.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyNorm;

impl Score for KeyNorm {
    fn id(&self) -> &'static str {
        "knorm"
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let of = |h| held.keys(h).rows().into_iter().map(|k| -k.dot(&k).sqrt()).collect();
        Ok(held.heads().map(of).collect())
    }
}

/// Minus the cosine with the mean direction of the keys (KeyDiff, Park et al., 2025): unusual keys stay.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyDifference;

impl Score for KeyDifference {
    fn id(&self) -> &'static str {
        "keydiff"
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let of = |h| {
            let mut keys = held.keys(h);
            for mut key in keys.rows_mut() {
                let norm = key.dot(&key).sqrt().max(1e-12);
                key /= norm;
            }
            let anchor = keys.mean_axis(ndarray::Axis(0)).unwrap_or_default();
            let norm = anchor.dot(&anchor).sqrt().max(1e-8);
            keys.rows().into_iter().map(|k| -k.dot(&anchor) / norm).collect()
        };
        Ok(held.heads().map(of).collect())
    }
}

/// The position: with sinks, StreamingLLM (Xiao et al., 2024).
#[derive(Debug, Clone, Copy, Default)]
pub struct Recency;

impl Score for Recency {
    fn id(&self) -> &'static str {
        "recency"
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let of = |h| held.store.positions(h).into_iter().map(|p| p as f32).collect();
        Ok(held.heads().map(of).collect())
    }
}

/// A number that depends on seed, head and position alone: what every score must beat.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Random {
    /// Seed.
    pub seed: u64,
}

impl Score for Random {
    fn id(&self) -> &'static str {
        "random"
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let number = |h: usize, p: usize| {
            let seed =
                self.seed ^ (h as u64) << 40 ^ (p as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            tensorpress_tensor::linalg::SplitMix::new(seed).next_f64() as f32
        };
        let of = |h| held.store.positions(h).into_iter().map(|p| number(h, p)).collect();
        Ok(held.heads().map(of).collect())
    }
}
