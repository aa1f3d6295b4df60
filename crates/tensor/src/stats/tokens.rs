//! How long each token's input is.

use std::sync::Arc;

use super::statistic::{Ask, Batch, Statistic, Via};
use crate::Result;
use crate::linalg::Par;
use crate::node::Side;
use crate::usable::Usable;

/// The Euclidean norm of each token's input, in the order of the stream: 4 bytes a token. Sums are f64.
#[derive(Debug, Clone, Default)]
pub struct TokenNorms {
    norms: Vec<f32>,
}

impl Statistic for TokenNorms {
    type Value = Vec<f32>;
    const WHAT: &'static str = "norms of the tokens";

    fn bytes(_: Ask) -> u64 {
        0
    }

    fn begin(_: Ask) -> Self {
        Self::default()
    }

    fn update(&mut self, batch: &Batch<'_>, _: Par) {
        let norm = |row: ndarray::ArrayView1<'_, f32>| {
            row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32
        };
        self.norms.extend(batch.input.rows().into_iter().map(norm));
    }

    /// `other` is of the tokens that follow.
    fn merge(&mut self, other: Self) {
        self.norms.extend(other.norms);
    }

    fn finish(self) -> Result<Vec<f32>> {
        Ok(self.norms)
    }

    fn through(value: &Arc<Vec<f32>>, via: &Via<'_>) -> Usable<Arc<Vec<f32>>> {
        match via.side == Side::Out || via.map.is_orthogonal() {
            true => Usable::Yes(value.clone()),
            false => Usable::no(format!("{} do not go through a map that stretches", Self::WHAT)),
        }
    }
}
