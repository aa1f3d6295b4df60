//! What a layer's attention asks beyond `softmax(q k^T / sqrt(head_dim)) v`.

use ndarray::{ArrayView1, ArrayView3, s};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::kernels::{Isa, attention};
use tensorpress_tensor::{Error, Result, ndarray};

use super::{Causal, KvShape};

/// How products of queries and keys become weights. With `p` the position of the query and `j` that of a key,
///
/// ```text
/// score  = scale * (q . k)
/// score  = softcap * tanh(score / softcap)                     where there is a cap
/// score += -slope[head] * (p - j) + bias[head, query, j]       where there are slopes, a bias
/// score  = -inf                                                where j > p, or out of the window or the chunk
/// weight = exp(score) / (exp(sink[head]) + sum of exp(score))  where there are sinks
/// ```
///
/// Windows differ from call to call and are said there ([`Causal`]), so is the bias ([`Bias`]). Nothing here changes what
/// a store holds. Where nothing but the scale is given, attention takes the path of models without any of this.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Scoring {
    /// Takes the place of `1 / sqrt(head_dim)`; positive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// Scores stay within plus and minus this (Gemma 2), positive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f32>,
    /// A query at position p sees keys from `p / chunk * chunk` on (Llama 4), at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<usize>,
    /// A logit for every query head that takes its share of the weights and has no value (gpt-oss).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sinks: Vec<f32>,
    /// How much the score of a key falls with each token of distance, for every query head (ALiBi, Press et al., 2022).
    /// Models that add `slope * j` to q . k before they scale (Falcon) give `scale * slope`; what depends on the query
    /// alone cancels in the softmax, unless there are sinks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slopes: Vec<f32>,
}

impl Scoring {
    /// Sets what takes the place of `1 / sqrt(head_dim)`.
    #[must_use]
    pub fn with_scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Sets what scores stay within.
    #[must_use]
    pub fn with_softcap(mut self, cap: f32) -> Self {
        self.softcap = Some(cap);
        self
    }

    /// Sets how many tokens make a chunk.
    #[must_use]
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = Some(tokens);
        self
    }

    /// Sets a logit without a value for every query head.
    #[must_use]
    pub fn with_sinks(mut self, logits: Vec<f32>) -> Self {
        self.sinks = logits;
        self
    }

    /// Sets a slope for every query head.
    #[must_use]
    pub fn with_slopes(mut self, slopes: Vec<f32>) -> Self {
        self.slopes = slopes;
        self
    }

    /// Whether heads of this shape can be scored so.
    ///
    /// # Errors
    /// `ShapeMismatch` for sinks or slopes of another number of heads, `InvalidArgument` for what is not finite, or not
    /// positive where it must be.
    pub fn check(&self, shape: KvShape) -> Result<()> {
        for (key, value) in [("scale", self.scale), ("softcap", self.softcap)] {
            if let Some(v) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return Err(Error::invalid(format!("{key} = {v}: allowed are positive numbers")));
            }
        }
        if self.chunk == Some(0) {
            return Err(Error::invalid("chunk = 0: at least 1"));
        }
        for (key, values) in [("sinks", &self.sinks), ("slopes", &self.slopes)] {
            if !values.is_empty() && values.len() != shape.heads {
                let (found, heads) = (values.len(), shape.heads);
                return Err(Error::shape(format!("{key} of {found} heads, {heads} expected")));
            }
            if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                return Err(Error::invalid(format!("{key}: {v}: allowed are finite numbers")));
            }
        }
        Ok(())
    }

    /// The scale of heads of so many channels.
    #[must_use]
    pub fn scale_of(&self, head_dim: usize) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt())
    }

    /// Weights are the softmax of the scaled products of what is seen.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.softcap.is_none() && self.sinks.is_empty() && self.slopes.is_empty()
    }

    /// Products become scores, but for the bias and what is hidden: those of a query of `head` at `at` and of keys at
    /// `positions`.
    pub fn score(
        &self,
        scale: f32,
        head: usize,
        at: usize,
        positions: impl Iterator<Item = usize>,
        products: &mut [f32],
    ) {
        match self.softcap {
            Some(cap) => attention::softcap(Isa::detect(), products, scale, cap),
            None => products.iter_mut().for_each(|x| *x *= scale),
        }
        if let Some(slope) = self.slopes.get(head) {
            for (x, p) in products.iter_mut().zip(positions) {
                *x -= slope * (at as i64 - p as i64) as f32;
            }
        }
    }

    /// Scores become weights; the share of the head's sink is nobody's.
    pub fn soften(&self, head: usize, scores: &mut Vec<f32>) {
        let sink = self.sinks.get(head);
        scores.extend(sink);
        attention::softmax(Isa::detect(), scores, 1.0);
        scores.truncate(scores.len() - usize::from(sink.is_some()));
    }
}

/// What is added to the scores of one call: a mask where it is minus infinity, such as that of a tree of drafts, whose
/// branches do not see each other. What a query does not see anyway ([`Causal`]) stays unseen.
///
/// ```
/// use tensorpress_kvcache::{Bias, Causal, KvShape, KvStore, Layer, StoreForm};
/// use tensorpress_tensor::ndarray::{Array3, array};
/// use tensorpress_tensor::{DType, Scratch};
///
/// // Two texts that go on after the same two tokens: tokens 2 and 3 are rivals.
/// let mut layer = Layer::new(KvShape::new(1, 1, 2)?, StoreForm::Float(DType::F32))?;
/// let values = Array3::from_shape_fn((4, 1, 2), |(t, _, _)| t as f32);
/// layer.append(Array3::zeros((4, 1, 2)).view(), values.view())?;
/// let hidden = f32::NEG_INFINITY;
/// let tree = array![[[0.0, hidden], [hidden, 0.0]]];
/// let (queries, mut out) = (Array3::zeros((2, 1, 2)), Array3::zeros((2, 1, 2)));
/// let bias = Bias { values: tree.view(), from: 2 };
/// let scratch = &mut Scratch::default();
/// layer.attend_with(queries.view(), Causal::from(2), Some(bias), out.view_mut(), scratch, None)?;
/// assert_eq!((out[[0, 0, 0]], out[[1, 0, 0]]), ((0.0 + 1.0 + 2.0) / 3.0, (0.0 + 1.0 + 3.0) / 3.0));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    /// `[heads, tokens, positions]`, or `[1, tokens, positions]` for the same in all heads; finite or minus infinity.
    pub values: ArrayView3<'a, f32>,
    /// The position that the first column belongs to. Positions, not slots: what was evicted has a column still. Nothing
    /// is added to keys without a column.
    pub from: usize,
}

impl Bias<'_> {
    /// The same for as long as this is borrowed.
    pub(crate) fn borrow(&self) -> Bias<'_> {
        Bias { values: self.values.view(), from: self.from }
    }

    pub(crate) fn check(&self, heads: usize, tokens: usize) -> Result<()> {
        let (found, rows, columns) = self.values.dim();
        if !(found == 1 || found == heads) || rows != tokens {
            return Err(Error::shape(format!(
                "bias [{found}, {rows}, {columns}]: [1 or {heads}, {tokens}, positions] expected"
            )));
        }
        if let Some(v) = self.values.iter().find(|v| v.is_nan() || **v == f32::INFINITY) {
            return Err(Error::numerical(format!("bias: {v}: finite or minus infinity")));
        }
        Ok(())
    }

    /// Adds the row of a query to the scores of keys at `positions`.
    pub(crate) fn add(
        &self,
        head: usize,
        token: usize,
        positions: impl Iterator<Item = usize>,
        scores: &mut [f32],
    ) {
        let head = head.min(self.values.dim().0 - 1);
        let row: ArrayView1<'_, f32> = self.values.slice(s![head, token, ..]);
        for (x, p) in scores.iter_mut().zip(positions) {
            if let Some(b) = p.checked_sub(self.from).and_then(|column| row.get(column)) {
                *x += b;
            }
        }
    }
}

/// What the queries of one call see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight {
    pub(crate) causal: Causal,
    pub(crate) chunk: Option<usize>,
}

impl Sight {
    /// The first position that a query sees; it does not fall as positions grow.
    pub(crate) fn oldest(&self, position: usize) -> usize {
        let window = self.causal.window.map_or(0, |w| (position + 1).saturating_sub(w));
        window.max(self.chunk.map_or(0, |chunk| position - position % chunk))
    }
}
