use serde::{Deserialize, Serialize};
use tensorpress_tensor::Result;
use tensorpress_tensor::node::Json;

use super::describe::described;
use super::{Held, Score};

/// Squared norms of keys and values as what rows of a CUR decomposition are drawn by (CurDKV, Sengupta et al., 2025): each
/// over the sum within its window, then their product, or what else is said.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Leverages {
    /// What they are of.
    pub of: LeverageOf,
    /// Slots whose norms are compared; 0 compares all.
    pub window: usize,
    /// First tokens, which always stay.
    pub sinks: usize,
}

/// What squared norms are taken of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeverageOf {
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Both: their mean.
    Mean,
    /// Both: their product.
    #[default]
    Product,
}

impl Default for Leverages {
    fn default() -> Self {
        Self { of: LeverageOf::Product, window: 16, sinks: 4 }
    }
}

impl Leverages {
    /// Norms of these, compared within windows of this many slots.
    #[must_use]
    pub fn new(of: LeverageOf, window: usize) -> Self {
        Self { of, window, ..Self::default() }
    }

    /// Each number over the sum within its window.
    fn shares(&self, norms: Vec<f64>) -> Vec<f64> {
        if self.window == 0 {
            return norms;
        }
        let share = |window: &[f64]| {
            let sum: f64 = window.iter().sum();
            window.iter().map(|n| if sum > 0.0 { n / sum } else { 0.0 }).collect::<Vec<_>>()
        };
        norms.chunks(self.window).flat_map(share).collect()
    }
}

impl Score for Leverages {
    fn id(&self) -> &'static str {
        "norm_leverages"
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let of = |h| {
            let (keys, values) = held.store.decode(h);
            let norm = |row: tensorpress_tensor::ndarray::ArrayView1<'_, f32>| {
                row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
            };
            let keys = self.shares(keys.rows().into_iter().map(norm).collect());
            let values = self.shares(values.rows().into_iter().map(norm).collect());
            let both = keys.into_iter().zip(values).map(|(k, v)| match self.of {
                LeverageOf::Key => k,
                LeverageOf::Value => v,
                LeverageOf::Mean => (k + v) / 2.0,
                LeverageOf::Product => k * v,
            });
            let both: Vec<f64> = both.collect();
            let sum: f64 = both.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            let sinks = held.store.positions(h).partition_point(|p| *p < self.sinks);
            let mut scores: Vec<f32> = both.into_iter().map(|s| (s / sum) as f32).collect();
            scores[..sinks].fill(f32::INFINITY);
            scores
        };
        let mut scores: Vec<Vec<f32>> = held.heads().map(of).collect();
        super::attention::keep_over(&mut scores);
        Ok(scores)
    }
}
