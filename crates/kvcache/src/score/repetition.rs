use std::sync::Arc;

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result, ndarray};

use super::describe::described;
use super::{Held, Score};
use crate::statistics::KvNeeds;

/// How much of a token saying the context again needs: [`super::Reconstruction`]. The policy of a cache waits until that
/// has been done ([`crate::Cache::begin_repetition`]), looks once, and leaves alone what comes after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Repetition {
    /// Tokens of the context that are said at a time, at least 1.
    pub chunk: usize,
    /// The measure of KVzip+: attention is weighed by the norms of hidden states and of what values become.
    pub plus: bool,
    /// The layer's output projection `[hidden, heads * value_dim]`, which `plus` needs. It belongs to the model and is not
    /// in descriptions: who says contexts again behind a cache that was read gives a reader that has it
    /// ([`crate::KvRegistry::with_score`]).
    #[serde(skip)]
    pub output: Option<Arc<Array2<f32>>>,
}

impl Default for Repetition {
    /// KVzip: 2048 tokens at a time.
    fn default() -> Self {
        Self { chunk: 2048, plus: false, output: None }
    }
}

impl Repetition {
    /// Sets how many tokens are said at a time.
    #[must_use]
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = tokens;
        self
    }

    /// Takes the measure of KVzip+, with the layer's output projection.
    #[must_use]
    pub fn with_plus(mut self, output: Arc<Array2<f32>>) -> Self {
        (self.plus, self.output) = (true, Some(output));
        self
    }
}

impl Score for Repetition {
    fn id(&self) -> &'static str {
        "reconstruction"
    }

    fn needs(&self) -> KvNeeds {
        KvNeeds { repetition: Some(self.clone()), ..KvNeeds::default() }
    }

    fn check(&self) -> Result<()> {
        match self.chunk {
            0 => Err(Error::invalid("chunk = 0: at least 1")),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> Json {
        described(self.id(), self)
    }

    fn score(&self, held: Held<'_>) -> Result<Vec<Vec<f32>>> {
        held.statistics.peaks.clone().ok_or_else(|| {
            Error::missing_calibration("the context was not said again: a repetition must end now")
        })
    }
}
