//! Budgets of heads and layers that a model tells, or the keys themselves.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use crate::budget::{HeadBudget, LayerAt, LayerBudget};
use crate::factor;
use crate::heads::{best, entropy_classes, matrix_entropy};
use crate::score::Held;

/// Each layer's share of what the model may hold (CompressKV, UNComp): the mean, times the layer's number over the mean of
/// all numbers. Layers beyond the last number hold the mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerShares(pub Vec<f64>);

impl LayerBudget for LayerShares {
    fn id(&self) -> &'static str {
        "shares"
    }

    fn describe(&self) -> Json {
        json!({ "id": self.id(), "shares": self.0 })
    }

    fn check(&self) -> Result<()> {
        let sum: f64 = self.0.iter().sum();
        match self.0.iter().find(|s| !(s.is_finite() && **s >= 0.0)) {
            Some(share) => Err(Error::invalid(format!("share = {share}: numbers from 0 on"))),
            None if sum > 0.0 => Ok(()),
            None => Err(Error::invalid("shares: at least one above 0")),
        }
    }

    fn tokens(&self, layer: LayerAt, seen: usize, mean: f64) -> usize {
        let of_all = self.0.iter().sum::<f64>() / self.0.len().max(1) as f64;
        let share = self.0.get(layer.index).map_or(1.0, |share| share / of_all);
        ((mean * share) as usize).min(seen)
    }
}

/// Heads of keys that keep everything, and how many tokens the others keep at least (RazorAttention, Tang et al., 2024):
/// what the budget leaves them, alike. Where it is too small for all, the chosen heads share what is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RetrievalHeads {
    /// Which.
    pub heads: HeadList,
    /// Tokens of the others, at least.
    pub least: usize,
}

impl RetrievalHeads {
    /// These heads keep everything, the others at least so many tokens.
    #[must_use]
    pub fn new(heads: HeadList, least: usize) -> Self {
        Self { heads, least }
    }
}

impl HeadBudget for RetrievalHeads {
    fn id(&self) -> &'static str {
        "retrieval"
    }

    fn describe(&self) -> Json {
        let mut json = json!(self);
        json["id"] = self.id().into();
        json
    }

    fn counts(&self, held: Held<'_>, scores: &[Vec<f32>], tokens: usize) -> Result<Vec<usize>> {
        let chosen: Vec<bool> =
            (0..scores.len()).map(|h| self.heads.0.contains(&(held.at.index, h))).collect();
        let of = |which: bool| (0..scores.len()).filter(|h| chosen[*h] == which).count();
        let all = tokens * scores.len();
        if of(true) == 0 || of(false) == 0 {
            return Ok(scores.iter().map(|s| s.len().min(tokens)).collect());
        }
        let least = self.least.min(tokens) * of(false);
        let whole: usize = (0..scores.len()).filter(|h| chosen[*h]).map(|h| scores[h].len()).sum();
        let for_chosen = whole.min(all.saturating_sub(least));
        let share = [(all - for_chosen) / of(false), for_chosen / of(true)];
        let count = |(s, chosen): (&Vec<f32>, &bool)| s.len().min(share[usize::from(*chosen)]);
        Ok(scores.iter().zip(&chosen).map(count).collect())
    }
}

/// Heads of a model, as (layer, head) counted from 0. As a text: `0.1-2.3`, or `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadList(pub Vec<(usize, usize)>);

impl fmt::Display for HeadList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (place, (layer, head)) in self.0.iter().enumerate() {
            let between = if place > 0 { "-" } else { "" };
            write!(f, "{between}{layer}.{head}")?;
        }
        Ok(())
    }
}

impl FromStr for HeadList {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "none" {
            return Ok(Self::default());
        }
        let one = |text: &str| {
            let (layer, head) = text.split_once('.')?;
            Some((layer.parse().ok()?, head.parse().ok()?))
        };
        let all: Option<Vec<_>> = text.split('-').map(one).collect();
        all.map(Self).ok_or_else(|| {
            Error::invalid(format!("heads = {text}: allowed are none, and layer.head-layer.head"))
        })
    }
}

/// Heads whose keys point in more directions keep more (UNComp, Xiong et al., 2025): classes by truncated matrix entropy of
/// the keys that are held; from the lowest class to the highest budgets rise by equal steps, 1 - `spread` to 1 + `spread`
/// times the mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EntropyHeads {
    /// How many classes.
    pub classes: usize,
    /// How many eigenvalues count; 0 for all.
    pub top: usize,
    /// How far budgets lie from the mean, 0 to 1.
    pub spread: f64,
}

impl Default for EntropyHeads {
    fn default() -> Self {
        Self { classes: 4, top: 16, spread: 0.5 }
    }
}

impl EntropyHeads {
    /// Sets how many classes there are.
    #[must_use]
    pub fn with_classes(mut self, classes: usize) -> Self {
        self.classes = classes;
        self
    }

    /// Sets how far budgets lie from the mean.
    #[must_use]
    pub fn with_spread(mut self, spread: f64) -> Self {
        self.spread = spread;
        self
    }
}

impl HeadBudget for EntropyHeads {
    fn id(&self) -> &'static str {
        "entropy"
    }

    fn describe(&self) -> Json {
        let mut json = json!(self);
        json["id"] = self.id().into();
        json
    }

    fn check(&self) -> Result<()> {
        factor::check(self.id())?;
        if !(1..=1 << 16).contains(&self.classes) {
            let classes = self.classes;
            return Err(Error::invalid(format!("classes = {classes}: allowed are 1 to 65536")));
        }
        if !(0.0..=1.0).contains(&self.spread) {
            let spread = self.spread;
            return Err(Error::invalid(format!("spread = {spread}: allowed are 0 to 1")));
        }
        Ok(())
    }

    fn counts(&self, held: Held<'_>, scores: &[Vec<f32>], tokens: usize) -> Result<Vec<usize>> {
        // A head of a single direction has no entropy.
        let of = |h: usize| matrix_entropy(held.keys(h).view(), self.top).unwrap_or(0.0);
        let entropies: Vec<f64> = (0..scores.len()).map(of).collect();
        let classes = entropy_classes(&entropies, self.classes)?;
        let last = classes.iter().max().copied().unwrap_or(0).max(1) as f64;
        let wish = |class: &usize| 1.0 + self.spread * (2.0 * *class as f64 / last - 1.0);
        let wishes: Vec<f64> = classes.iter().map(wish).collect();
        let (sum, all) = (wishes.iter().sum::<f64>(), tokens * scores.len());
        // What always stays, stays in each head.
        let fixed = |s: &Vec<f32>| s.iter().filter(|s| **s == f32::INFINITY).count().min(tokens);
        let mut counts: Vec<usize> = wishes
            .iter()
            .zip(scores)
            .map(|(w, s)| ((w / sum * all as f64) as usize).max(fixed(s)).min(s.len()))
            .collect();
        while counts.iter().sum::<usize>() > all {
            let spare = |h: usize| counts[h] - fixed(&scores[h]);
            let most = (0..counts.len()).max_by_key(|h| spare(*h)).expect("a head");
            counts[most] -= 1;
        }
        let left = all - counts.iter().sum::<usize>();
        let room = |h: &usize| counts[*h] < scores[*h].len();
        let open: Vec<usize> = best(&wishes, wishes.len()).into_iter().filter(room).collect();
        for turn in 0..left {
            let Some(h) = open.get(turn % open.len().max(1)) else { break };
            counts[*h] = (counts[*h] + 1).min(scores[*h].len());
        }
        Ok(counts)
    }
}

fn parsed<T: serde::de::DeserializeOwned>(json: &Json) -> Result<T> {
    T::deserialize(json).map_err(|e| Error::corruption(format!("budget {json}: {e}")))
}

fn checked<T>(json: &Json, made: T, check: impl Fn(&T) -> Result<()>) -> Result<T> {
    check(&made).map_err(|e| Error::corruption(format!("budget {json}: {}", e.message())))?;
    Ok(made)
}

pub(crate) fn read_entropy(json: &Json) -> Result<Arc<dyn HeadBudget>> {
    Ok(Arc::new(checked(json, parsed::<EntropyHeads>(json)?, EntropyHeads::check)?))
}

pub(crate) fn read_retrieval(json: &Json) -> Result<Arc<dyn HeadBudget>> {
    Ok(Arc::new(parsed::<RetrievalHeads>(json)?))
}

pub(crate) fn read_shares(json: &Json) -> Result<Arc<dyn LayerBudget>> {
    let shares = LayerShares(parsed(&json["shares"])?);
    Ok(Arc::new(checked(json, shares, LayerShares::check)?))
}
