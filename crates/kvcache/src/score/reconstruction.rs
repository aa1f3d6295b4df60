use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use super::critical::output_norms;
use crate::store::{Causal, HeadSlots, KvStore};

/// The most attention that each key of a context receives while the model says the context once more (KVzip, Kim et al.,
/// 2025), by any query and any head of the group. What saying it again needs, other questions need: no question is known.
///
/// Feed the context, then a prompt to repeat it and the context itself, with [`Reconstruction::attend`] in the place of
/// attention; go back to the context's length, and keep [`Reconstruction::slots`].
#[derive(Debug, Clone, PartialEq)]
pub struct Reconstruction {
    context: usize,
    /// By head of keys and slot.
    peaks: Vec<Vec<f32>>,
}

impl Reconstruction {
    /// Of a store that holds the context and nothing else.
    #[must_use]
    pub fn new(store: &dyn KvStore) -> Self {
        let of = |h| vec![0.0; store.positions(h).len()];
        Self { context: store.len(), peaks: (0..store.shape().kv_heads).map(of).collect() }
    }

    /// As [`KvStore::attend`], for queries `[tokens, heads, head_dim]` of the repetition; takes note of what they look at.
    /// With `hidden`, the norm of each query's hidden state, weights are divided by it: with
    /// [`Reconstruction::weigh_values`], the measure of KVzip+ (Jegou and Jeblick, 2026).
    ///
    /// # Errors
    /// As there; `ShapeMismatch` for another number of norms, `InvalidArgument` for a store that has lost slots since.
    pub fn attend(
        &mut self,
        store: &dyn KvStore,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        hidden: Option<&[f32]>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let tokens = queries.dim().0;
        if hidden.is_some_and(|hidden| hidden.len() != tokens) {
            let found = hidden.map_or(0, <[f32]>::len);
            return Err(Error::shape(format!("{found} norms of {tokens} queries")));
        }
        for (h, peaks) in self.peaks.iter().enumerate() {
            let slots = store.positions(h).partition_point(|p| *p < self.context);
            if slots != peaks.len() {
                let had = peaks.len();
                return Err(Error::invalid(format!("head {h} holds {slots} of {had} slots")));
            }
        }
        let group = store.shape().group();
        let peaks = &mut self.peaks;
        let mut watch = |head: usize, row: usize, weights: &[f32]| {
            let over = hidden.map_or(1.0, |hidden| hidden[row].max(f32::MIN_POSITIVE));
            for (peak, w) in peaks[head / group].iter_mut().zip(weights) {
                *peak = peak.max(w / over);
            }
        };
        store.attend(queries, causal, out, scratch, Some(&mut watch))
    }

    /// Multiplies by the norms of what the output projection `[hidden, heads * value_dim]` makes of the values.
    ///
    /// # Errors
    /// `ShapeMismatch` for a projection of other heads.
    pub fn weigh_values(
        &mut self,
        store: &dyn KvStore,
        output: ndarray::ArrayView2<'_, f32>,
    ) -> Result<()> {
        for (h, peaks) in self.peaks.iter_mut().enumerate() {
            let norms = output_norms(store.values(h).view(), output, store.shape().group(), h)?;
            peaks.iter_mut().zip(norms).for_each(|(peak, norm)| *peak *= norm);
        }
        Ok(())
    }

    /// By head of keys and slot.
    #[must_use]
    pub fn scores(&self) -> &[Vec<f32>] {
        &self.peaks
    }

    /// The slots that stay where `tokens` per head may, whichever head they belong to; the first `sinks` always.
    #[must_use]
    pub fn slots(&self, tokens: usize, sinks: usize) -> HeadSlots {
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (h, peaks) in self.peaks.iter().enumerate() {
            order.extend((0..peaks.len()).map(|slot| (h, slot)));
        }
        let score = |(h, slot): &(usize, usize)| match *slot < sinks {
            true => f32::INFINITY,
            false => self.peaks[*h][*slot],
        };
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        order.truncate(tokens * self.peaks.len());
        order.sort_unstable();
        let of = |h| order.iter().filter(|(head, _)| *head == h).map(|(_, slot)| *slot).collect();
        HeadSlots((0..self.peaks.len()).map(of).collect())
    }
}
