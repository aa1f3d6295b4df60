//! `config.json` out of a file's metadata.

use serde_json::{Map, json};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::arch::Arch;
use crate::gguf::{Header, Value};

/// Reads keys of an architecture.
pub(super) struct Said<'a> {
    pub(super) header: &'a Header,
    pub(super) arch: &'a str,
}

impl Said<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn bad(&self, key: &str, value: &Value, wanted: &str) -> Error {
        let kind = value.kind();
        Error::corruption(format!("key `{}` is {kind:?}, where {wanted} belongs", self.key(key)))
    }

    /// A whole number; of a list of them that are all the same, that one.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.header.get(&self.key(key)) else { return Ok(None) };
        if let Some(array) = value.as_array() {
            let mut numbers = array.iter().map(|value| value.as_u64());
            let first = numbers.next().flatten();
            return match first.filter(|_| numbers.all(|number| number == first)) {
                Some(number) => Ok(Some(number)),
                None => {
                    let what = format!("key `{}` differs from block to block", self.key(key));
                    Err(Error::unsupported(what))
                }
            };
        }
        let number = value.as_u64().ok_or_else(|| self.bad(key, value, "a whole number"))?;
        Ok(Some(number))
    }

    pub(super) fn needed(&self, key: &str) -> Result<u64> {
        let missing = || Error::insufficient(format!("key `{}` is missing", self.key(key)));
        self.number(key)?.ok_or_else(missing)
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.header.get(&self.key(key)) else { return Ok(None) };
        match value.as_f64().filter(|float| float.is_finite()) {
            Some(float) => Ok(Some(short(float as f32))),
            None => Err(self.bad(key, value, "a finite float")),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.header.get(&self.key(key)).and_then(Value::as_str)
    }
}

/// The number with the fewest digits that is this f32: 1e-5, not 9.99999974e-6.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// What `config.json` would say. `factors` are those of `rope_freqs`, or the long and the short ones of LongRoPE.
///
/// # Errors
/// `InsufficientData`, `Corruption` or `Unsupported`, naming the key.
pub(super) fn config(header: &Header, arch: &Arch, factors: &Factors) -> Result<Json> {
    let said = Said { header, arch: arch.gguf };
    let (hidden, blocks) = (said.needed("embedding_length")?, said.needed("block_count")?);
    let heads = said.needed("attention.head_count")?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Json| drop(config.insert(key.to_owned(), value));
    set("architectures", json!([arch.class]));
    set("model_type", arch.kind.into());
    set("hidden_size", hidden.into());
    set("num_hidden_layers", blocks.into());
    set("num_attention_heads", heads.into());
    set("intermediate_size", said.needed("feed_forward_length")?.into());
    set("max_position_embeddings", said.needed("context_length")?.into());
    let rows = |name: &str| header.tensor(name).and_then(|info| info.dims.get(1).copied());
    let vocab = match rows("token_embd.weight") {
        Some(rows) => rows,
        None => said.needed("vocab_size")?,
    };
    set("vocab_size", vocab.into());
    let token = |key: &str| header.get(&format!("tokenizer.ggml.{key}_token_id"))?.as_u64();
    for key in ["bos", "eos"] {
        set(&format!("{key}_token_id"), token(key).map_or(Json::Null, Json::from));
    }
    if arch.gguf == "bert" {
        let eps = said.float("attention.layer_norm_epsilon")?.unwrap_or(1e-12);
        set("layer_norm_eps", eps.into());
        set("hidden_act", "gelu".into());
        set("position_embedding_type", "absolute".into());
        set("type_vocab_size", rows("token_types.weight").unwrap_or(2).into());
        set("pad_token_id", token("padding").map_or(Json::Null, Json::from));
        return Ok(config.into());
    }
    let eps = said.float("attention.layer_norm_rms_epsilon")?;
    let missing = || {
        Error::insufficient(format!(
            "key `{}.attention.layer_norm_rms_epsilon` is missing",
            arch.gguf
        ))
    };
    set("rms_norm_eps", eps.ok_or_else(missing)?.into());
    set("num_key_value_heads", said.number("attention.head_count_kv")?.unwrap_or(heads).into());
    let turned = said.number("rope.dimension_count")?;
    let dim = match (said.number("attention.key_length")?, turned) {
        (Some(dim), _) => dim,
        (None, _) if heads > 0 && hidden % heads == 0 => hidden / heads,
        (None, dim) => dim.unwrap_or(0),
    };
    set("head_dim", dim.into());
    set("tie_word_embeddings", header.tensor("output.weight").is_none().into());
    let gemma = arch.gguf.starts_with("gemma");
    let act = if gemma { "gelu_pytorch_tanh" } else { "silu" };
    set(if gemma { "hidden_activation" } else { "hidden_act" }, act.into());
    let default = if arch.gguf == "gemma3" { 1e6 } else { 1e4 };
    set("rope_theta", said.float("rope.freq_base")?.unwrap_or(default).into());
    if let Some(scaling) = scaling(&said, factors)? {
        set("rope_scaling", scaling);
    }
    let window = said.number("attention.sliding_window")?;
    match arch.gguf {
        "gemma2" | "gemma3" => {
            set("sliding_window", window.unwrap_or(4096).into());
            // As llama.cpp has it, the largest ones scale by the width of the model.
            let largest = if arch.gguf == "gemma2" { 46 } else { 62 };
            let scale = if blocks == largest { hidden / heads.max(1) } else { dim };
            set("query_pre_attn_scalar", scale.into());
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                let cap = said.float(key)?;
                let cap = cap.filter(|_| arch.gguf == "gemma2" || key.starts_with("final"));
                set(key, cap.map_or(Json::Null, Json::from));
            }
            if arch.gguf == "gemma3" {
                let local = said.float("rope.freq_base_swa")?.unwrap_or(1e4);
                set("rope_local_base_freq", local.into());
                let pattern = said.number("attention.sliding_window_pattern")?.unwrap_or(6);
                set("sliding_window_pattern", pattern.into());
            }
        }
        "phi3" => {
            if let Some(original) = said.number("rope.scaling.original_context_length")? {
                set("original_max_position_embeddings", original.into());
            }
            if let Some(turned) = turned.filter(|turned| *turned < dim) {
                set("partial_rotary_factor", (turned as f64 / dim as f64).into());
            }
            set("sliding_window", window.filter(|w| *w > 0).map_or(Json::Null, Json::from));
        }
        "llama" => {
            let bias = header.tensor("blk.0.attn_q.bias").is_some();
            set("attention_bias", bias.into());
            set("mlp_bias", header.tensor("blk.0.ffn_up.bias").is_some().into());
        }
        _ => {}
    }
    if arch.has_experts() {
        let (all, used) = (said.needed("expert_count")?, said.needed("expert_used_count")?);
        set("num_experts_per_tok", used.into());
        if arch.kind == "mixtral" {
            set("num_local_experts", all.into());
        } else {
            set("num_experts", all.into());
            set("norm_topk_prob", true.into());
            set("decoder_sparse_step", 1.into());
            let inner = said.needed("expert_feed_forward_length")?;
            set("moe_intermediate_size", inner.into());
        }
    }
    Ok(config.into())
}

/// Stretches of wavelengths that lie in tensors.
#[derive(Debug, Default)]
pub(super) struct Factors {
    /// `rope_freqs`: one for each, at all lengths.
    pub(super) all: Option<Vec<f32>>,
    /// `rope_factors_short` and `rope_factors_long`.
    pub(super) short_long: Option<[Vec<f32>; 2]>,
}

fn scaling(said: &Said<'_>, factors: &Factors) -> Result<Option<Json>> {
    let list = |list: &[f32]| list.iter().map(|factor| short(*factor)).collect::<Vec<_>>();
    if let Some([first, long]) = &factors.short_long {
        let mut scaling = json!({
            "rope_type": "longrope",
            "short_factor": list(first),
            "long_factor": list(long),
        });
        if let Some(factor) = said.float("rope.scaling.attn_factor")? {
            scaling["attention_factor"] = factor.into();
        }
        return Ok(Some(scaling));
    }
    if let Some(all) = &factors.all {
        // The same at every length, and nothing is multiplied: what Llama 3's rule comes to.
        return Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": list(all),
            "long_factor": list(all),
            "attention_factor": 1.0,
        })));
    }
    let kind = said.text("rope.scaling.type").unwrap_or("none");
    let factor = said.float("rope.scaling.factor")?.or(said.float("rope.scale_linear")?);
    match (kind, factor) {
        ("none" | "longrope", None) => Ok(None),
        ("linear" | "none", Some(factor)) if factor > 0.0 => {
            let same = factor == 1.0;
            Ok((!same).then(|| json!({"rope_type": "linear", "factor": factor})))
        }
        ("yarn", Some(factor)) if factor > 0.0 => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            let original = said.number("rope.scaling.original_context_length")?;
            if let Some(original) = original {
                scaling["original_max_position_embeddings"] = original.into();
            }
            for key in ["beta_fast", "beta_slow"] {
                if let Some(beta) = said.float(&format!("rope.scaling.yarn_{key}"))? {
                    scaling[key] = beta.into();
                }
            }
            Ok(Some(scaling))
        }
        (kind, factor) => {
            Err(Error::unsupported(format!("rope scaling `{kind}` with a factor of {factor:?}")))
        }
    }
}
