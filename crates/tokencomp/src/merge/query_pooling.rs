//! Pooling weighted by a question: what *Hybrid-Level Instruction Injection for Video Token Compression in Multi-modal Large
//! Language Models* (HICom), 2025, does in groups, without its trained weights.

use ndarray::ArrayView2;
use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::softmax_weights;
use crate::baseline::Pooling;
use crate::hints::{TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::TokenReduce;
use crate::stage::{TokenPart, reduction_of};

/// Means of neighbours, in groups as even as can be, by softmax(relevance / temperature) x size in each group
/// ([`TokenReduce::weights`]).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueryPooling {
    /// How even the weights are, above 0.
    pub temperature: f64,
}

impl Default for QueryPooling {
    fn default() -> Self {
        Self { temperature: 0.1 }
    }
}

impl Knobs for QueryPooling {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("temperature", &mut self.temperature, 1e-6..=1e6, "how even the weights are")
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "averages neighbours, weighted by their relevance to a question";
    reduction_of::<QueryPooling>("query_pooling", about)
}

impl QueryPooling {
    /// Weights are as even as this.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }
}

impl TokenReduce for QueryPooling {
    fn id(&self) -> &'static str {
        "query_pooling"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let map = Pooling::new().plan(x, hints, keep)?;
        need(hints.relevance, self.id(), "the relevance of the tokens")?;
        Ok(map)
    }

    fn weights(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        map: &TokenMap,
    ) -> Result<Option<Vec<f32>>> {
        hints.check(x, x.nrows())?;
        map.groups(x.nrows())?;
        let relevance = need(hints.relevance, self.id(), "the relevance of the tokens")?;
        let score = |r: &f32| f64::from(*r) / self.temperature;
        let scores: Vec<f64> = relevance.iter().map(score).collect();
        Ok(Some(softmax_weights(map, &scores, hints.sizes)))
    }
}
