//! A store with a policy: what an engine holds for each layer.

use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use crate::budget::{Budget, LayerAt};
use crate::deferred::Drafts;
use crate::policy::{Action, Policy};
use crate::repeating::Repeating;
use crate::score::Held;
use crate::statistics::Statistics;
use crate::store::{Bias, Causal, HeadSlots, KvShape, KvStore, Layer, Scoring, Watch};

/// The cache of one layer: a store, and where tokens shall go a policy with the statistics it needs.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) layer: Layer,
    pub(crate) policy: Option<(Policy, Statistics)>,
    pub(crate) at: LayerAt,
    /// Where eviction is put off.
    pub(crate) drafts: Option<Box<Drafts>>,
    /// While the context is said again.
    pub(crate) repeating: Option<Box<Repeating>>,
}

impl Cache {
    /// Everything stays.
    #[must_use]
    pub fn new(layer: Layer) -> Self {
        let at = LayerAt { index: 0, of: 1 };
        Self { layer, policy: None, at, drafts: None, repeating: None }
    }

    /// Keeps what a policy says, in layer `at` of a model.
    ///
    /// # Errors
    /// Those of [`Policy::check`] and [`LayerAt::check`]; `ShapeMismatch` for a rotary embedding of other heads;
    /// `InvalidArgument` if tokens are there already.
    pub fn with_policy(mut self, policy: Policy, at: LayerAt) -> Result<Self> {
        policy.check()?;
        at.check()?;
        if !self.layer.is_empty() {
            return Err(Error::invalid(
                "a policy needs the statistics of all tokens: set it while the cache is empty",
            ));
        }
        let needs = policy.needs();
        needs.check(self.layer.shape())?;
        let statistics = Statistics::new(self.layer.shape(), needs);
        self.policy = Some((policy, statistics));
        self.at = at;
        Ok(if self.drafts.is_some() { self.with_deferred() } else { self })
    }

    /// Says how products of queries and keys become weights; policies that look at attention weigh alike. What is held
    /// counts as settled.
    ///
    /// # Errors
    /// Those of [`Scoring::check`].
    pub fn with_scoring(mut self, scoring: Scoring) -> Result<Self> {
        self.layer = self.layer.with_scoring(scoring)?;
        Ok(if self.drafts.is_some() { self.with_deferred() } else { self })
    }

    /// Keys and values.
    #[must_use]
    pub fn store(&self) -> &Layer {
        &self.layer
    }

    /// Tokens appended, evicted ones included: the position of the next.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layer.len()
    }

    /// Nothing was appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layer.is_empty()
    }

    /// Bytes held for keys and values; what [`Cache::with_deferred`] holds beside them is not counted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layer.bytes()
    }

    /// Takes keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of the next tokens.
    ///
    /// # Errors
    /// As [`KvStore::append`]; the cache is then as it was.
    pub fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.layer.append(keys, values)?;
        self.draft_tokens(keys, values);
        Ok(())
    }

    /// [`Cache::attend_with`] without a bias.
    ///
    /// # Errors
    /// As there.
    pub fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.attend_with(queries, window, None, out, scratch)
    }

    /// Attention of the queries `[tokens, heads, head_dim]` of the tokens that were appended last into `out` `[tokens,
    /// heads, value_dim]`, and then what the policy says (unless that is put off: [`Cache::with_deferred`]). See
    /// [`KvStore::attend_with`].
    ///
    /// # Errors
    /// As there; `InvalidArgument` for more queries than tokens; those of the score.
    pub fn attend_with(
        &mut self,
        queries: ArrayView3<'_, f32>,
        window: Option<usize>,
        bias: Option<Bias<'_>>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let tokens = queries.dim().0;
        let Some(first) = self.layer.len().checked_sub(tokens) else {
            let held = self.layer.len();
            return Err(Error::invalid(format!("{tokens} queries of {held} tokens")));
        };
        let causal = Causal { first, window };
        if self.repeating.is_some() {
            return self.repeat(queries, causal, bias, out, scratch);
        }
        self.look(queries, causal, bias, out, scratch, None)?;
        if self.drafts.is_some() {
            self.draft_queries(queries, causal, bias);
            return Ok(());
        }
        self.plan(tokens == 1)
    }

    /// Attention, and what the score, and whoever watches, want to know of it.
    pub(crate) fn look(
        &mut self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        mut seen: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        let tokens = queries.dim().0;
        let Some((_, statistics)) = &mut self.policy else {
            return self.layer.attend_with(queries, causal, bias, out, scratch, seen);
        };
        let mut mass = Vec::new();
        if statistics.needs().mass {
            let shape = self.layer.shape();
            mass = vec![vec![Vec::new(); shape.kv_heads]; tokens];
            let held: Vec<usize> = (0..shape.kv_heads).map(|h| self.layer.held(h)).collect();
            let mut watch = |head: usize, row: usize, weights: &[f32]| {
                seen.iter_mut().for_each(|seen| seen(head, row, weights));
                let head = head / shape.group();
                let sum: &mut Vec<f32> = &mut mass[row][head];
                sum.resize(held[head], 0.0);
                sum.iter_mut().zip(weights).for_each(|(sum, w)| *sum += w);
            };
            self.layer.attend_with(queries, causal, bias, out, scratch, Some(&mut watch))?;
        } else {
            self.layer.attend_with(queries, causal, bias, out, scratch, seen)?;
        }
        statistics.observe(queries, causal.first, mass);
        Ok(())
    }

    /// Brings the layer within its budget.
    pub(crate) fn plan(&mut self, decoding: bool) -> Result<()> {
        let Some((policy, statistics)) = &mut self.policy else { return Ok(()) };
        // Who waits for a repetition acts when it ends, and never else.
        if statistics.needs().repetition.is_some() && statistics.peaks.is_none() {
            return Ok(());
        }
        let shape = self.layer.shape();
        loop {
            let held: usize = (0..shape.kv_heads).map(|h| self.layer.held(h)).sum();
            let per_head = held.div_ceil(shape.kv_heads);
            let bytes = self.layer.bytes();
            let said = || policy.tokens(self.layer.len(), self.at, per_head, bytes);
            let most = statistics.tokens.unwrap_or_else(said);
            if held <= most * shape.kv_heads {
                return Ok(());
            }
            let slack = if decoding { (policy.stride - 1).min(most / 4) } else { 0 };
            let looked = Held { store: &self.layer, statistics, at: self.at };
            let keep = policy.plan(looked, most - slack)?;
            match &policy.action {
                Action::Evict => {
                    statistics.retain(&keep);
                    self.layer.retain(&keep)?;
                }
                Action::Demote => {
                    statistics.retain(&keep);
                    self.layer.demote(&keep)?;
                }
                Action::Merge(rule) => {
                    let of = |(head, keep): (usize, &Vec<usize>)| rule.merge(looked, head, keep);
                    let merged = keep.0.iter().enumerate().map(of).collect::<Result<Vec<_>>>()?;
                    let largest = rule.takes_largest();
                    self.layer.merge(&merged)?;
                    statistics.merge(&merged, largest);
                }
            }
            // Bytes do not shrink quite as tokens do: look again, while that helps.
            let now: usize = (0..shape.kv_heads).map(|h| self.layer.held(h)).sum();
            let bytes = matches!(policy.budget, Budget::Bytes(_));
            if !bytes || now == 0 || now == held || matches!(policy.action, Action::Demote) {
                return Ok(());
            }
        }
    }

    /// The shortest length, but 0, to which [`Cache::truncate`] can go back.
    #[must_use]
    pub fn earliest(&self) -> usize {
        if let Some(earliest) = self.earliest_draft() {
            return earliest;
        }
        let statistics = self.policy.as_ref().map_or(0, |(_, s)| s.earliest());
        self.layer.earliest().max(statistics)
    }

    /// Goes back to the first `len` tokens: as if the others had never been.
    ///
    /// # Errors
    /// As [`KvStore::truncate`], and `InvalidArgument` within a repetition; the cache is then as it was.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.check_whole("truncate")?;
        if len != 0 && len < self.layer.len() && len < self.earliest() {
            return Err(Error::unsupported(format!(
                "truncate to {len}: tokens were evicted, packed or counted since; allowed are 0 and {} to {}",
                self.earliest(),
                self.layer.len()
            )));
        }
        if self.drafts.is_some() {
            return self.take_back(len);
        }
        let shorter = len < self.layer.len();
        self.layer.truncate(len)?;
        if let (Some((_, statistics)), true) = (&mut self.policy, shorter) {
            statistics.truncate(len);
        }
        Ok(())
    }

    /// Forgets all slots but these, whatever the policy; what is left counts as settled.
    ///
    /// # Errors
    /// As [`KvStore::retain`], and `InvalidArgument` within a repetition.
    pub fn retain(&mut self, keep: &HeadSlots) -> Result<()> {
        self.check_whole("retain")?;
        self.layer.retain(keep)?;
        if let Some((_, statistics)) = &mut self.policy {
            statistics.retain(keep);
        }
        if self.drafts.is_some() {
            self.mark();
        }
        Ok(())
    }

    /// A cache of its own with the same contents; full pages are shared until one side changes them.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// Heads.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.layer.shape()
    }

    /// Where the layer stands in its model, as far as it was said.
    #[must_use]
    pub fn at(&self) -> LayerAt {
        self.at
    }

    /// What scores and rules of the policy look at, where tokens shall go.
    #[must_use]
    pub fn held(&self) -> Option<Held<'_>> {
        let (_, statistics) = self.policy.as_ref()?;
        Some(Held { store: &self.layer, statistics, at: self.at })
    }

    /// Policy and statistics, where tokens shall go.
    #[must_use]
    pub fn policy(&self) -> Option<(&Policy, &Statistics)> {
        self.policy.as_ref().map(|(policy, statistics)| (policy, statistics))
    }
}
