//! What a model is: the validated contents of a `config.json`, in either of the spellings in use.

pub(crate) mod keys;
mod rope;
pub(crate) mod shape;

use std::path::Path;

use serde_json::Value;
use tensorpress_tensor::Result;
pub use tensorpress_tensor::rewrite::BlockShape;

use keys::Keys;
pub use rope::{RopeConfig, RopeScaling};

/// Kinds of transformers known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3, and models with their layout.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: Llama with biases on q, k and v.
    Qwen2,
    /// Qwen 3: Llama with norms on the heads of q and k.
    Qwen3,
    /// BERT: an encoder.
    Bert,
}

impl Architecture {
    /// Whether tokens see only what comes before them, and there is a head over the vocabulary.
    #[must_use]
    pub fn is_decoder(self) -> bool {
        self != Self::Bert
    }
}

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
    /// Query heads, unless `shapes` says otherwise.
    pub heads: usize,
    /// Key and value heads, unless `shapes` says otherwise; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
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
}

/// No size in a config may exceed this, so that products of two fit 64 bits easily.
const MAX_SIZE: usize = 1 << 28;
const MAX_BLOCKS: usize = 1 << 12;

impl Config {
    /// Reads a parsed `config.json`; `file` stands in errors.
    ///
    /// # Errors
    /// `InsufficientData` for a missing key, `Corruption` for an impossible value, `Unsupported` for an unknown
    /// architecture, rope scaling, activation or foreign quantisation; each names the file and the key.
    pub fn from_json(json: &Value, file: &Path) -> Result<Self> {
        let keys = Keys::new(json, file)?;
        refuse_foreign_quantization(&keys)?;
        let architecture = architecture(&keys)?;
        let decoder = architecture.is_decoder();
        let hidden = keys.size("hidden_size", MAX_SIZE)?;
        let blocks = keys.size("num_hidden_layers", MAX_BLOCKS)?;
        let BlockShape { heads, kv_heads, intermediate, .. } = shape::read(&keys)?;
        let shapes = shape::read_all(&keys, blocks)?;
        let head_dim = match keys.get::<usize>("head_dim")?.filter(|_| decoder) {
            Some(dim) => keys.check_size("head_dim", dim, MAX_SIZE)?,
            // Qwen 3 fixes the default, whatever the width.
            None if architecture == Architecture::Qwen3 => 128,
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
        let context = keys.size("max_position_embeddings", MAX_SIZE)?;
        let rope = if decoder { Some(RopeConfig::read(&keys, context)?) } else { None };
        if decoder && head_dim % 2 != 0 {
            return Err(
                keys.bad(format!("`head_dim` = {head_dim} must be even for rotary embeddings"))
            );
        }
        if keys.or("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(keys.unsupported("`partial_rotary_factor` other than 1"));
        }
        if !decoder && keys.or("position_embedding_type", "absolute".to_owned())? != "absolute" {
            return Err(keys.unsupported("`position_embedding_type` other than absolute"));
        }
        let bias = keys.or("attention_bias", false)?;
        let (qkv_bias, output_bias, mlp_bias) = match architecture {
            Architecture::Llama => (bias, bias, keys.or("mlp_bias", false)?),
            Architecture::Mistral => (false, false, false),
            Architecture::Qwen2 => (true, false, false),
            Architecture::Qwen3 => (bias, bias, false),
            Architecture::Bert => (true, true, true),
        };
        let eps = if decoder {
            keys.positive("rms_norm_eps", Some(1e-6))?
        } else {
            keys.positive("layer_norm_eps", Some(1e-12))?
        };
        Ok(Self {
            architecture,
            hidden,
            intermediate,
            blocks,
            heads,
            kv_heads,
            head_dim,
            vocab: keys.size("vocab_size", MAX_SIZE)?,
            context,
            norm_eps: eps as f32,
            activation: activation(&keys, if decoder { "silu" } else { "gelu" })?,
            rope,
            qkv_bias,
            output_bias,
            mlp_bias,
            windows: windows(&keys, architecture, blocks)?,
            shapes,
            tied: keys.or("tie_word_embeddings", false)?,
            token_types: if decoder { 0 } else { keys.size("type_vocab_size", MAX_SIZE)? },
            bos: tokens(&keys, "bos_token_id")?.first().copied(),
            eos: tokens(&keys, "eos_token_id")?,
        })
    }

    /// Heads and width of a block.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn shape(&self, block: usize) -> BlockShape {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let Self { heads, kv_heads, intermediate, .. } = *self;
        let all = BlockShape::new(heads, kv_heads, intermediate);
        self.shapes.as_ref().map_or(all, |shapes| shapes[block])
    }

    /// Query and key heads are normalised.
    #[must_use]
    pub fn qk_norm(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }
}

fn architecture(keys: &Keys<'_>) -> Result<Architecture> {
    let named: Vec<String> = keys.or("architectures", Vec::new())?;
    let kind = match keys.get::<String>("model_type")? {
        Some(kind) => kind,
        // Old checkpoints have only the class: LlamaForCausalLM.
        None => match named.first().and_then(|class| class.split("For").next()) {
            Some(class) => class.trim_end_matches("Model").to_lowercase(),
            None => keys.require("model_type")?,
        },
    };
    match kind.as_str() {
        "llama" => Ok(Architecture::Llama),
        "mistral" => Ok(Architecture::Mistral),
        "qwen2" => Ok(Architecture::Qwen2),
        "qwen3" => Ok(Architecture::Qwen3),
        "bert" => Ok(Architecture::Bert),
        other => Err(keys.unsupported(format!(
            "`model_type` = `{other}`; known are llama, mistral, qwen2, qwen3 and bert"
        ))),
    }
}

fn activation(keys: &Keys<'_>, default: &str) -> Result<Activation> {
    match keys.or("hidden_act", default.to_owned())?.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(keys.unsupported(format!(
            "`hidden_act` = `{other}`; known are silu, gelu, gelu_new, gelu_pytorch_tanh and relu"
        ))),
    }
}

/// The sliding window of every block. `layer_types` says it in today's configs; older Qwen configs give windows to
/// the blocks from `max_window_layers` on, if `use_sliding_window`.
fn windows(keys: &Keys<'_>, of: Architecture, blocks: usize) -> Result<Vec<Option<usize>>> {
    let mut window = match of {
        Architecture::Llama | Architecture::Bert => None,
        _ => keys.get::<usize>("sliding_window")?,
    };
    let qwen = matches!(of, Architecture::Qwen2 | Architecture::Qwen3);
    if qwen && !keys.or("use_sliding_window", false)? {
        window = None;
    }
    let Some(window) = window else { return Ok(vec![None; blocks]) };
    keys.check_size("sliding_window", window, MAX_SIZE)?;
    if let Some(types) = keys.get::<Vec<String>>("layer_types")?.filter(|_| qwen) {
        if types.len() != blocks {
            return Err(keys.bad(format!("{} `layer_types` for {blocks} layers", types.len())));
        }
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(Some(window)),
                other => Err(keys.unsupported(format!("`layer_types` has `{other}`"))),
            })
            .collect();
    }
    let from = if qwen { keys.or("max_window_layers", 28)? } else { 0 };
    Ok((0..blocks).map(|block| (block >= from).then_some(window)).collect())
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
