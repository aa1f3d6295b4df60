use crate::factor::{self, Triangle, cholesky, solve_triangular};
use ndarray::{Array1, Array2};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::describe::described;
use super::{Held, Score};
use crate::rope::Rope;
use crate::statistics::{KvNeeds, QueryMoments};

/// What a token adds to the capacity of what attention can say (CapKV, 2026): with weights w_i = exp(tau cos(k_i, mu)) of
/// the mean query mu, turned to the positions to come, and A = I + sum w_i v_i v_iᵀ, the leverage w_i v_iᵀ A⁻¹ v_i; the
/// mean over the query heads of a group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Capacity {
    /// The model's rotary embedding.
    pub rope: Rope,
    /// Sharpness of the weights.
    pub tau: f64,
    /// How many future positions.
    pub future: usize,
    /// First tokens, left out and kept.
    pub sinks: usize,
}

impl Capacity {
    /// tau 5, 512 positions to come, 4 sinks.
    #[must_use]
    pub fn new(rope: Rope) -> Self {
        Self { rope, tau: 5.0, future: 512, sinks: 4 }
    }

    /// Leverages of the values of one query head.
    fn of_query_head(
        &self,
        mean: &[f64],
        keys: &Array2<f64>,
        values: &Array2<f64>,
    ) -> Result<Vec<f64>> {
        let anchor = normal(Array1::from(mean.to_vec()));
        let logits: Vec<f64> = keys
            .rows()
            .into_iter()
            .map(|k| self.tau * normal(k.to_owned()).dot(&anchor).clamp(-1.0, 1.0))
            .collect();
        let most = logits.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let weights: Vec<f64> = logits.iter().map(|l| (l - most).exp()).collect();
        let mut scaled = values.clone();
        for (mut row, w) in scaled.rows_mut().into_iter().zip(&weights) {
            row *= (w + EPSILON).sqrt();
        }
        let capacity = scaled.t().dot(&scaled) + Array2::<f64>::eye(values.ncols());
        let factor = cholesky(capacity, Par::Seq)?;
        let mut solved = values.t().to_owned();
        solve_triangular(factor.view(), Triangle::Lower, solved.view_mut(), Par::Seq)?;
        Ok(solved.columns().into_iter().zip(weights).map(|(c, w)| w * c.dot(&c)).collect())
    }
}

/// Keeps a token's direction in A though its weight vanishes.
const EPSILON: f64 = 1e-6;

fn normal(x: Array1<f64>) -> Array1<f64> {
    let norm = x.dot(&x).sqrt().max(1e-12);
    x / norm
}

impl Score for Capacity {
    fn id(&self) -> &'static str {
        "capacity"
    }

    fn needs(&self) -> KvNeeds {
        let moments = QueryMoments { from: self.sinks, rope: self.rope.clone() };
        KvNeeds { moments: Some(moments), ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        factor::check(self.id())?;
        super::expected::check_future(self.future)?;
        if !(self.tau.is_finite() && self.tau >= 0.0) {
            return Err(Error::invalid(format!(
                "tau = {}: allowed are numbers from 0 on",
                self.tau
            )));
        }
        self.rope.check()
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        let (shape, next) = (held.store.shape(), held.store.len());
        let mut scores = Vec::with_capacity(shape.kv_heads);
        for h in held.heads() {
            let (keys, values) = held.store.decode(h);
            let sinks = held.store.positions(h).partition_point(|p| *p < self.sinks);
            let behind = ndarray::s![sinks.., ..];
            let (keys, values) =
                (keys.slice(behind).mapv(f64::from), values.slice(behind).mapv(f64::from));
            let mut sum = vec![f32::INFINITY; sinks + keys.nrows()];
            sum[sinks..].fill(0.0);
            for q in h * shape.group()..(h + 1) * shape.group() {
                let (mut mean, _) = held.statistics.moments(q)?;
                self.rope.turn_by_mean(&mut mean, next..next + self.future);
                let leverages = self.of_query_head(&mean, &keys, &values)?;
                for (sum, leverage) in sum[sinks..].iter_mut().zip(leverages) {
                    *sum += (leverage / shape.group() as f64) as f32;
                }
            }
            scores.push(sum);
        }
        super::attention::keep_over(&mut scores);
        Ok(scores)
    }
}
