//! Smaller models out of larger ones: heads and feed-forward channels that stay.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tensorpress_tensor::bytes::Bytes;
use tensorpress_tensor::{DType, Error, Result, Tensor};

use super::Source;
use super::names::{LinearSpec, Role};
use super::view::{Content, view};
use crate::config::{Architecture, BlockShape, Config};

/// What stays of a block, and what its output biases get for the rest. Indices ascend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BlockCut {
    /// Query heads that stay: as many in the group of each key and value head that stays.
    pub heads: Vec<usize>,
    /// Key and value heads that stay.
    pub kv_heads: Vec<usize>,
    /// Channels of the feed-forward network that stay.
    pub channels: Vec<usize>,
    /// Added to the bias of the attention's output matrix, one value an output.
    pub attention_bias: Option<Vec<f32>>,
    /// Added to the bias of the feed-forward network's output matrix, one value an output.
    pub mlp_bias: Option<Vec<f32>>,
}

impl BlockCut {
    fn shape(&self) -> BlockShape {
        let (heads, kv_heads) = (self.heads.len(), self.kv_heads.len());
        BlockShape { heads, kv_heads, intermediate: self.channels.len() }
    }

    fn check(&self, block: usize, config: &Config) -> Result<()> {
        let of = config.shape(block);
        let within = |kept: &[usize], all: usize, what: &str| {
            let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
            match kept.last() {
                Some(last) if ascending && *last < all => Ok(()),
                _ => Err(Error::invalid(format!(
                    "block {block}: {what} that stay: allowed are ascending numbers below {all}, at least one"
                ))),
            }
        };
        within(&self.heads, of.heads, "heads")?;
        within(&self.kv_heads, of.kv_heads, "key and value heads")?;
        within(&self.channels, of.intermediate, "channels")?;
        let group = of.heads / of.kv_heads;
        let stays = |kv: &usize| self.heads.iter().filter(|head| *head / group == *kv).count();
        let each = self.heads.len() / self.kv_heads.len();
        let even = self.kv_heads.iter().all(|kv| stays(kv) == each);
        if each * self.kv_heads.len() != self.heads.len() || !even {
            let message =
                format!("block {block}: allowed are as many query heads in each group that stays");
            return Err(Error::invalid(message));
        }
        let biases = [&self.attention_bias, &self.mlp_bias];
        if biases.into_iter().flatten().any(|bias| bias.len() != config.hidden) {
            let message = format!("block {block}: biases of other than {} values", config.hidden);
            return Err(Error::shape(message));
        }
        Ok(())
    }
}

impl Architecture {
    /// A `config.json` can say that the attention's output matrix has a bias, or it always has one.
    #[must_use]
    pub fn has_output_bias(self) -> bool {
        matches!(self, Self::Llama | Self::Qwen3 | Self::Bert)
    }

    /// A `config.json` can say that the feed-forward network has biases, or it always has them.
    #[must_use]
    pub fn has_mlp_bias(self) -> bool {
        matches!(self, Self::Llama | Self::Bert)
    }

    /// A `config.json` can say how wide a head is, so that there may be any number of heads.
    #[must_use]
    pub fn has_head_dim(self) -> bool {
        self != Self::Bert
    }
}

impl Source {
    /// This model without the heads and channels that go: a view, whose tensors are cut out of this one's when they are
    /// asked for, in their stored types. Everything else stays.
    ///
    /// `plain`: the config says it all in the keys every reader knows, so that the model can be written as a folder that
    /// others load; blocks have one shape then, and all biases that such a config implies are there. Else the shape of
    /// each block stands in `quantization_config.blocks`, and biases are where they were added.
    ///
    /// # Errors
    /// `InvalidArgument` for indices out of range or out of order, uneven groups, or another number of blocks;
    /// `ShapeMismatch` for biases of another length; `Unsupported` for a compressed model, and if `plain` for what the
    /// architecture's config cannot say.
    pub fn narrowed(&self, cuts: &[BlockCut], plain: bool) -> Result<Self> {
        let config = &self.config;
        if let Some(name) = self.trees.keys().next() {
            let message = "is compressed: heads and channels are removed before that";
            return Err(Error::unsupported(message).in_tensor(name));
        }
        if cuts.len() != config.blocks {
            let message = format!("cuts of {} blocks for {}", cuts.len(), config.blocks);
            return Err(Error::invalid(message));
        }
        cuts.iter().enumerate().try_for_each(|(block, cut)| cut.check(block, config))?;
        let said = if plain { Some(Said::by_config(config, cuts)?) } else { None };
        let mut tensors: BTreeMap<String, Content> =
            self.checkpoint.names().map(|name| (name.to_owned(), Content::Whole)).collect();
        for (block, cut) in cuts.iter().enumerate() {
            self.narrow_block(block, cut, said.as_ref(), &mut tensors)?;
        }
        let path = self.folder.clone().unwrap_or_else(|| "model".into());
        let checkpoint = view(&self.checkpoint, tensors, path)?;
        let raw = match &said {
            Some(said) => said.write(self.raw.clone()),
            None => with_shapes(self.raw.clone(), cuts),
        };
        let mut source =
            Self::new(raw, checkpoint, self.files.clone(), self.tokenizer.clone(), &self.registry)?;
        source.folder = self.folder.clone();
        Ok(source)
    }

    fn narrow_block(
        &self,
        block: usize,
        cut: &BlockCut,
        said: Option<&Said>,
        tensors: &mut BTreeMap<String, Content>,
    ) -> Result<()> {
        let dim = self.config.head_dim;
        let wide = |heads: &[usize]| -> Vec<usize> {
            heads.iter().flat_map(|head| head * dim..(head + 1) * dim).collect()
        };
        let (queries, keys) = (wide(&cut.heads), wide(&cut.kv_heads));
        let of = self.config.shape(block);
        for role in self.names.roles() {
            let spec = self.names.linear(&self.config, block, *role);
            let (kept, all) = match role {
                Role::Q | Role::O => (&queries, of.heads * dim),
                Role::K | Role::V => (&keys, of.kv_heads * dim),
                Role::Gate | Role::Up | Role::Down => (&cut.channels, of.intermediate),
            };
            let added = match role {
                Role::O => cut.attention_bias.as_deref(),
                Role::Down => cut.mlp_bias.as_deref(),
                _ => None,
            };
            let outputs = !matches!(role, Role::O | Role::Down);
            let whole = kept.len() == all;
            if !whole {
                let part = if outputs { Content::Rows } else { Content::Columns };
                tensors.insert(spec.name.clone(), part(kept.clone()));
            }
            let implied = said.is_some_and(|said| match role {
                Role::Q | Role::K | Role::V | Role::O => said.attention_bias,
                Role::Gate | Role::Up | Role::Down => said.mlp_bias,
            });
            if self.checkpoint.contains(&spec.bias) {
                if outputs && !whole {
                    tensors.insert(spec.bias.clone(), Content::Columns(kept.clone()));
                }
            } else if implied && added.is_none() {
                let outputs = if outputs { kept.len() } else { spec.shape[0] };
                let bias = self.bias(&spec, &vec![0.0; outputs])?;
                tensors.insert(spec.bias.clone(), bias);
            }
            if let Some(added) = added {
                let bias = self.bias(&spec, added)?;
                tensors.insert(spec.bias.clone(), bias);
            }
        }
        Ok(())
    }

    /// The bias of a layer (nothing if it has none) plus these values, in its stored type (the weight's if it has
    /// none).
    fn bias(&self, spec: &LinearSpec, added: &[f32]) -> Result<Content> {
        let checkpoint = &self.checkpoint;
        let (dtype, mut values): (DType, Vec<f32>) = match checkpoint.contains(&spec.bias) {
            true => {
                let stored = checkpoint.tensor(&spec.bias)?;
                (stored.dtype(), stored.to_matrix()?.into_raw_vec_and_offset().0)
            }
            false => (checkpoint.dtype(&spec.name)?, vec![0.0; added.len()]),
        };
        values.iter_mut().zip(added).for_each(|(value, added)| *value += added);
        let mut bytes = Vec::new();
        dtype.write_f32(&values, &mut bytes)?;
        Ok(Content::Values { dtype, shape: vec![values.len()], bytes: Bytes::from(bytes) })
    }
}

/// What a plain config says.
struct Said {
    shape: BlockShape,
    /// If the architecture has a key for it.
    head_dim: Option<usize>,
    /// All matrices of the attention have biases that they did not have before.
    attention_bias: bool,
    /// All matrices of the feed-forward network have biases that they did not have before.
    mlp_bias: bool,
}

impl Said {
    fn by_config(config: &Config, cuts: &[BlockCut]) -> Result<Self> {
        let kind = config.architecture;
        let shape = cuts.first().map_or(config.shape(0), BlockCut::shape);
        let refuse = |what: String| {
            Err(Error::unsupported(format!("{what}: config.json has no key for that in {kind:?}")))
        };
        if cuts.iter().any(|cut| cut.shape() != shape) {
            return refuse("blocks of different shapes".to_owned());
        }
        if config.shapes.is_some() {
            return refuse("a model whose blocks were given shapes of their own".to_owned());
        }
        if !kind.has_head_dim() && shape.heads != config.heads {
            return refuse(format!("{} heads of width {}", shape.heads, config.head_dim));
        }
        let attention_bias = cuts.iter().any(|cut| cut.attention_bias.is_some());
        let mlp_bias = cuts.iter().any(|cut| cut.mlp_bias.is_some());
        if attention_bias && !kind.has_output_bias() {
            return refuse("a bias of the attention's output matrix".to_owned());
        }
        if mlp_bias && !kind.has_mlp_bias() {
            return refuse("biases of the feed-forward network".to_owned());
        }
        Ok(Self {
            shape,
            head_dim: kind.has_head_dim().then_some(config.head_dim),
            attention_bias: attention_bias && !config.output_bias,
            mlp_bias: mlp_bias && !config.mlp_bias,
        })
    }

    fn write(&self, mut raw: Value) -> Value {
        if let (Some(raw), Value::Object(shape)) = (raw.as_object_mut(), self.shape.to_json()) {
            let known =
                |(key, _): &(String, Value)| self.head_dim.is_some() || key == "intermediate_size";
            raw.extend(shape.into_iter().filter(known));
            raw.extend(self.head_dim.map(|dim| ("head_dim".to_owned(), json!(dim))));
            for (key, set) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)]
            {
                raw.extend(set.then(|| (key.to_owned(), json!(true))));
            }
            raw.remove("quantization_config");
        }
        raw
    }
}

/// The config with the shape of each block.
fn with_shapes(mut raw: Value, cuts: &[BlockCut]) -> Value {
    let blocks: Vec<Value> = cuts.iter().map(|cut| cut.shape().to_json()).collect();
    raw["quantization_config"]["quant_method"] = json!("tensorpress");
    raw["quantization_config"]["blocks"] = json!(blocks);
    raw
}
