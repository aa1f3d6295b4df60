use std::ops::Range;

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use super::critical::outputs;
use crate::store::{Bias, Causal, KvStore};

/// The most attention that each key of a context receives while the model says the context once more (KVzip, Kim et al.,
/// 2025), by any query and any head of the group. What saying it again needs, other questions need: no question is known.
///
/// Feed the context, then a prompt to repeat it and the context itself, with [`Reconstruction::attend`] in the place of
/// attention, and go back to the context's length. [`crate::Cache::begin_repetition`] does so for a cache.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconstruction {
    context: usize,
    /// Positions that are said, and how many of the first count beside them.
    part: Range<usize>,
    sinks: usize,
    /// By head of keys and slot.
    peaks: Vec<Vec<f32>>,
    /// By query head and slot: what weights are multiplied by, if they are.
    outputs: Vec<Vec<f32>>,
}

impl Reconstruction {
    /// Of a store that holds the context and nothing else.
    #[must_use]
    pub fn new(store: &dyn KvStore) -> Self {
        let of = |h| vec![0.0; store.positions(h).len()];
        let peaks = (0..store.shape().kv_heads).map(of).collect();
        let context = store.len();
        Self { context, part: 0..context, sinks: 0, peaks, outputs: Vec::new() }
    }

    /// Multiplies weights by the L2 norm of what the output projection `[hidden, heads * value_dim]` makes of a value, query
    /// head by query head: with norms of the hidden states, the measure of KVzip+ (Jegou and Jeblick, 2026).
    ///
    /// # Errors
    /// `ShapeMismatch` for a projection of other heads.
    pub fn with_outputs(
        mut self,
        store: &dyn KvStore,
        output: ArrayView2<'_, f32>,
    ) -> Result<Self> {
        let shape = store.shape();
        self.outputs.clear();
        for h in 0..shape.kv_heads {
            let values = store.values(h);
            let norm = |row: ndarray::ArrayView1<'_, f32>| row.dot(&row).sqrt();
            for made in outputs(values.view(), output, shape.group(), h)? {
                self.outputs.push(made.rows().into_iter().map(norm).collect());
            }
        }
        Ok(self)
    }

    /// Says which positions of the context are said next: all of them at first. Their keys alone are judged by the queries
    /// to come, whose weights are those of a softmax over them, the first `sinks` tokens and what is said.
    ///
    /// # Errors
    /// `InvalidArgument` for positions that are not in the context.
    pub fn begin(&mut self, part: Range<usize>, sinks: usize) -> Result<()> {
        if part.start > part.end || part.end > self.context {
            let Self { context, .. } = self;
            return Err(Error::invalid(format!("part = {part:?}: a context of {context} tokens")));
        }
        (self.part, self.sinks) = (part, sinks);
        Ok(())
    }

    /// As [`KvStore::attend_with`], for queries `[tokens, heads, head_dim]` of the repetition; takes note of what they look
    /// at. With `hidden`, the norm of each query's hidden state as attention reads it, weights are divided by it.
    ///
    /// # Errors
    /// As there; `ShapeMismatch` for another number of norms, `InvalidArgument` for a store that has lost slots since.
    pub fn attend(
        &mut self,
        store: &dyn KvStore,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
        hidden: Option<&[f32]>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let tokens = queries.dim().0;
        if let Some(hidden) = hidden.filter(|hidden| hidden.len() != tokens) {
            return Err(Error::shape(format!("{} norms of {tokens} queries", hidden.len())));
        }
        let mut counted = Vec::with_capacity(self.peaks.len());
        for (h, peaks) in self.peaks.iter().enumerate() {
            let positions = store.positions(h);
            let slot = |position: usize| positions.partition_point(|p| *p < position);
            let (slots, had) = (slot(self.context), peaks.len());
            if slots != had {
                return Err(Error::invalid(format!("head {h} holds {slots} of {had} slots")));
            }
            let part = slot(self.part.start)..slot(self.part.end);
            counted.push((part.clone(), slot(self.sinks).min(part.start)));
        }
        let group = store.shape().group();
        let (peaks, outputs) = (&mut self.peaks, &self.outputs);
        let mut watch = |head: usize, row: usize, weights: &[f32]| {
            let (part, sinks) = counted[head / group].clone();
            let peaks = &mut peaks[head / group];
            let mut over = hidden.map_or(1.0, |hidden| hidden[row].max(f32::MIN_POSITIVE));
            if part.len() < peaks.len() {
                let rest = [0..sinks, part.clone(), peaks.len()..weights.len()];
                over *= rest.into_iter().flat_map(|slots| &weights[slots]).sum::<f32>();
            }
            for slot in part.filter(|_| over > 0.0) {
                let times = outputs.get(head).map_or(1.0, |norms| norms[slot]);
                peaks[slot] = peaks[slot].max(weights[slot] / over * times);
            }
        };
        store.attend_with(queries, causal, bias, out, scratch, Some(&mut watch))
    }

    /// Whether weights are multiplied by norms of what values become.
    pub(crate) fn is_plus(&self) -> bool {
        !self.outputs.is_empty()
    }

    pub(crate) fn into_scores(self) -> Vec<Vec<f32>> {
        self.peaks
    }

    /// By head of keys and slot.
    #[must_use]
    pub fn scores(&self) -> &[Vec<f32>] {
        &self.peaks
    }
}
