use ndarray::{Array1, Array2};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::kernels::{Isa, attention};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::describe::described;
use super::{Held, Score};
use crate::rope::Rope;
use crate::statistics::{KvNeeds, QueryMoments};

/// Attention that future queries will pay, were they normal with the mean and covariance of those seen (Expected
/// Attention, Devoto et al., 2025): softmax of `k mu / sqrt(d) + k C k / 2d` over keys after rotary embedding, mu and C
/// rotated by the mean rotation of the future positions; times the norm of the value. The layer's scale takes the place
/// of `1 / sqrt(d)`, and its soft cap is put on these logits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExpectedAttention {
    /// The model's rotary embedding.
    pub rope: Rope,
    /// How many future positions.
    pub future: usize,
    /// First tokens left out of the statistics; they always stay.
    pub sinks: usize,
    /// Use the covariance, not the mean alone.
    pub covariance: bool,
    /// Weigh by the norm of the value.
    pub values: bool,
    /// Added before weighing.
    pub epsilon: f32,
}

/// Their rotations are added up one by one, at every plan.
const MOST_FUTURE: usize = 1 << 16;

/// Whether so many future positions can be.
pub(super) fn check_future(future: usize) -> Result<()> {
    if (1..=MOST_FUTURE).contains(&future) {
        return Ok(());
    }
    Err(Error::invalid(format!("future = {future}: allowed are 1 to {MOST_FUTURE} positions")))
}

impl ExpectedAttention {
    /// 512 future positions, 4 sinks, covariance, norms of values, no epsilon.
    #[must_use]
    pub fn new(rope: Rope) -> Self {
        Self { rope, future: 512, sinks: 4, covariance: true, values: true, epsilon: 0.0 }
    }

    /// The mean of the rotations to the future positions.
    fn rotation(&self, next: usize) -> Array2<f64> {
        let dim = self.rope.dim();
        let mut rotation = Array2::zeros((dim, dim));
        let turns = self.rope.mean_rotation(next..next + self.future);
        for (i, (cos, sin)) in turns.into_iter().enumerate() {
            let j = i + dim / 2;
            (rotation[[i, i]], rotation[[j, j]]) = (f64::from(cos), f64::from(cos));
            (rotation[[i, j]], rotation[[j, i]]) = (-f64::from(sin), f64::from(sin));
        }
        rotation
    }
}

impl Score for ExpectedAttention {
    fn id(&self) -> &'static str {
        "expected_attention"
    }

    fn needs(&self) -> KvNeeds {
        let moments = QueryMoments { from: self.sinks, rope: self.rope.clone() };
        KvNeeds { moments: Some(moments), ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        let Self { future, epsilon, .. } = *self;
        check_future(future)?;
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(Error::invalid(format!(
                "epsilon = {epsilon}: allowed are finite numbers from 0 on"
            )));
        }
        self.rope.check()
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let (shape, next) = (held.store.shape(), held.store.len());
        let scoring = held.store.scoring();
        let scale = scoring.scale.map_or((shape.head_dim as f64).sqrt().recip(), f64::from);
        let rotation = self.rotation(next);
        let mut scores = Vec::with_capacity(shape.kv_heads);
        for h in held.heads() {
            let (keys, values) = held.store.decode(h);
            let keys = keys.mapv(f64::from);
            let sinks = held.store.positions(h).partition_point(|p| *p < self.sinks);
            let mut sum = vec![0.0f32; keys.nrows()];
            for q in h * shape.group()..(h + 1) * shape.group() {
                let (mean, covariance) = held.statistics.moments(q)?;
                let mean = rotation.dot(&Array1::from(mean));
                let mut logits = keys.dot(&mean) * scale;
                if self.covariance {
                    let covariance = rotation.dot(&covariance).dot(&rotation.t());
                    let spread = (keys.dot(&covariance) * &keys).sum_axis(ndarray::Axis(1));
                    logits += &(spread * (scale * scale / 2.0));
                }
                if let Some(cap) = scoring.softcap.map(f64::from) {
                    logits.mapv_inplace(|l| cap * (l / cap).tanh());
                }
                let mut logits: Vec<f32> = logits.iter().skip(sinks).map(|l| *l as f32).collect();
                attention::softmax(Isa::detect(), &mut logits, 1.0);
                for (sum, w) in sum[sinks..].iter_mut().zip(logits) {
                    *sum += w / shape.group() as f32;
                }
            }
            for (sum, v) in sum.iter_mut().zip(values.rows()) {
                let norm = if self.values { v.dot(&v).sqrt() } else { 1.0 };
                *sum = (*sum + if self.values { self.epsilon } else { 0.0 }) * norm;
            }
            sum[..sinks].fill(f32::INFINITY);
            scores.push(sum);
        }
        super::attention::keep_over(&mut scores);
        Ok(scores)
    }
}
