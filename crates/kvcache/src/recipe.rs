//! Caches from a line of text: `kivi(bits=4, group=32) | snapkv(keep=0.5) | adakv`.
//!
//! At most one store, then at most one policy, then at most one of `adakv` and `demote`:
//!
//! | stage | keys and their defaults |
//! |---|---|
//! | `f32`, `f16`, `bf16` | |
//! | `kivi` | bits 4, group 32, residual = group (newest tokens that are exact), sliding false (true: never fewer), keys channel (or token), scales f16, margin 32 |
//! | `mustafar` | sparsity 0.5 (or key_sparsity, value_sparsity), value_group none (values pruned by token), window 32, margin 32 |
//! | `streaming`, `h2o`, `snapkv`, `pyramidkv`, `tova`, `knorm`, `keydiff`, `expected_attention`, `random` | keep (a share), tokens or bytes (per layer): one of them; sinks 0, recent 0, stride 128 |
//! | ... `streaming` | sinks 4 |
//! | ... `h2o` | recent 32 |
//! | ... `snapkv`, `pyramidkv` | recent = window; window 32, pool 5, pooling average (or max); `pyramidkv` beta 20 |
//! | ... `expected_attention` | theta (of the rotary embedding: the model's, or 10000), future 512, epsilon 0; sinks 4 |
//! | ... `random` | seed 0 |
//! | `adakv` | floor 0.2 |
//! | `demote` | bits 2: what does not stay is held so, and not evicted |

use std::fmt;
use std::str::FromStr;

use tensorpress_tensor::{DType, Error, Result};

use crate::budget::{Budget, Heads, LayerAt, Layers};
use crate::cache::Cache;
use crate::policy::{Action, Policy};
use crate::rope::Rope;
use crate::score::{
    Accumulated, ExpectedAttention, KeyDifference, KeyNorm, LastQuery, Pooling, QueryWindow,
    Random, Recency,
};
use crate::store::{Axis, Bitmap, Int, KvShape, Layer, StoreForm};

/// A parsed line; its caches are made for the layers of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct KvRecipe {
    stages: Vec<Stage>,
    rope: Option<Rope>,
}

/// `name(key=value, ...)`, keys in order.
#[derive(Debug, Clone, PartialEq)]
struct Stage {
    name: String,
    keys: Vec<(String, String)>,
}

const STORES: &[&str] = &["f32", "f16", "bf16", "kivi", "mustafar"];
const POLICIES: &[&str] = &[
    "streaming",
    "h2o",
    "snapkv",
    "pyramidkv",
    "tova",
    "knorm",
    "keydiff",
    "expected_attention",
    "random",
];
const LAST: &[&str] = &["adakv", "demote"];

impl Stage {
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let (name, inside) = match text.split_once('(') {
            None => (text, ""),
            Some((name, rest)) => {
                let inside = rest.strip_suffix(')');
                (
                    name.trim(),
                    inside.ok_or_else(|| {
                        Error::invalid(format!("`{text}`: no closing parenthesis"))
                    })?,
                )
            }
        };
        let mut keys: Vec<(String, String)> = Vec::new();
        for pair in inside.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let pair =
                pair.split_once('=').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
            let (key, value) =
                pair.ok_or_else(|| Error::invalid(format!("`{text}`: `key=value` expected")))?;
            if keys.iter().any(|(k, _)| *k == key) {
                return Err(Error::invalid(format!("{name}: `{key}` is given twice")));
            }
            keys.push((key, value));
        }
        Ok(Self { name: name.to_owned(), keys })
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The value of a key, or its default.
    fn value<T: FromStr>(&self, key: &str, default: T, allowed: &str) -> Result<T> {
        let Some(text) = self.get(key) else { return Ok(default) };
        text.parse().map_err(|_| {
            Error::invalid(format!("{}: {key} = {text}: allowed are {allowed}", self.name))
        })
    }

    fn number(&self, key: &str, default: usize) -> Result<usize> {
        self.value(key, default, "whole numbers")
    }

    fn check_keys(&self, allowed: &[&str]) -> Result<()> {
        for (key, value) in &self.keys {
            if !allowed.contains(&key.as_str()) {
                let allowed = if allowed.is_empty() { "none".into() } else { allowed.join(", ") };
                return Err(Error::invalid(format!(
                    "{}: unknown key {key} = {value}: allowed are {allowed}",
                    self.name
                )));
            }
        }
        Ok(())
    }

    fn form(&self) -> Result<StoreForm> {
        match self.name.as_str() {
            "kivi" => {
                self.check_keys(&[
                    "bits", "group", "residual", "sliding", "keys", "scales", "margin",
                ])?;
                let group = self.number("group", 32)?;
                let keys = match self.get("keys").unwrap_or("channel") {
                    "channel" => Axis::Channel,
                    "token" => Axis::Token,
                    other => {
                        return Err(Error::invalid(format!(
                            "kivi: keys = {other}: allowed are channel and token"
                        )));
                    }
                };
                let scales = self.get("scales").unwrap_or("f16");
                let scales = float(scales).ok_or_else(|| {
                    Error::invalid(format!(
                        "kivi: scales = {scales}: allowed are f32, f16 and bf16"
                    ))
                })?;
                Ok(StoreForm::Int(
                    Int::new(self.value("bits", 4, "2, 4 and 8")?)
                        .with_group(group)
                        .with_window(self.number("residual", group)?)
                        .with_sliding(self.value("sliding", false, "true and false")?)
                        .with_margin(self.number("margin", 32)?)
                        .with_keys(keys)
                        .with_scales(scales),
                ))
            }
            "mustafar" => {
                self.check_keys(&[
                    "sparsity",
                    "key_sparsity",
                    "value_sparsity",
                    "value_group",
                    "window",
                    "margin",
                ])?;
                let shares = "shares from 0 to below 1";
                let mut map = Bitmap::new(self.value("sparsity", 0.5, shares)?);
                map.keys = self.value("key_sparsity", map.keys, shares)?;
                map.values = self.value("value_sparsity", map.values, shares)?;
                if self.get("value_group").is_some() {
                    map.value_group = Some(self.number("value_group", 32)?);
                }
                (map.window, map.margin) = (self.number("window", 32)?, self.number("margin", 32)?);
                Ok(StoreForm::Bitmap(map))
            }
            name => {
                self.check_keys(&[])?;
                Ok(StoreForm::Float(float(name).expect("one of the stores")))
            }
        }
    }

    fn budget(&self) -> Result<Budget> {
        let given: Vec<&str> =
            ["keep", "tokens", "bytes"].into_iter().filter(|k| self.get(k).is_some()).collect();
        match given[..] {
            ["keep"] => Ok(Budget::Keep(self.value("keep", 0.0, "shares above 0 to 1")?)),
            ["tokens"] => Ok(Budget::Tokens(self.number("tokens", 0)?)),
            ["bytes"] => Ok(Budget::Bytes(self.value("bytes", 0, "whole numbers")?)),
            _ => Err(Error::invalid(format!(
                "{}: budget = {}: exactly one of keep, tokens and bytes is allowed",
                self.name,
                if given.is_empty() { "none".into() } else { given.join(" and ") }
            ))),
        }
    }

    fn policy(&self, head_dim: usize, rope: Option<&Rope>) -> Result<Policy> {
        const COMMON: [&str; 6] = ["keep", "tokens", "bytes", "sinks", "recent", "stride"];
        let own: &[&str] = match self.name.as_str() {
            "snapkv" => &["window", "pool", "pooling"],
            "pyramidkv" => &["window", "pool", "pooling", "beta"],
            "expected_attention" => &["theta", "future", "epsilon"],
            "random" => &["seed"],
            _ => &[],
        };
        self.check_keys(&[&COMMON, own].concat())?;
        let budget = self.budget()?;
        let window = self.number("window", 32)?;
        let pool = self.number("pool", 5)?;
        let pooling = match self.get("pooling").unwrap_or("average") {
            "average" => Pooling::Average,
            "max" => Pooling::Max,
            other => {
                let name = &self.name;
                return Err(Error::invalid(format!(
                    "{name}: pooling = {other}: allowed are average and max"
                )));
            }
        };
        let window_score = QueryWindow::new(window, pool).with_pooling(pooling);
        let (mut sinks, mut recent) = (0, 0);
        let policy = match self.name.as_str() {
            "streaming" => {
                sinks = 4;
                Policy::new(Recency, budget)
            }
            "h2o" => {
                recent = 32;
                Policy::new(Accumulated::default(), budget)
            }
            "snapkv" => {
                recent = window;
                Policy::new(window_score, budget)
            }
            "pyramidkv" => {
                recent = window;
                let beta = self.value("beta", 20.0, "numbers from 1 on")?;
                Policy::new(window_score, budget).with_layers(Layers::Pyramid { beta, window })
            }
            "tova" => Policy::new(LastQuery, budget),
            "knorm" => Policy::new(KeyNorm, budget),
            "keydiff" => Policy::new(KeyDifference, budget),
            "random" => {
                Policy::new(Random { seed: self.value("seed", 0, "whole numbers")? }, budget)
            }
            _ => {
                sinks = self.number("sinks", 4)?;
                let theta = self.value("theta", 1e4, "positive numbers")?;
                let rope = match (rope, self.get("theta")) {
                    (Some(rope), None) => rope.clone(),
                    _ => Rope::new(head_dim, theta)?,
                };
                let mut score = ExpectedAttention::new(rope);
                score.future = self.number("future", 512)?;
                score.epsilon = self.value("epsilon", 0.0, "numbers")?;
                score.sinks = sinks;
                Policy::new(score, budget)
            }
        };
        let policy = policy
            .with_protected(self.number("sinks", sinks)?, self.number("recent", recent)?)
            .with_stride(self.number("stride", 128)?);
        policy.check()?;
        Ok(policy)
    }
}

fn float(name: &str) -> Option<DType> {
    match name {
        "f32" => Some(DType::F32),
        "f16" => Some(DType::F16),
        "bf16" => Some(DType::BF16),
        _ => None,
    }
}

impl FromStr for KvRecipe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let stages = text.split('|').map(Stage::parse).collect::<Result<Vec<_>>>()?;
        let mut least = 0;
        for stage in &stages {
            let name = stage.name.as_str();
            let place = [STORES, POLICIES, LAST].iter().position(|names| names.contains(&name));
            let Some(place) = place else {
                let all = [STORES, POLICIES, LAST].concat().join(", ");
                return Err(Error::invalid(format!("stage = `{name}`: allowed are {all}")));
            };
            if place < least {
                return Err(Error::invalid(format!(
                    "`{name}` in `{text}`: one store, then one policy, then adakv or demote"
                )));
            }
            least = place + 1;
        }
        let recipe = Self { stages, rope: None };
        if recipe.find(LAST).is_some() && recipe.find(POLICIES).is_none() {
            return Err(Error::invalid(format!("`{text}`: adakv and demote follow a policy")));
        }
        // Whatever does not depend on the model is refused now.
        recipe.policy(2)?;
        recipe.form()?;
        recipe.low()?;
        Ok(recipe)
    }
}

impl fmt::Display for KvRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, stage) in self.stages.iter().enumerate() {
            let keys: Vec<String> = stage.keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let keys =
                if keys.is_empty() { String::new() } else { format!("({})", keys.join(", ")) };
            write!(f, "{}{}{keys}", if i == 0 { "" } else { " | " }, stage.name)?;
        }
        Ok(())
    }
}

impl KvRecipe {
    /// Tells the model's rotary embedding to scores that want it, unless the line does.
    #[must_use]
    pub fn with_rope(mut self, rope: Rope) -> Self {
        self.rope = Some(rope);
        self
    }

    fn find(&self, names: &[&str]) -> Option<&Stage> {
        self.stages.iter().find(|stage| names.contains(&stage.name.as_str()))
    }

    fn form(&self) -> Result<StoreForm> {
        self.find(STORES).map_or(Ok(StoreForm::Float(DType::F32)), Stage::form)
    }

    fn policy(&self, head_dim: usize) -> Result<Option<Policy>> {
        let Some(stage) = self.find(POLICIES) else { return Ok(None) };
        let mut policy = stage.policy(head_dim, self.rope.as_ref())?;
        if let Some(last) = self.find(&["adakv"]) {
            last.check_keys(&["floor"])?;
            policy.heads =
                Heads::Adaptive { floor: last.value("floor", 0.2, "shares from 0 to 1")? };
            policy.check()?;
        }
        if self.find(&["demote"]).is_some() {
            policy.action = Action::Demote;
            policy.check()?;
        }
        Ok(Some(policy))
    }

    /// Where demoted tokens go.
    fn low(&self) -> Result<Option<StoreForm>> {
        let Some(stage) = self.find(&["demote"]) else { return Ok(None) };
        stage.check_keys(&["bits"])?;
        let bits = stage.value("bits", 2, "2, 4 and 8")?;
        // They come in any order and never go back.
        Ok(Some(StoreForm::Int(
            Int::new(bits).with_keys(Axis::Token).with_window(0).with_margin(0),
        )))
    }

    /// A cache for every layer of a model.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` where the stages do not go with the heads; names key, value and what is
    /// allowed.
    pub fn caches(
        &self,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Vec<Cache>> {
        let shape = KvShape::new(heads, kv_heads, head_dim)?;
        let (form, low, policy) = (self.form()?, self.low()?, self.policy(head_dim)?);
        let cache = |index| {
            let mut layer = Layer::new(shape, form)?;
            if let Some(low) = low {
                layer = layer.with_low(low)?;
            }
            match &policy {
                None => Ok(Cache::new(layer)),
                Some(policy) => {
                    Cache::new(layer).with_policy(policy.clone(), LayerAt { index, of: layers })
                }
            }
        };
        (0..layers).map(cache).collect()
    }
}
