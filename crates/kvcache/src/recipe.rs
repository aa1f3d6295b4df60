//! Caches from a line of text: `kivi(bits=4, group=32) | snapkv(keep=0.5) | adakv`.
//!
//! At most one store, then at most one policy, then changes of it. The stages are those of [`stages`], or of a
//! table of your own; each says its keys itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::stage::{Chain, Stages};
use tensorpress_tensor::{DType, Error, ErrorKind, Result, ndarray};

use crate::budget::LayerAt;
use crate::cache::Cache;
use crate::caches::Caches;
use crate::policy::Policy;
use crate::rope::Rope;
use crate::stage::{KvModel, KvPart, KvRole, stages};
use crate::store::{JointForm, KvShape, Layer, StoreForm};

/// A parsed line; its caches are made for the layers of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct KvRecipe {
    chain: Chain<KvPart>,
    /// One for all layers, or one for each.
    ropes: Vec<Option<Rope>>,
    outputs: Vec<Arc<Array2<f32>>>,
    repeats: bool,
}

/// What a line stands for.
struct Built {
    form: StoreForm,
    joint: Option<Arc<dyn JointForm>>,
    policy: Option<Policy>,
    /// Where tokens go that do not stay.
    low: Option<StoreForm>,
}

impl KvRecipe {
    /// Reads a line of these stages.
    ///
    /// # Errors
    /// `InvalidArgument`, naming stage, key, value and what is allowed.
    pub fn parse_with(text: &str, stages: &Stages<KvPart>) -> Result<Self> {
        let chain = Chain::parse(text, stages)?;
        if chain.find(KvRole::Change).is_some() && chain.find(KvRole::Policy).is_none() {
            let policies = stages.names_of(&[KvRole::Policy]);
            return Err(Error::invalid(format!(
                "`{text}`: no policy to change: allowed before the last stage are {policies}"
            )));
        }
        let recipe = Self { chain, ropes: Vec::new(), outputs: Vec::new(), repeats: false };
        // Whatever does not depend on the model is refused now.
        let built = match recipe.build(2, LayerAt { index: 0, of: 1 }) {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => return Ok(recipe),
            built => built?,
        };
        if let (Some(joint), Some(policy)) = (built.joint, built.policy) {
            let (joint, score) = (joint.id(), policy.score.id());
            return Err(Error::unsupported(format!(
                "`{text}`: {joint} packs the same tokens of several layers, {score} would choose them layer by layer"
            )));
        }
        Ok(recipe)
    }

    /// Tells the model's rotary embedding to scores that want it, unless the line does.
    #[must_use]
    pub fn with_rope(mut self, rope: Rope) -> Self {
        self.ropes = vec![Some(rope)];
        self
    }

    /// Tells the rotary embedding of each layer.
    #[must_use]
    pub fn with_ropes(mut self, ropes: Vec<Option<Rope>>) -> Self {
        self.ropes = ropes;
        self
    }

    fn rope(&self, layer: usize) -> Option<&Rope> {
        let one = if self.ropes.len() == 1 { 0 } else { layer };
        self.ropes.get(one).and_then(Option::as_ref)
    }

    /// Tells the output projection of each layer, `[hidden, heads * value_dim]`, to scores that want it: those refuse to be
    /// made without (`MissingCalibration`).
    #[must_use]
    pub fn with_outputs(mut self, outputs: Vec<Arc<Array2<f32>>>) -> Self {
        self.outputs = outputs;
        self
    }

    /// Promises that contexts will be said again to policies that wait for it ([`Cache::begin_repetition`]): those refuse to
    /// be made without (`Unsupported`), as they would keep everything for ever.
    #[must_use]
    pub fn with_repetition(mut self) -> Self {
        self.repeats = true;
        self
    }

    /// The stages.
    #[must_use]
    pub fn chain(&self) -> &Chain<KvPart> {
        &self.chain
    }

    fn build(&self, head_dim: usize, at: LayerAt) -> Result<Built> {
        let output = self.outputs.get(at.index).cloned();
        let model = KvModel { head_dim, rope: self.rope(at.index).cloned(), at, output };
        let form = StoreForm::Float(DType::F32);
        let mut built = Built { form, joint: None, policy: None, low: None };
        for stage in self.chain.stages() {
            match stage.build()? {
                KvPart::Store(form) => built.form = form,
                KvPart::Joint(form) => built.joint = Some(form),
                KvPart::Policy(make) => built.policy = Some(make(&model)?),
                KvPart::Change(change) => {
                    if let Some(policy) = built.policy.take() {
                        let (policy, low) = change(policy);
                        (built.policy, built.low) = (Some(policy), low);
                    }
                }
            }
        }
        built.policy.as_ref().map_or(Ok(()), Policy::check)?;
        Ok(built)
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
        self.caches_of(layers, KvShape::new(heads, kv_heads, head_dim)?)
    }

    /// [`KvRecipe::caches`] for heads of any shape; how they weigh is said by [`Cache::with_scoring`].
    ///
    /// # Errors
    /// As there.
    pub fn caches_of(&self, layers: usize, shape: KvShape) -> Result<Vec<Cache>> {
        let layer = |index| self.cache(LayerAt { index, of: layers }, shape);
        (0..layers).map(layer).collect()
    }

    /// The cache of one layer, whose heads have a shape of their own.
    ///
    /// # Errors
    /// As [`KvRecipe::caches`]; `Unsupported` for recipes that hold layers together ([`KvRecipe::together`]), and for those
    /// that want a repetition nobody promised ([`KvRecipe::with_repetition`]).
    pub fn cache(&self, at: LayerAt, shape: KvShape) -> Result<Cache> {
        let Built { form, joint, policy, low } = self.build(shape.head_dim, at)?;
        if let Some(joint) = joint {
            let id = joint.id();
            return Err(Error::unsupported(format!("{id} holds layers together: not one alone")));
        }
        if !self.repeats && policy.as_ref().is_some_and(|p| p.needs().repetition.is_some()) {
            let name = self.chain.find(KvRole::Policy).map_or("policy", |stage| stage.name());
            return Err(Error::unsupported(format!(
                "{name} waits until the context has been said again: whoever holds these caches does not promise that"
            )));
        }
        let form = form.at(at);
        let turns = |rope: &&Rope| form.plain_keys() && rope.dim() == shape.head_dim;
        let plain = self.rope(at.index).filter(turns);
        let mut layer = Layer::new(shape, form)?;
        if let Some(rope) = plain {
            layer = layer.with_turned_keys(rope.clone())?;
        }
        if let Some(low) = low {
            layer = layer.with_low(low.at(at))?;
        }
        match policy {
            None => Ok(Cache::new(layer)),
            Some(policy) => Cache::new(layer).with_policy(policy, at),
        }
    }

    /// The caches of all layers of a model, in its order, which may share what they hold. How they weigh is said by
    /// [`Caches::with_scoring`].
    ///
    /// # Errors
    /// As [`KvRecipe::caches`], and those of [`Caches::joint`].
    pub fn together(&self, shapes: &[KvShape]) -> Result<Caches> {
        let of = shapes.len();
        if let Some(shape) = shapes.first()
            && let Some(joint) = self.build(shape.head_dim, LayerAt { index: 0, of })?.joint
        {
            // Layers that turn keys unlike each other hold them as they come.
            let alike = (0..of).all(|layer| self.rope(layer) == self.rope(0));
            return Caches::joint(joint, shapes, self.rope(0).filter(|_| alike));
        }
        let layer = |(index, shape): (usize, &KvShape)| self.cache(LayerAt { index, of }, *shape);
        Ok(Caches::new(shapes.iter().enumerate().map(layer).collect::<Result<_>>()?))
    }
}

/// A line of this crate's stages.
impl FromStr for KvRecipe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse_with(text, &stages())
    }
}

/// Only the keys that were given; can be read again.
impl fmt::Display for KvRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chain.fmt(f)
    }
}
