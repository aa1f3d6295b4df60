use std::sync::Arc;

use ndarray::{Array2, ArrayView2, s};
use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, linalg, ndarray};

use super::{Held, Score};
use crate::statistics::KvNeeds;

/// What tokens do to the layer's output (CriticalKV, Feng et al., 2025): a share of the budget goes by another score, the
/// rest by that score, plus epsilon, times the norm of what the output projection makes of the value.
#[derive(Debug, Clone)]
pub struct Critical {
    inner: Arc<dyn Score>,
    output: Arc<Array2<f32>>,
    first: f64,
    epsilon: f32,
}

impl Critical {
    /// Half of the budget by this score, epsilon 1e-4; `output` is the projection `[hidden, heads * value_dim]`.
    #[must_use]
    pub fn new(inner: Arc<dyn Score>, output: Arc<Array2<f32>>) -> Self {
        Self { inner, output, first: 0.5, epsilon: 1e-4 }
    }

    /// Sets the share of the budget that goes by the score itself.
    #[must_use]
    pub fn with_first(mut self, share: f64) -> Self {
        self.first = share;
        self
    }

    /// Sets what is added before norms count.
    #[must_use]
    pub fn with_epsilon(mut self, epsilon: f32) -> Self {
        self.epsilon = epsilon;
        self
    }

    fn weighed(&self, held: Held<'_>, scores: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let shape = held.store.shape();
        let of = |(h, scores): (usize, &Vec<f32>)| {
            let values = held.store.values(h);
            let norms = output_norms(values.view(), self.output.view(), shape.group(), h)?;
            // What shall not stay shall not, whatever its norm.
            let of = |(s, n): (&f32, f32)| match *s {
                f32::NEG_INFINITY => *s,
                s => (s + self.epsilon) * n,
            };
            Ok(scores.iter().zip(norms).map(of).collect())
        };
        scores.iter().enumerate().map(of).collect()
    }
}

/// Mean over the query heads of a group of the L1 norm of what the output projection `[hidden, heads * value_dim]` makes of
/// values `[slots, value_dim]` of head `head` of keys.
///
/// # Errors
/// `ShapeMismatch` for a projection of other heads.
pub fn output_norms(
    values: ArrayView2<'_, f32>,
    output: ArrayView2<'_, f32>,
    group: usize,
    head: usize,
) -> Result<Vec<f32>> {
    let mut norms = vec![0.0; values.nrows()];
    for made in outputs(values, output, group, head)? {
        for (norm, row) in norms.iter_mut().zip(made.rows()) {
            *norm += row.iter().map(|x| x.abs()).sum::<f32>() / group as f32;
        }
    }
    Ok(norms)
}

/// What the output projection `[hidden, heads * value_dim]` makes of values `[slots, value_dim]` of head `head` of keys:
/// `[slots, hidden]` for each query head of the group.
pub(super) fn outputs<'a>(
    values: ArrayView2<'a, f32>,
    output: ArrayView2<'a, f32>,
    group: usize,
    head: usize,
) -> Result<impl Iterator<Item = Array2<f32>> + 'a> {
    let dim = values.ncols();
    if output.ncols() < (head + 1) * group * dim || group == 0 {
        return Err(Error::shape(format!(
            "output projection {:?}: no {group} query heads of {dim} channels for head {head}",
            output.dim()
        )));
    }
    Ok((head * group..(head + 1) * group).map(move |q| {
        let part = output.slice(s![.., q * dim..(q + 1) * dim]);
        let mut made = Array2::zeros((values.nrows(), output.nrows()));
        linalg::matmul_nt(values, part, made.view_mut(), false, linalg::Par::Seq);
        made
    }))
}

impl Score for Critical {
    fn id(&self) -> &'static str {
        "critical"
    }

    fn needs(&self) -> KvNeeds {
        self.inner.needs()
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.first) {
            return Err(Error::invalid(format!("first = {}: allowed are 0 to 1", self.first)));
        }
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            let epsilon = self.epsilon;
            return Err(Error::invalid(format!("epsilon = {epsilon}: numbers from 0 on")));
        }
        self.inner.check()
    }

    /// Without the projection, which belongs to the model: who reads such a cache gives a reader that has it
    /// ([`crate::KvRegistry::with_score`]).
    fn describe(&self) -> Json {
        json!({
            "id": self.id(),
            "of": self.inner.describe(),
            "first": self.first,
            "epsilon": self.epsilon,
        })
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        self.weighed(held, &self.inner.score(held)?)
    }

    fn score_within(&self, held: Held<'_>, tokens: usize) -> Result<Vec<Vec<f32>>> {
        let scores = self.inner.score_within(held, tokens)?;
        let mut weighed = self.weighed(held, &scores)?;
        let first = (tokens as f64 * self.first) as usize;
        for (weighed, scores) in weighed.iter_mut().zip(&scores) {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(b.cmp(a)));
            order.iter().take(first).for_each(|slot| weighed[*slot] = f32::INFINITY);
        }
        super::attention::keep_over(&mut weighed);
        Ok(weighed)
    }
}
