//! Caches from a line of text: `kivi(bits=4, group=32) | snapkv(keep=0.5) | adakv`.
//!
//! At most one store, then at most one policy, then at most one change of it. The stages are those of [`stages`], or of a
//! table of your own; each says its keys itself.

use std::fmt;
use std::str::FromStr;

use tensorpress_tensor::stage::{Chain, Stages};
use tensorpress_tensor::{DType, Error, Result};

use crate::budget::LayerAt;
use crate::cache::Cache;
use crate::policy::Policy;
use crate::rope::Rope;
use crate::stage::{KvModel, KvPart, KvRole, stages};
use crate::store::{KvShape, Layer, StoreForm};

/// A parsed line; its caches are made for the layers of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct KvRecipe {
    chain: Chain<KvPart>,
    rope: Option<Rope>,
}

/// What a line stands for.
struct Built {
    form: StoreForm,
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
        let recipe = Self { chain, rope: None };
        // Whatever does not depend on the model is refused now.
        recipe.build(2)?;
        Ok(recipe)
    }

    /// Tells the model's rotary embedding to scores that want it, unless the line does.
    #[must_use]
    pub fn with_rope(mut self, rope: Rope) -> Self {
        self.rope = Some(rope);
        self
    }

    /// The stages.
    #[must_use]
    pub fn chain(&self) -> &Chain<KvPart> {
        &self.chain
    }

    fn build(&self, head_dim: usize) -> Result<Built> {
        let model = KvModel { head_dim, rope: self.rope.clone() };
        let mut built = Built { form: StoreForm::Float(DType::F32), policy: None, low: None };
        for stage in self.chain.stages() {
            match stage.build()? {
                KvPart::Store(form) => built.form = form,
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
        let Built { form, policy, low } = self.build(shape.head_dim)?;
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
