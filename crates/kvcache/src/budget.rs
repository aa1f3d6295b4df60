//! How many tokens stay: of a layer, of each layer, of each head.

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use crate::registry::KvRegistry;
use crate::score::Held;
use crate::store::HeadSlots;

/// How much a layer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Budget {
    /// This share of the tokens seen, above 0 to 1; never less than one token and what a policy protects.
    Keep(f64),
    /// This many tokens per head.
    Tokens(usize),
    /// This many bytes of keys and values per layer.
    Bytes(u64),
}

impl Budget {
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Keep(keep) if !(keep > 0.0 && keep <= 1.0) => {
                Err(Error::invalid(format!("keep = {keep}: allowed are shares above 0 to 1")))
            }
            Self::Tokens(0) => Err(Error::invalid("tokens = 0: at least 1")),
            Self::Bytes(0) => Err(Error::invalid("bytes = 0: at least 1")),
            _ => Ok(()),
        }
    }
}

/// Whose arithmetic spreads a budget over layers or heads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rule {
    /// That of the papers' authors: the window, and whatever else always stays, is set aside first, and the rest spread.
    #[default]
    Authors,
    /// That of kvpress: what always stays is spread with the rest.
    Kvpress,
}

impl Rule {
    /// That of descriptions which name none: there was no other when they were written.
    fn of_old() -> Self {
        Self::Kvpress
    }

    fn is_old(&self) -> bool {
        *self == Self::of_old()
    }
}

/// How the budget differs from layer to layer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layers {
    /// Not at all.
    #[default]
    Uniform,
    /// Falls linearly from the first layer to the last (PyramidKV, Cai et al., 2024).
    Pyramid {
        /// Steepness, at least 1.
        beta: f64,
        /// Queries of the window, which every layer keeps.
        window: usize,
        /// Whose arithmetic. That of kvpress keeps alike in all layers whatever is too small for the last one to hold the
        /// window: budgets below `beta` windows.
        #[serde(default = "Rule::of_old", skip_serializing_if = "Rule::is_old")]
        rule: Rule,
    },
    /// As a [`LayerBudget`] says.
    #[serde(skip)]
    Own(Arc<dyn LayerBudget>),
}

/// How a budget is spread over the layers of a model.
pub trait LayerBudget: Debug + Send + Sync {
    /// Short name.
    fn id(&self) -> &'static str;

    /// `id` and all parameters: what a reader of the cache makes this from.
    fn describe(&self) -> Json {
        json!({ "id": self.id() })
    }

    /// Whether the parameters can be.
    ///
    /// # Errors
    /// `InvalidArgument` names the parameter and what is allowed.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Tokens per head of a layer, where `seen` were and `mean` of them shall stay on average over the layers.
    fn tokens(&self, layer: LayerAt, seen: usize, mean: f64) -> usize;
}

/// How what a layer may hold is spread over its heads.
pub trait HeadBudget: Debug + Send + Sync {
    /// Short name.
    fn id(&self) -> &'static str;

    /// `id` and all parameters: what a reader of the cache makes this from.
    fn describe(&self) -> Json {
        json!({ "id": self.id() })
    }

    /// Whether the parameters can be.
    ///
    /// # Errors
    /// `InvalidArgument` names the parameter and what is allowed.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// How many slots each head keeps of those it has, where `tokens` per head may stay on average. `scores` are by head
    /// and slot, infinite for what always stays.
    ///
    /// # Errors
    /// `ShapeMismatch` for a model of other heads.
    fn counts(&self, held: Held<'_>, scores: &[Vec<f32>], tokens: usize) -> Result<Vec<usize>>;
}

/// Where a layer stands in its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerAt {
    /// Counted from 0.
    pub index: usize,
    /// Layers of the model.
    pub of: usize,
}

impl LayerAt {
    /// Whether there can be such a layer.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check(self) -> Result<()> {
        let Self { index, of } = self;
        if index < of {
            return Ok(());
        }
        Err(Error::invalid(format!("layer {index} of {of}: counted from 0")))
    }
}

impl PartialEq for Layers {
    fn eq(&self, other: &Self) -> bool {
        self.describe() == other.describe()
    }
}

impl Layers {
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Pyramid { beta, .. } if beta.is_nan() || *beta < 1.0 => {
                Err(Error::invalid(format!("beta = {beta}: at least 1")))
            }
            Self::Own(own) => own.check(),
            _ => Ok(()),
        }
    }

    pub(crate) fn describe(&self) -> Json {
        match self {
            Self::Own(own) => json!({ "own": own.describe() }),
            other => json!(other),
        }
    }

    pub(crate) fn read(json: &Json, registry: &KvRegistry) -> Result<Self> {
        match json.get("own") {
            Some(own) => Ok(Self::Own(registry.layer_budget(own)?)),
            None => parse(json, "layers"),
        }
    }

    /// Tokens per head of a layer, where `tokens` were seen and the share `keep` of them shall stay on average.
    ///
    /// A pyramid of authors falls by whole tokens from layer to layer, so that the mean may lie above that by half a token
    /// for each layer but the first.
    #[must_use]
    pub fn tokens(&self, tokens: usize, keep: f64, layer: LayerAt) -> usize {
        self.spread(tokens, tokens as f64 * keep, layer, false)
    }

    /// As [`Layers::tokens`], where `mean` tokens shall stay; with `strict`, no more than that on average.
    pub(crate) fn spread(&self, seen: usize, mean: f64, layer: LayerAt, strict: bool) -> usize {
        match *self {
            Self::Own(ref own) => own.tokens(layer, seen, mean).min(seen),
            Self::Pyramid { beta, window, rule: Rule::Authors } => {
                by_authors(seen, mean as usize, (beta, window), layer, strict)
            }
            Self::Pyramid { beta, window, rule: Rule::Kvpress } => {
                by_kvpress(seen, mean, (beta, window as f64), layer)
            }
            Self::Uniform => mean as usize,
        }
    }
}

/// PyramidKV's own: what lies behind the window falls from layer to layer, by whole tokens.
fn by_authors(
    seen: usize,
    mean: usize,
    (beta, window): (f64, usize),
    layer: LayerAt,
    strict: bool,
) -> usize {
    let free = mean.saturating_sub(window);
    // A text that is hardly longer than what stays: alike in all layers.
    if free == 0 || layer.of < 2 || seen < 2 * free {
        return mean;
    }
    let mut least = (free as f64 / beta) as usize;
    let mut most = 2 * free - least;
    let all = seen.saturating_sub(window);
    if most >= all {
        (most, least) = (all, 2 * free - all);
    }
    let (fall, steps) = (most.saturating_sub(least), layer.of - 1);
    let fallen =
        if strict { (layer.index * fall).div_ceil(steps) } else { layer.index * (fall / steps) };
    most - fallen + window
}

fn by_kvpress(seen: usize, mean: f64, (beta, window): (f64, f64), layer: LayerAt) -> usize {
    let all = seen as f64;
    let (mut least, mut most) = (mean / beta, 2.0 * mean - mean / beta);
    if most >= all - window {
        // The widest layer keeps all but the window, and the narrowest gives what is missing.
        most = all - window;
        least = 2.0 * mean - most;
    }
    let pyramid = all >= most && most >= least && least >= window && layer.of > 1;
    let here = if pyramid {
        most - layer.index as f64 * (most - least) / (layer.of - 1) as f64
    } else {
        mean
    };
    (here.round_ties_even() as usize).min(seen)
}

/// How the budget differs from head to head.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Heads {
    /// Every head keeps as many tokens.
    #[default]
    Uniform,
    /// The layer's best tokens stay, whichever head they belong to (AdaKV, Feng et al., 2024).
    Adaptive {
        /// Share of the budget that every head keeps in any case, 0 to 1.
        floor: f64,
        /// Whose arithmetic. By that of kvpress tokens that always stay fill the floor, and a floor that is no larger than
        /// the window is none.
        #[serde(default = "Rule::of_old", skip_serializing_if = "Rule::is_old")]
        rule: Rule,
    },
    /// As a [`HeadBudget`] says.
    #[serde(skip)]
    Own(Arc<dyn HeadBudget>),
}

impl PartialEq for Heads {
    fn eq(&self, other: &Self) -> bool {
        self.describe() == other.describe()
    }
}

impl Heads {
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Adaptive { floor, .. } if !(0.0..=1.0).contains(floor) => {
                Err(Error::invalid(format!("floor = {floor}: allowed are shares from 0 to 1")))
            }
            Self::Own(own) => own.check(),
            _ => Ok(()),
        }
    }

    pub(crate) fn describe(&self) -> Json {
        match self {
            Self::Own(own) => json!({ "own": own.describe() }),
            other => json!(other),
        }
    }

    pub(crate) fn read(json: &Json, registry: &KvRegistry) -> Result<Self> {
        match json.get("own") {
            Some(own) => Ok(Self::Own(registry.head_budget(own)?)),
            None => parse(json, "heads"),
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &Json, key: &str) -> Result<T> {
    T::deserialize(json)
        .map_err(|e| Error::corruption(format!("KV cache description: `{key}`: {e}")))
}

/// Slots of each head, best first; of equals the newer one.
fn ranked(scores: &[Vec<f32>]) -> Vec<Vec<usize>> {
    let of = |scores: &Vec<f32>| {
        let mut slots: Vec<usize> = (0..scores.len()).collect();
        slots.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(b.cmp(a)));
        slots
    };
    scores.iter().map(of).collect()
}

/// The best slots by `scores` (heads of keys, slots; infinite for what always stays, minus infinite for what must go):
/// `tokens` per head on average.
pub(crate) fn select(
    held: Held<'_>,
    scores: &[Vec<f32>],
    tokens: usize,
    heads: &Heads,
) -> Result<HeadSlots> {
    let ranked = ranked(scores);
    let counts: Vec<usize> = match heads {
        Heads::Uniform => scores.iter().map(|s| s.len().min(tokens)).collect(),
        Heads::Adaptive { floor, rule } => adaptive(scores, &ranked, tokens, *floor, *rule),
        Heads::Own(own) => own.counts(held, scores, tokens)?,
    };
    if counts.len() != scores.len() {
        let (found, heads) = (counts.len(), scores.len());
        return Err(Error::shape(format!("counts of {found} heads, {heads} expected")));
    }
    let keep = ranked.into_iter().zip(counts).zip(scores).map(|((mut slots, count), scores)| {
        slots.truncate(count);
        slots.retain(|slot| scores[*slot] > f32::NEG_INFINITY);
        slots.sort_unstable();
        slots
    });
    Ok(HeadSlots(keep.collect()))
}

/// How many slots each head keeps.
fn adaptive(
    scores: &[Vec<f32>],
    ranked: &[Vec<usize>],
    tokens: usize,
    floor: f64,
    rule: Rule,
) -> Vec<usize> {
    let heads = scores.len();
    let mut counts: Vec<usize> = match rule {
        Rule::Kvpress => vec![(tokens as f64 * floor) as usize; heads],
        Rule::Authors => {
            let stays = |s: &Vec<f32>| s.iter().filter(|s| **s == f32::INFINITY).count();
            let fixed: Vec<usize> = scores.iter().map(|s| stays(s).min(tokens)).collect();
            let free = tokens * heads - fixed.iter().sum::<usize>();
            let mut won = fixed.clone();
            fill(&mut won, scores, ranked, free);
            let even = free as f64 / heads as f64;
            let share = |(won, fixed): (usize, &usize)| {
                fixed + ((1.0 - floor) * (won - fixed) as f64 + floor * even) as usize
            };
            won.into_iter().zip(&fixed).map(share).collect()
        }
    };
    counts.iter_mut().zip(scores).for_each(|(count, s)| *count = s.len().min(*count));
    let left = (tokens * heads).saturating_sub(counts.iter().sum());
    fill(&mut counts, scores, ranked, left);
    counts
}

/// Gives `more` slots to the best of those not counted yet, whichever head they belong to.
fn fill(counts: &mut [usize], scores: &[Vec<f32>], ranked: &[Vec<usize>], more: usize) {
    let mut rest: Vec<(f32, usize, usize)> = Vec::new();
    for (h, ranked) in ranked.iter().enumerate() {
        rest.extend(ranked[counts[h]..].iter().map(|slot| (scores[h][*slot], *slot, h)));
    }
    rest.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
    rest.iter().take(more).for_each(|(_, _, h)| counts[*h] += 1);
}
