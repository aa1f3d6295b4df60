//! What a model is: the validated contents of a `config.json`, in either of the spellings in use.

mod images;
pub(crate) mod keys;
mod rope;
pub(crate) mod shape;
pub(crate) mod text;

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;
pub use tensorpress_tensor::rewrite::BlockShape;
use tensorpress_tensor::{Error, Result};

pub use crate::architecture::Architecture;
use crate::architecture::{Draft, Plan};
pub use images::Images;
use keys::Keys;
pub(crate) use rope::mscale;
pub use rope::{RopeConfig, RopeScaling};

/// The nonlinearity between the matrices of the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// x / (1 + exp(-x))
    Silu,
    /// x Φ(x), exact
    Gelu,
    /// x Φ(x), approximated by tanh
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// x / (1 + exp(-1.702 x))
    QuickGelu,
}

/// A validated model configuration. Sizes are in channels, tokens or counts.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Config {
    /// Kind of transformer.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward network, unless `shapes` says otherwise.
    pub intermediate: usize,
    /// Transformer blocks.
    pub blocks: usize,
    /// Query heads, unless `shapes` says otherwise; 0 without attention, as are the two after it.
    pub heads: usize,
    /// Key and value heads, unless `shapes` says otherwise; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary; 0 of a model that reads images alone.
    pub vocab: usize,
    /// Tokens a sequence may have.
    pub context: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Nonlinearity of the feed-forward network.
    pub activation: Activation,
    /// Rotary embeddings; absent for encoders.
    pub rope: Option<RopeConfig>,
    /// The checkpoint has biases for q, k and v.
    pub qkv_bias: bool,
    /// The checkpoint has a bias for the attention's output.
    pub output_bias: bool,
    /// The checkpoint has biases in the feed-forward network.
    pub mlp_bias: bool,
    /// For each block, how many tokens back attention sees (the token itself included), if that is limited.
    pub windows: Vec<Option<usize>>,
    /// What each block has, where heads or channels were removed from single blocks; see [`Config::shape`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shapes: Option<Vec<BlockShape>>,
    /// The head over the vocabulary is the embedding.
    pub tied: bool,
    /// Kinds of tokens an encoder distinguishes.
    pub token_types: usize,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// The images that a model reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// Of a model with two towers, that of the texts and that of the images, whose blocks come in this order. What stands
    /// outside of them is the first one's, but for the number of blocks, and for the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub towers: Option<Box<[Config; 2]>>,
}

/// What the first of some blocks reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Token ids.
    Tokens,
    /// Images.
    Images,
}

/// No size in a config may exceed this, so that products of two fit 64 bits easily.
pub(crate) const MAX_SIZE: usize = 1 << 28;
const MAX_BLOCKS: usize = 1 << 12;

// What configs call the same thing.
const HIDDEN: [&str; 4] = ["hidden_size", "n_embd", "dim", "d_model"];
const BLOCKS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
const CONTEXT: [&str; 3] = ["max_position_embeddings", "n_positions", "n_ctx"];
const HEAD_DIM: [&str; 2] = ["head_dim", "d_kv"];
const EPSILON: [&str; 5] =
    ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"];
const ACTIVATION: [&str; 4] =
    ["hidden_activation", "hidden_act", "activation_function", "activation"];

impl Config {
    /// Reads a parsed `config.json`; `file` stands in errors.
    ///
    /// # Errors
    /// `InsufficientData` for a missing key, `Corruption` for an impossible value, `Unsupported` for an unknown
    /// architecture, rope scaling, activation or foreign quantisation; each names the file and the key.
    pub fn from_json(json: &Value, file: &Path) -> Result<Self> {
        with_keys(json, file, |keys, architecture| {
            let config = Self::read(keys, architecture)?;
            // What only the blocks ask for is judged here as well.
            config.plan_of(keys)?;
            Ok(config)
        })
    }

    /// Of a model of which nothing is known but its tensors: sizes are 0.
    pub(crate) fn unknown(blocks: usize) -> Self {
        Self {
            architecture: Architecture::UNKNOWN,
            hidden: 0,
            intermediate: 0,
            blocks,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            vocab: 0,
            images: None,
            towers: None,
            context: MAX_SIZE,
            norm_eps: 0.0,
            activation: Activation::Relu,
            rope: None,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            windows: vec![None; blocks],
            shapes: None,
            tied: false,
            token_types: 0,
            bos: None,
            eos: Vec::new(),
        }
    }

    /// What the model is made of.
    pub(crate) fn plan(&self, json: &Value, file: &Path) -> Result<Plan> {
        with_keys(json, file, |keys, _| self.plan_of(keys))
    }

    fn plan_of(&self, keys: &Keys<'_>) -> Result<Plan> {
        (self.architecture.row().plan)(&Draft { keys, config: self })
    }

    fn read(keys: &Keys<'_>, architecture: Architecture) -> Result<Self> {
        let row = architecture.row();
        if let Some(kinds) = row.towers {
            return Self::read_towers(keys, architecture, kinds);
        }
        let decoder = row.decoder;
        let hidden = keys.size(keys.known(&HIDDEN), MAX_SIZE)?;
        let blocks = keys.size(keys.known(&BLOCKS), MAX_BLOCKS)?;
        let BlockShape { heads, kv_heads, intermediate, .. } = shape::read(keys, row, hidden)?;
        let shapes = shape::read_all(keys, row, blocks, hidden)?;
        let head_dim = match keys
            .get::<usize>(keys.known(&HEAD_DIM))?
            .filter(|_| decoder || keys.present("d_kv").is_some())
        {
            _ if row.inner.is_some() => 0,
            Some(dim) => keys.check_size(keys.known(&HEAD_DIM), dim, MAX_SIZE)?,
            None if row.head_dim.is_some() => row.head_dim.unwrap_or_default(),
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(keys.bad(format!(
                    "`hidden_size` = {hidden} is no multiple of `num_attention_heads` = {heads}, \
                     and there is no `head_dim`"
                )));
            }
        };
        let most = shapes.iter().flatten().map(|shape| shape.heads).fold(heads, usize::max);
        if most.checked_mul(head_dim).is_none_or(|n| n > MAX_SIZE) {
            return Err(
                keys.bad(format!("`num_attention_heads` x `head_dim` = {most} x {head_dim}"))
            );
        }
        // Where no key says it, nothing limits it.
        let images = if row.images { Some(Images::read(keys)?) } else { None };
        let context = match keys.present(keys.known(&CONTEXT)) {
            _ if images.is_some() => images.map_or(0, |images| images.patches() + 1),
            Some(_) => keys.size(keys.known(&CONTEXT), MAX_SIZE)?,
            None => MAX_SIZE,
        };
        let reserved = (row.reserved)(keys)?;
        if reserved >= context {
            let message =
                format!("`max_position_embeddings` = {context}: {reserved} are no positions");
            return Err(keys.bad(message));
        }
        let context = context - reserved;
        let rope = if row.turns { Some(RopeConfig::read(keys, context)?) } else { None };
        // Sequences may be longer than what the angles were made for.
        let context = match rope.as_ref().map(|rope| &rope.scaling) {
            Some(RopeScaling::Dynamic { factor, .. }) => (context as f64 * factor) as usize,
            _ => context,
        };
        if row.turns && head_dim % 2 != 0 {
            return Err(
                keys.bad(format!("`head_dim` = {head_dim} must be even for rotary embeddings"))
            );
        }
        if !decoder && keys.or("position_embedding_type", "absolute".to_owned())? != "absolute" {
            return Err(keys.unsupported("`position_embedding_type` other than absolute"));
        }
        let [qkv_bias, output_bias, mlp_bias] = (row.biases)(keys)?;
        let eps = keys.positive(keys.known(&EPSILON), Some(row.eps))?;
        let windows = (row.windows)(keys, blocks)?;
        if let Some(window) = windows.iter().flatten().next() {
            keys.check_size("sliding_window", *window, MAX_SIZE)?;
        }
        Ok(Self {
            architecture,
            hidden,
            intermediate,
            blocks,
            heads,
            kv_heads,
            head_dim,
            vocab: if row.images { 0 } else { keys.size("vocab_size", MAX_SIZE)? },
            context,
            norm_eps: eps as f32,
            activation: activation(keys, row.activation)?,
            rope,
            qkv_bias,
            output_bias,
            mlp_bias,
            windows,
            shapes,
            tied: keys.or("tie_word_embeddings", row.tied)?,
            token_types: if decoder { 0 } else { keys.or("type_vocab_size", 0)? },
            bos: tokens(keys, "bos_token_id")?.first().copied(),
            eos: tokens(keys, "eos_token_id")?,
            images,
            towers: None,
        })
    }

    fn read_towers(
        keys: &Keys<'_>,
        architecture: Architecture,
        kinds: [(&str, &str); 2],
    ) -> Result<Self> {
        let read = |(key, kind): (&str, &str)| tower(keys, key, kind, Self::read);
        let [texts, images] = [read(kinds[0])?, read(kinds[1])?];
        Ok(Self {
            architecture,
            blocks: texts.blocks + images.blocks,
            windows: [texts.windows.clone(), images.windows.clone()].concat(),
            images: images.images,
            towers: Some(Box::new([texts.clone(), images])),
            ..texts
        })
    }

    /// Tokens or patches that a sequence may have, if anything limits that.
    #[must_use]
    pub fn limit(&self) -> Option<usize> {
        Some(self.context).filter(|context| *context < MAX_SIZE)
    }

    /// Blocks that run one after the other, and what the first of them reads: one list, or two of a model with two towers.
    #[must_use]
    pub fn stacks(&self) -> Vec<(Range<usize>, Reads)> {
        match &self.towers {
            Some(towers) => {
                let first = towers[0].blocks;
                vec![(0..first, Reads::Tokens), (first..self.blocks, Reads::Images)]
            }
            None if self.images.is_some() => vec![(0..self.blocks, Reads::Images)],
            None => vec![(0..self.blocks, Reads::Tokens)],
        }
    }

    /// The config of one of these lists.
    ///
    /// # Panics
    /// If there is no such list.
    #[must_use]
    pub fn stack(&self, stack: usize) -> &Self {
        assert!(stack < self.stacks().len(), "stack {stack} of {}", self.stacks().len());
        self.towers.as_ref().map_or(self, |towers| &towers[stack])
    }

    /// Heads and width of a block.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn shape(&self, block: usize) -> BlockShape {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        if let Some([texts, images]) = self.towers.as_deref() {
            let behind = block.checked_sub(texts.blocks);
            return behind.map_or_else(|| texts.shape(block), |block| images.shape(block));
        }
        let Self { heads, kv_heads, intermediate, .. } = *self;
        let all = BlockShape::new(heads, kv_heads, intermediate);
        self.shapes.as_ref().map_or(all, |shapes| shapes[block].clone())
    }
}

/// Reads keys of which those that are not there have the values that the architecture gives them.
fn with_keys<T>(
    json: &Value,
    file: &Path,
    read: impl FnOnce(&Keys<'_>, Architecture) -> Result<T>,
) -> Result<T> {
    let keys = Keys::new(json, file)?;
    refuse_foreign_quantization(&keys)?;
    let architecture = Architecture::read(&keys)?;
    read(&keys.over(&completed(json, architecture)), architecture)
}

/// The same of the tower under `key`, which is of a kind whatever it says.
pub(crate) fn tower<T>(
    keys: &Keys<'_>,
    key: &str,
    kind: &str,
    read: impl FnOnce(&Keys<'_>, Architecture) -> Result<T>,
) -> Result<T> {
    let Some(child) = keys.child(key)? else {
        return Err(
            Error::insufficient(format!("key {} is missing", keys.name(key))).in_file(keys.file())
        );
    };
    let architecture =
        Architecture::named(kind).ok_or_else(|| keys.unsupported(format!("a tower `{kind}`")))?;
    read(&child.over(&completed(child.json(), architecture)), architecture)
}

fn completed(json: &Value, architecture: Architecture) -> Cow<'_, Value> {
    let defaults = architecture.row().defaults;
    if defaults.is_empty() {
        return Cow::Borrowed(json);
    }
    let mut full = json.clone();
    for (key, value) in defaults {
        if full.get(key).is_none_or(Value::is_null) {
            full[key] = Value::from(*value);
        }
    }
    Cow::Owned(full)
}

fn activation(keys: &Keys<'_>, default: &str) -> Result<Activation> {
    let key = keys.known(&ACTIVATION);
    match keys.or(key, default.to_owned())?.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "relu" => Ok(Activation::Relu),
        other => Err(keys.unsupported(format!(
            "`{key}` = `{other}`; known are silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu and relu"
        ))),
    }
}

/// A token id, a list of them, or null.
fn tokens(keys: &Keys<'_>, key: &str) -> Result<Vec<u32>> {
    match keys.present(key) {
        Some(value) if value.is_array() => keys.require(key),
        // Some configs say -1 for "none".
        Some(value) if value.as_i64().is_some_and(|id| id < 0) => Ok(Vec::new()),
        Some(_) => Ok(vec![keys.require(key)?]),
        None => Ok(Vec::new()),
    }
}

fn refuse_foreign_quantization(keys: &Keys<'_>) -> Result<()> {
    let Some(quantization) = keys.child("quantization_config")? else { return Ok(()) };
    let method = quantization.or("quant_method", "unnamed".to_owned())?;
    if method == "tensorpress" {
        return Ok(());
    }
    Err(keys.unsupported(format!(
        "`quantization_config.quant_method` = `{method}`; a checkpoint in floats or by tensorpress is needed"
    )))
}
