//! What is kept: token score x budget x action. A paper is a composition of a line or two, in a file of its own, with its
//! stage.

mod adakv;
mod capkv;
mod chunkkv;
mod compactor;
mod compresskv;
mod criticalkv;
mod cur;
mod demote;
mod ems;
mod expected_attention;
mod finch;
mod h2o;
mod keydiff;
mod knorm;
mod kvmerger;
mod kvzip;
mod lacache;
mod lagkv;
mod merging;
mod paper;
mod pyramidkv;
mod qfilter;
mod random;
mod razor;
mod salient;
mod snapkv;
mod streaming;
mod tova;
mod uncomp;
mod zeromerge;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use crate::budget::{Budget, Heads, LayerAt, Layers, select};
use crate::merge::Merge;
use crate::registry::KvRegistry;
use crate::score::{Accumulated, Held, KeyDifference, KeyNorm, LastQuery, Recency, Score};
use crate::stage::KvPart;
use crate::statistics::KvNeeds;
use crate::store::HeadSlots;

pub use adakv::adakv;
pub use capkv::capkv;
pub use chunkkv::chunkkv;
pub use compactor::compactor;
pub use compresskv::compresskv;
pub use criticalkv::criticalkv;
pub use cur::cur;
pub use ems::ems;
pub use expected_attention::expected_attention;
pub use finch::finch;
pub use h2o::h2o;
pub use keydiff::keydiff;
pub use knorm::knorm;
pub use kvmerger::kvmerger;
pub use kvzip::kvzip;
pub use lacache::lacache;
pub use lagkv::lagkv;
pub use pyramidkv::pyramidkv;
pub use qfilter::qfilter;
pub use random::random;
pub use razor::razor_attention;
pub use salient::salient;
pub use snapkv::snapkv;
pub use streaming::streaming;
pub use tova::tova;
pub use uncomp::uncomp;
pub use zeromerge::zeromerge;

/// What happens to tokens that are not kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// They are forgotten.
    #[default]
    Evict,
    /// They move to the low form of the layer.
    Demote,
    /// They go into slots that stay, as a rule says.
    #[serde(skip)]
    Merge(Arc<dyn Merge>),
}

impl Action {
    pub(crate) fn describe(&self) -> Json {
        match self {
            Self::Merge(rule) => json!({ "merge": rule.describe() }),
            other => json!(other),
        }
    }

    pub(crate) fn read(json: &Json, registry: &KvRegistry) -> Result<Self> {
        match json.get("merge") {
            Some(rule) => Ok(Self::Merge(registry.merge(rule)?)),
            None => Self::deserialize(json)
                .map_err(|e| Error::corruption(format!("KV cache description: `action`: {e}"))),
        }
    }
}

/// Token score x budget x action.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Policy {
    /// How much a token matters.
    pub score: Arc<dyn Score>,
    /// How much stays.
    pub budget: Budget,
    /// How that differs from layer to layer.
    pub layers: Layers,
    /// How it differs from head to head.
    pub heads: Heads,
    /// What happens to the rest.
    pub action: Action,
    /// First tokens that always stay.
    pub sinks: usize,
    /// Newest tokens that always stay.
    pub recent: usize,
    /// Share of what stays of a layer that the newest tokens make up, 0 to 1; `recent` of them at least.
    pub recent_share: f64,
    /// How many tokens go at once while tokens come one by one: a plan is made once in so many.
    pub stride: usize,
}

impl Policy {
    /// The best tokens by a score stay, alike in all layers and heads; the rest is evicted, 128 at a time.
    #[must_use]
    pub fn new(score: impl Score + 'static, budget: Budget) -> Self {
        Self {
            score: Arc::new(score),
            budget,
            layers: Layers::Uniform,
            heads: Heads::Uniform,
            action: Action::Evict,
            sinks: 0,
            recent: 0,
            recent_share: 0.0,
            stride: 128,
        }
    }

    /// Sets how many first and newest tokens always stay.
    #[must_use]
    pub fn with_protected(mut self, sinks: usize, recent: usize) -> Self {
        (self.sinks, self.recent) = (sinks, recent);
        self
    }

    /// Sets the share of what stays that the newest tokens make up.
    #[must_use]
    pub fn with_recent_share(mut self, share: f64) -> Self {
        self.recent_share = share;
        self
    }

    /// Sets how the budget differs from layer to layer.
    #[must_use]
    pub fn with_layers(mut self, layers: Layers) -> Self {
        self.layers = layers;
        self
    }

    /// Sets how the budget differs from head to head.
    #[must_use]
    pub fn with_heads(mut self, heads: Heads) -> Self {
        self.heads = heads;
        self
    }

    /// Sets what happens to tokens that are not kept.
    #[must_use]
    pub fn with_action(mut self, action: Action) -> Self {
        self.action = action;
        self
    }

    /// Sets how many tokens go at once.
    #[must_use]
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    /// Whether the parameters can be.
    ///
    /// # Errors
    /// `InvalidArgument` names the parameter and what is allowed.
    pub fn check(&self) -> Result<()> {
        self.score.check()?;
        self.budget.check()?;
        if self.stride == 0 {
            return Err(Error::invalid("stride = 0: at least 1"));
        }
        if let Budget::Tokens(tokens) = self.budget
            && tokens < self.protected()
        {
            let (sinks, recent) = (self.sinks, self.recent);
            return Err(Error::invalid(format!(
                "tokens = {tokens}: at least sinks + recent = {sinks} + {recent}, which always stay"
            )));
        }
        self.layers.check()?;
        self.heads.check()?;
        if let Action::Merge(rule) = &self.action {
            rule.check()?;
        }
        if let (Budget::Bytes(bytes), Action::Demote) = (self.budget, &self.action) {
            return Err(Error::invalid(format!(
                "bytes = {bytes}: what is demoted stays, so no bytes can be promised: allowed are keep and tokens"
            )));
        }
        if !(0.0..=1.0).contains(&self.recent_share) {
            let share = self.recent_share;
            return Err(Error::invalid(format!(
                "recent_share = {share}: allowed are shares from 0 to 1"
            )));
        }
        Ok(())
    }

    /// What the score wants to know, and the rule for merging.
    #[must_use]
    pub fn needs(&self) -> KvNeeds {
        match &self.action {
            Action::Merge(rule) => self.score.needs().and(rule.needs()),
            _ => self.score.needs(),
        }
    }

    /// Tokens that always stay.
    fn protected(&self) -> usize {
        self.sinks.saturating_add(self.recent)
    }

    /// Tokens per head that may stay of a layer that has seen `seen` and holds `held` of them in `bytes`. A share, or a
    /// layer's part of a pyramid, is never less than what always stays, nor than one token. Bytes come first: they are
    /// kept to (on average over the layers of a pyramid) even where that takes tokens that else would stay.
    #[must_use]
    pub fn tokens(&self, seen: usize, layer: LayerAt, held: usize, bytes: u64) -> usize {
        let least = self.protected().max(1).min(seen);
        let mean = match self.budget {
            Budget::Keep(keep) => seen as f64 * keep,
            Budget::Tokens(tokens) if self.layers == Layers::Uniform => return tokens,
            Budget::Tokens(tokens) => tokens.min(seen) as f64,
            Budget::Bytes(most) => {
                let fit = held as f64 * most as f64 / bytes.max(1) as f64;
                return self.layers.spread(seen, fit.floor(), layer, true);
            }
        };
        self.layers.spread(seen, mean, layer, false).max(least)
    }

    /// The newest tokens that stay where `tokens` per head may.
    fn newest(&self, tokens: usize) -> usize {
        let share = (tokens as f64 * self.recent_share) as usize;
        self.recent.max(share.min(tokens.saturating_sub(self.sinks)))
    }

    /// The slots that stay where `tokens` per head may.
    ///
    /// # Errors
    /// Those of the score; `Numerical` where it gives NaN.
    pub fn plan(&self, held: Held<'_>, tokens: usize) -> Result<HeadSlots> {
        let mut scores = self.score.score_within(held, tokens)?;
        let newest = held.store.len().saturating_sub(self.newest(tokens));
        for (h, scores) in scores.iter_mut().enumerate() {
            let positions = held.store.positions(h);
            if scores.len() != positions.len() {
                let (found, slots) = (scores.len(), positions.len());
                return Err(Error::shape(format!(
                    "{}: {found} scores of {slots} tokens",
                    self.score.id()
                )));
            }
            if let Some(slot) = scores.iter().position(|s| s.is_nan()) {
                let (id, p) = (self.score.id(), positions[slot]);
                return Err(Error::numerical(format!(
                    "{id}: the score of token {p} of head {h} is NaN"
                )));
            }
            for (score, p) in scores.iter_mut().zip(positions) {
                if p < self.sinks || p >= newest {
                    *score = f32::INFINITY;
                }
            }
        }
        select(held, &scores, tokens, &self.heads)
    }
}

/// The stages of this module.
pub(crate) fn stages() -> Vec<Row<KvPart>> {
    vec![
        streaming::stage(),
        h2o::stage(),
        snapkv::stage(),
        salient::stage(),
        pyramidkv::stage(),
        tova::stage(),
        knorm::stage(),
        keydiff::stage(),
        expected_attention::stage(),
        random::stage(),
        lagkv::stage(),
        cur::stage(),
        capkv::stage(),
        qfilter::stage(),
        finch::stage(),
        compactor::stage(),
        criticalkv::stage(),
        kvzip::stage(),
        kvmerger::stage(),
        zeromerge::stage(),
        ems::stage(),
        razor::stage(),
        uncomp::stage(),
        compresskv::stage(),
        lacache::stage(),
        adakv::stage(),
        chunkkv::stage(),
        merging::stage(),
        demote::stage(),
    ]
}

/// Scores without knobs.
macro_rules! no_knobs {
    ($($score:ty),*) => {
        $(impl Knobs for $score {
            fn knobs(&mut self, _: &mut Keys<'_>) -> Result<()> {
                Ok(())
            }
        })*
    };
}

no_knobs!(Accumulated, KeyDifference, KeyNorm, LastQuery, Recency);
