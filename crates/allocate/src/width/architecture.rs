use serde::{Deserialize, Serialize};
use tensorpress_tensor::Result;

use super::Genetic;

/// The shape of a transformer encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Architecture {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Heads of attention, which share the width.
    pub heads: usize,
    /// Width inside the MLP.
    pub ffn: usize,
}

impl Architecture {
    /// A shape.
    #[must_use]
    pub fn new(vocab: usize, layers: usize, hidden: usize, heads: usize, ffn: usize) -> Self {
        Self { vocab, layers, hidden, heads, ffn }
    }

    /// Its weights, as RoBERTa has them: tokens, `positions` and one type in the embedding; four square matrices, two of the
    /// MLP and two norms a layer, all with biases; and the pooler.
    #[must_use]
    pub fn parameters(&self, positions: usize) -> f64 {
        let [v, l, h, f] = [self.vocab, self.layers, self.hidden, self.ffn].map(|n| n as f64);
        let embedding = (v + positions as f64 + 1.0) * h + 2.0 * h;
        let layer = 4.0 * (h * h + h) + 2.0 * h * f + f + h + 4.0 * h;
        embedding + l * layer + h * h + h
    }

    /// Operations for so many tokens, a product and a sum counted as two: the matrices, the scores and their mixing, and five
    /// for each score of a head in the softmax. Rows of the embedding are looked up, not multiplied.
    #[must_use]
    pub fn flops(&self, tokens: usize) -> f64 {
        let [l, h, n, f] = [self.layers, self.hidden, self.heads, self.ffn].map(|n| n as f64);
        let s = tokens as f64;
        l * s * (8.0 * h * h + 4.0 * h * f + 4.0 * h * s + 5.0 * n * s)
    }

    /// Whether the heads can share the width.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let Self { vocab, layers, hidden, heads, ffn } = *self;
        [vocab, layers, hidden, heads, ffn].iter().all(|n| *n > 0) && hidden % heads == 0
    }
}

/// What each part of an architecture may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Space {
    vocab: Vec<usize>,
    layers: Vec<usize>,
    hidden: Vec<usize>,
    heads: Vec<usize>,
    ffn: Vec<usize>,
    tokens: usize,
    weight: f64,
}

impl Space {
    /// The space of all combinations.
    #[must_use]
    pub fn new(
        vocab: impl Into<Vec<usize>>,
        layers: impl Into<Vec<usize>>,
        hidden: impl Into<Vec<usize>>,
        heads: impl Into<Vec<usize>>,
        ffn: impl Into<Vec<usize>>,
    ) -> Self {
        let (vocab, layers, hidden) = (vocab.into(), layers.into(), hidden.into());
        Self {
            vocab,
            layers,
            hidden,
            heads: heads.into(),
            ffn: ffn.into(),
            tokens: 512,
            weight: 4.0,
        }
    }

    /// Sets the tokens of an input, which count for positions and operations. Default 512.
    #[must_use]
    pub fn with_tokens(mut self, tokens: usize) -> Self {
        self.tokens = tokens;
        self
    }

    /// Sets the bytes of a weight. Default 4.
    #[must_use]
    pub fn with_weight_bytes(mut self, bytes: f64) -> Self {
        self.weight = bytes;
        self
    }

    /// How many levels each part has.
    #[must_use]
    pub fn levels(&self) -> [usize; 5] {
        [&self.vocab, &self.layers, &self.hidden, &self.heads, &self.ffn].map(Vec::len)
    }

    /// The architecture of a level of each part; nothing where a part has no such level.
    #[must_use]
    pub fn at(&self, levels: &[usize]) -> Option<Architecture> {
        let [vocab, layers, hidden, heads, ffn] = levels else { return None };
        Some(Architecture::new(
            *self.vocab.get(*vocab)?,
            *self.layers.get(*layers)?,
            *self.hidden.get(*hidden)?,
            *self.heads.get(*heads)?,
            *self.ffn.get(*ffn)?,
        ))
    }

    /// Compressor's fitness: operations, as what a model can do goes with them, in 10⁹, less what the size is off its target
    /// by, in megabytes. Minus infinity where the heads can not share the width.
    #[must_use]
    pub fn fitness(&self, architecture: &Architecture, megabytes: f64) -> f64 {
        if !architecture.is_valid() {
            return f64::NEG_INFINITY;
        }
        let size = architecture.parameters(self.tokens) * self.weight / 1e6;
        architecture.flops(self.tokens) / 1e9 - (size - megabytes).abs()
    }

    /// The fittest architecture that the search finds, with its fitness.
    ///
    /// # Errors
    /// As [`Genetic::search`]: `InvalidArgument` for a part without levels; `Numerical` where the target is NaN.
    pub fn search(&self, search: &Genetic, megabytes: f64) -> Result<(Architecture, f64)> {
        let of = |levels: &[usize]| self.at(levels).unwrap_or(Architecture::new(0, 0, 0, 0, 0));
        let mut fitness = |levels: &[usize]| Ok(self.fitness(&of(levels), megabytes));
        let (levels, fitness) = search.search(&self.levels(), &mut fitness)?;
        Ok((of(&levels), fitness))
    }
}
