//! What a file says of a model in a folder.

use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use super::arch::Arch;
use crate::gguf::Value;

/// Keys of metadata, as they are gathered.
struct Keys<'a> {
    arch: &'a Arch,
    config: &'a Json,
    pairs: Vec<(String, Value)>,
}

impl Keys<'_> {
    fn put(&mut self, key: &str, value: Value) {
        self.pairs.push((format!("{}.{key}", self.arch.gguf), value));
    }

    /// A whole number of the config, by the first of these names that is there.
    fn number(&self, names: &[&str]) -> Result<Option<u32>> {
        let Some(name) = names.iter().find(|name| !self.config[**name].is_null()) else {
            return Ok(None);
        };
        let value = &self.config[*name];
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        let bad = || Error::corruption(format!("`{name}` = {value} in config.json is no number"));
        number.map(Some).ok_or_else(bad)
    }

    fn needed(&self, names: &[&str]) -> Result<u32> {
        let missing = || Error::insufficient(format!("`{}` is missing in config.json", names[0]));
        self.number(names)?.ok_or_else(missing)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.config[name].as_f64().map(|value| value as f32)
    }

    fn copy(&mut self, key: &str, names: &[&str]) -> Result<()> {
        if let Some(number) = self.number(names)? {
            self.put(key, Value::U32(number));
        }
        Ok(())
    }
}

/// Pairs of metadata, in order.
pub type Metadata = Vec<(String, Value)>;
/// Names and values of tensors that hold stretches of wavelengths.
pub type Factors = Vec<(String, Vec<f32>)>;

/// The metadata of a model with this `config.json`, without its tokenizer: `name` is what the model is called, `file_type`
/// the number of what most of its tensors are. Stretches of wavelengths that lie in tensors come beside it: name and values.
///
/// # Errors
/// `InsufficientData` or `Corruption` for keys that are missing or impossible, `Unsupported` for rope scalings that files
/// have no words for.
pub fn metadata_of(
    config: &Json,
    arch: &Arch,
    name: &str,
    file_type: u32,
) -> Result<(Metadata, Factors)> {
    let text = |text: &str| Value::String(text.to_owned());
    let pairs = vec![
        ("general.architecture".to_owned(), text(arch.gguf)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(name)),
        ("general.file_type".to_owned(), Value::U32(file_type)),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ];
    let mut keys = Keys { arch, config, pairs };
    let blocks = keys.needed(&["num_hidden_layers"])?;
    let hidden = keys.needed(&["hidden_size"])?;
    let heads = keys.needed(&["num_attention_heads"])?;
    keys.put("block_count", Value::U32(blocks));
    let context = keys.needed(&["max_position_embeddings"])?;
    keys.put("context_length", Value::U32(context));
    keys.put("embedding_length", Value::U32(hidden));
    let inner = keys.needed(&["intermediate_size"])?;
    keys.put("feed_forward_length", Value::U32(inner));
    keys.put("attention.head_count", Value::U32(heads));
    if arch.gguf == "bert" {
        keys.put(
            "attention.layer_norm_epsilon",
            Value::F32(keys.float("layer_norm_eps").unwrap_or(1e-12)),
        );
        keys.put("attention.causal", Value::Bool(false));
        // The mean of the tokens.
        keys.put("pooling_type", Value::U32(1));
        return Ok((keys.pairs, Vec::new()));
    }
    let kv_heads = keys.number(&["num_key_value_heads"])?.unwrap_or(heads);
    keys.put("attention.head_count_kv", Value::U32(kv_heads));
    let eps = keys.float("rms_norm_eps");
    let eps = eps.ok_or_else(|| Error::insufficient("`rms_norm_eps` is missing in config.json"))?;
    keys.put("attention.layer_norm_rms_epsilon", Value::F32(eps));
    let usual = match arch.gguf {
        "gemma2" | "gemma3" => 256,
        "qwen3" | "qwen3moe" => 128,
        _ => hidden / heads.max(1),
    };
    let dim = keys.number(&["head_dim"])?.unwrap_or(usual);
    if dim != hidden / heads.max(1) || !matches!(arch.gguf, "llama" | "qwen2" | "phi3") {
        keys.put("attention.key_length", Value::U32(dim));
        keys.put("attention.value_length", Value::U32(dim));
    }
    let rope = match &config["rope_parameters"]["full_attention"] {
        Json::Null => &config["rope_parameters"],
        full => full,
    };
    let theta = keys.float("rope_theta").or(rope["rope_theta"].as_f64().map(|v| v as f32));
    keys.put("rope.freq_base", Value::F32(theta.unwrap_or(1e4)));
    match arch.gguf {
        "llama" | "phi3" => {
            let within = rope["partial_rotary_factor"].as_f64().map(|share| share as f32);
            let share = keys.float("partial_rotary_factor").or(within).unwrap_or(1.0);
            keys.put("rope.dimension_count", Value::U32((share * dim as f32).round() as u32));
            let vocab = keys.needed(&["vocab_size"])?;
            keys.put("vocab_size", Value::U32(vocab));
        }
        _ => {}
    }
    match arch.gguf {
        "gemma2" | "gemma3" => {
            let window = keys.number(&["sliding_window"])?.unwrap_or(4096);
            keys.put("attention.sliding_window", Value::U32(window));
            if arch.gguf == "gemma3" {
                let pattern = pattern(config).filter(|pattern| *pattern != 6);
                if let Some(pattern) = pattern {
                    keys.put("attention.sliding_window_pattern", Value::U32(pattern));
                }
                let local = keys.float("rope_local_base_freq");
                let within = &config["rope_parameters"]["sliding_attention"]["rope_theta"];
                let local = local.or(within.as_f64().map(|theta| theta as f32));
                if let Some(theta) = local.filter(|theta| *theta != 1e4) {
                    keys.put("rope.freq_base_swa", Value::F32(theta));
                }
            }
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if let Some(cap) = keys.float(key) {
                    keys.put(key, Value::F32(cap));
                }
            }
        }
        "phi3" => keys.copy("attention.sliding_window", &["sliding_window"])?,
        _ => {}
    }
    if arch.has_experts() {
        keys.copy("expert_count", &["num_local_experts", "num_experts"])?;
        keys.copy("expert_used_count", &["num_experts_per_tok"])?;
        keys.copy("expert_feed_forward_length", &["moe_intermediate_size"])?;
    }
    let scaling = match &config["rope_scaling"] {
        Json::Null => rope,
        scaling => scaling,
    };
    let factors = scaled(&mut keys, scaling, theta.unwrap_or(1e4), dim, context)?;
    Ok((keys.pairs, factors))
}

/// Every how many blocks one sees everything.
fn pattern(config: &Json) -> Option<u32> {
    let full = |kind: &Json| kind.as_str() == Some("full_attention");
    let by_types = config["layer_types"].as_array().and_then(|types| types.iter().position(full));
    let said = ["sliding_window_pattern", "_sliding_window_pattern"];
    let said = said.iter().find_map(|key| config[*key].as_u64());
    by_types.map(|block| block as u32 + 1).or(said.map(|pattern| pattern as u32))
}

fn scaled(
    keys: &mut Keys<'_>,
    scaling: &Json,
    theta: f32,
    dim: u32,
    context: u32,
) -> Result<Vec<(String, Vec<f32>)>> {
    let kind = ["rope_type", "type"].iter().find_map(|key| scaling[*key].as_str());
    let number = |name: &str| {
        let missing = || Error::insufficient(format!("`rope_scaling.{name}` is missing"));
        scaling[name].as_f64().ok_or_else(missing)
    };
    let list = |name: &str| -> Result<Vec<f32>> {
        let values = scaling[name].as_array();
        let missing = || Error::insufficient(format!("`rope_scaling.{name}` is missing"));
        Ok(values.ok_or_else(missing)?.iter().filter_map(Json::as_f64).map(|v| v as f32).collect())
    };
    let original = || {
        let own = scaling["original_max_position_embeddings"].as_f64();
        own.or(keys.config["original_max_position_embeddings"].as_f64())
    };
    match kind {
        None | Some("default") => Ok(Vec::new()),
        Some(kind @ ("linear" | "yarn")) => {
            let (factor, original) = (number("factor")?, original());
            keys.put("rope.scaling.type", Value::String(kind.to_owned()));
            keys.put("rope.scaling.factor", Value::F32(factor as f32));
            if let Some(original) = original.filter(|_| kind == "yarn") {
                keys.put("rope.scaling.original_context_length", Value::U32(original as u32));
            }
            for (key, usual) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
                if let Some(beta) = scaling[key].as_f64().filter(|beta| *beta != usual) {
                    keys.put(&format!("rope.scaling.yarn_{key}"), Value::F32(beta as f32));
                }
            }
            Ok(Vec::new())
        }
        Some("llama3") => {
            let (factor, low) = (number("factor")?, number("low_freq_factor")?);
            let (high, before) = (number("high_freq_factor")?, original().unwrap_or(8192.0));
            let stretch = |i: u32| {
                let turn = f64::from(theta).powf(f64::from(2 * i) / f64::from(dim));
                let wavelength = 2.0 * std::f64::consts::PI * turn;
                if wavelength < before / high {
                    1.0
                } else if wavelength > before / low {
                    factor
                } else {
                    let smooth = (before / wavelength - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            };
            let all = (0..dim / 2).map(|i| stretch(i) as f32).collect();
            Ok(vec![("rope_freqs.weight".to_owned(), all)])
        }
        Some("longrope" | "su") => {
            let (short, long) = (list("short_factor")?, list("long_factor")?);
            if short == long && scaling["attention_factor"].as_f64() == Some(1.0) {
                return Ok(vec![("rope_freqs.weight".to_owned(), long)]);
            }
            let before = original().unwrap_or(f64::from(context));
            let stretch = f64::from(context) / before;
            let usual = if stretch > 1.0 { (1.0 + stretch.ln() / before.ln()).sqrt() } else { 1.0 };
            let factor = scaling["attention_factor"].as_f64().unwrap_or(usual);
            keys.put("rope.scaling.original_context_length", Value::U32(before as u32));
            keys.put("rope.scaling.attn_factor", Value::F32(factor as f32));
            Ok(vec![
                ("rope_factors_long.weight".to_owned(), long),
                ("rope_factors_short.weight".to_owned(), short),
            ])
        }
        Some(other) => {
            Err(Error::unsupported(format!("rope scaling `{other}` has no words in GGUF files")))
        }
    }
}
