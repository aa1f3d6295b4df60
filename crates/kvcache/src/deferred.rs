//! Eviction put off until told: drafts of speculative decoding are appended, judged, and taken back exactly.

use ndarray::{Array3, ArrayView3, Axis, Slice};
use tensorpress_tensor::{Result, Scratch, ndarray};

use crate::cache::Cache;
use crate::store::{Bias, Causal, KvShape, KvStore};

/// What came since a cache was settled last.
///
/// Going back replays what stays upon the settled cache: forms that pack, and statistics that add up, need not know how
/// to undo anything, and the state is that of a cache which never saw the rest.
#[derive(Debug, Clone)]
pub(crate) struct Drafts {
    /// The cache as it was settled; it defers nothing itself.
    settled: Cache,
    calls: Vec<Call>,
}

#[derive(Debug, Clone)]
enum Call {
    Append { keys: Array3<f32>, values: Array3<f32> },
    Attend { causal: Causal, queries: Array3<f32>, bias: Option<OwnBias> },
}

/// A [`Bias`] that is kept.
#[derive(Debug, Clone)]
struct OwnBias {
    values: Array3<f32>,
    from: usize,
}

/// The first `tokens` of `[tokens, heads, head_dim]`.
fn head(x: &mut Array3<f32>, tokens: usize) {
    if tokens < x.dim().0 {
        *x = x.slice_axis(Axis(0), Slice::from(..tokens)).to_owned();
    }
}

impl Call {
    /// What is left of a call for a cache of `held` tokens that shall have `len`.
    fn cut(mut self, held: usize, len: usize) -> Option<Self> {
        let tokens = match &mut self {
            Self::Append { keys, values } => {
                head(keys, len - held);
                head(values, len - held);
                keys.dim().0
            }
            Self::Attend { causal, queries, bias } => {
                head(queries, len.saturating_sub(causal.first));
                let tokens = queries.dim().0;
                if let Some(OwnBias { values, .. }) = bias {
                    *values = values.slice_axis(Axis(1), Slice::from(..tokens)).to_owned();
                }
                tokens
            }
        };
        (tokens > 0).then_some(self)
    }

    fn replay(&self, cache: &mut Cache) -> Result<()> {
        match self {
            Self::Append { keys, values } => cache.layer.append(keys.view(), values.view()),
            Self::Attend { causal, queries, bias } => {
                let queries = queries.view();
                // Attention itself is wanted only where a score adds it up.
                let Some((_, statistics)) = &mut cache.policy else { return Ok(()) };
                if statistics.needs().mass {
                    let KvShape { heads, value_dim, .. } = cache.layer.shape();
                    let mut out = Array3::zeros((queries.dim().0, heads, value_dim));
                    let bias = bias.as_ref();
                    let bias = bias.map(|b| Bias { values: b.values.view(), from: b.from });
                    let scratch = &mut Scratch::default();
                    return cache.look(queries, *causal, bias, out.view_mut(), scratch, None);
                }
                statistics.observe(queries, causal.first, Vec::new());
                Ok(())
            }
        }
    }
}

impl Cache {
    /// Puts eviction, demotion and the last word on packing off until [`Cache::settle`]: whatever is appended meanwhile can
    /// be taken back by [`Cache::truncate`], to any length from [`Cache::settled`] on, exactly and whatever the form, score
    /// and budget. That is what speculative decoding asks for.
    ///
    /// Beside the cache itself, the settled one is held (full pages of floats are shared with it) and everything appended
    /// since as f32: settle once a round. The budget is kept to when the cache is settled, not between.
    ///
    /// ```
    /// use tensorpress_kvcache::KvRecipe;
    /// use tensorpress_tensor::ndarray::Array3;
    /// use tensorpress_tensor::Scratch;
    ///
    /// let recipe: KvRecipe = "kivi(bits=4) | h2o(tokens=64)".parse()?;
    /// let mut cache = recipe.caches(1, 2, 1, 32)?.remove(0).with_deferred();
    /// for round in 0..40 {
    ///     // Four drafted tokens at once; then three of them are accepted.
    ///     let [k, q] = [1, 2].map(|heads| Array3::from_elem((4, heads, 32), round as f32 / 40.0));
    ///     let mut out = q.clone();
    ///     cache.append(k.view(), k.view())?;
    ///     cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default())?;
    ///     cache.truncate(cache.settled() + 3)?;
    ///     cache.settle()?;
    /// }
    /// assert_eq!(cache.len(), 120);
    /// assert!(cache.store().held(0) <= 64);
    /// # Ok::<(), tensorpress_tensor::Error>(())
    /// ```
    #[must_use]
    pub fn with_deferred(mut self) -> Self {
        self.mark();
        self
    }

    /// The cache as it is counts as settled.
    pub(crate) fn mark(&mut self) {
        self.drafts = None;
        self.drafts = Some(Box::new(Drafts { settled: self.clone(), calls: Vec::new() }));
    }

    /// Accepts what was appended since, and then does what the policy says: from here on the cache is one to which the
    /// accepted tokens alone were given, in the same calls, with the policy looking once. Nothing happens to a cache that
    /// puts nothing off.
    ///
    /// # Errors
    /// Those of the score; nothing is settled then.
    pub fn settle(&mut self) -> Result<()> {
        if self.drafts.is_none() {
            return Ok(());
        }
        match self.len() - self.settled() {
            0 => {}
            tokens => self.plan(tokens == 1)?,
        }
        self.mark();
        Ok(())
    }

    /// The length at which the cache was settled last: all of it where nothing is put off.
    #[must_use]
    pub fn settled(&self) -> usize {
        self.drafts.as_ref().map_or_else(|| self.len(), |drafts| drafts.settled.len())
    }

    /// Notes what is appended.
    pub(crate) fn draft_tokens(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) {
        if let Some(drafts) = &mut self.drafts {
            let (keys, values) = (keys.to_owned(), values.to_owned());
            drafts.calls.push(Call::Append { keys, values });
        }
    }

    /// Notes what is asked.
    pub(crate) fn draft_queries(
        &mut self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
    ) {
        if let (Some(drafts), Some(_)) = (&mut self.drafts, &self.policy) {
            let queries = queries.to_owned();
            let bias = bias.map(|b| OwnBias { values: b.values.to_owned(), from: b.from });
            drafts.calls.push(Call::Attend { causal, queries, bias });
        }
    }

    /// Where drafts can be taken back to, but 0.
    pub(crate) fn earliest_draft(&self) -> Option<usize> {
        self.drafts.as_ref().map(|drafts| drafts.settled.earliest())
    }

    /// Takes drafts back.
    pub(crate) fn take_back(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            // The store says why not.
            return self.layer.truncate(len);
        }
        let Some(drafts) = self.drafts.as_ref().filter(|_| len < self.len()) else {
            return Ok(());
        };
        let mut again = drafts.settled.clone();
        if len <= again.len() {
            again.truncate(len)?;
            again.mark();
            *self = again;
            return Ok(());
        }
        let mut kept = Vec::new();
        for call in &drafts.calls {
            if let Some(call) = call.clone().cut(again.len(), len) {
                call.replay(&mut again)?;
                kept.push(call);
            }
        }
        let settled = drafts.settled.clone();
        again.drafts = Some(Box::new(Drafts { settled, calls: kept }));
        *self = again;
        Ok(())
    }
}
