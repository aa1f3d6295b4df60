//! Made checkpoints: shapes of real models of a billion parameters, and a tiny one of experts; random weights, bf16.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::{Outcome, root};

/// The shape of a decoder.
pub struct Shape {
    hidden: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    /// Feed-forward networks of a block, of which a token goes through two; 0 where there is one for all.
    experts: usize,
    vocabulary: usize,
}

/// Of the Llama kind: 1.04 billion parameters.
pub const DENSE: Shape = Shape {
    hidden: 2048,
    ffn: 8192,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    experts: 0,
    vocabulary: 32_000,
};
/// Of Mixtral's kind: 1.03 billion parameters.
pub const EXPERTS: Shape = Shape {
    hidden: 1024,
    ffn: 3584,
    layers: 11,
    heads: 16,
    kv_heads: 4,
    experts: 8,
    vocabulary: 32_000,
};
/// Of Mixtral's kind, with rows that blocks of 256 divide and the 512 tokens of stories260k.
pub const FEW_EXPERTS: Shape =
    Shape { hidden: 256, ffn: 512, layers: 2, heads: 4, kv_heads: 2, experts: 4, vocabulary: 512 };

/// Blocks in a shard: about 0.5 GB.
const BLOCKS_A_SHARD: usize = 4;

/// Writes the checkpoint into `folder`, with the demo model's tokenizer.
pub fn write(folder: &Path, shape: &Shape) -> Outcome {
    write_with(folder, shape, &root().join("crates/model/demo"))
}

/// Writes the checkpoint into `folder`, with the tokenizer of another.
pub fn write_with(folder: &Path, shape: &Shape, tokenizer: &Path) -> Outcome {
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut shards = vec![vec![
        ("model.embed_tokens.weight".to_owned(), vec![shape.vocabulary, shape.hidden]),
        ("model.norm.weight".to_owned(), vec![shape.hidden]),
    ]];
    for first in (0..shape.layers).step_by(BLOCKS_A_SHARD) {
        let blocks = first..shape.layers.min(first + BLOCKS_A_SHARD);
        shards.push(blocks.flat_map(|block| shape.tensors(block)).collect());
    }
    let mut weight_map = serde_json::Map::new();
    let mut total = 0;
    for (i, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        total += write_shard(&folder.join(&name), tensors, i as u64)?;
        weight_map.extend(tensors.iter().map(|(t, _)| (t.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": 2 * total}, "weight_map": weight_map});
    write_json(&folder.join("model.safetensors.index.json"), &index)?;
    write_json(&folder.join("config.json"), &shape.config())?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let from = tokenizer.join(file);
        std::fs::copy(&from, folder.join(file)).map_err(|e| format!("{}: {e}", from.display()))?;
    }
    println!("{}: {total} parameters", folder.display());
    Ok(())
}

impl Shape {
    fn config(&self) -> serde_json::Value {
        let (class, kind) = match self.experts {
            0 => ("LlamaForCausalLM", "llama"),
            _ => ("MixtralForCausalLM", "mixtral"),
        };
        let mut config = json!({
            "architectures": [class], "model_type": kind, "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.hidden / self.heads,
            "vocab_size": self.vocabulary, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "rope_scaling": null, "max_position_embeddings": 2048, "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        });
        if self.experts > 0 {
            config["num_local_experts"] = json!(self.experts);
            config["num_experts_per_tok"] = json!(2);
        }
        config
    }

    fn tensors(&self, block: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, ffn) = (self.hidden, self.ffn);
        let kv = hidden / self.heads * self.kv_heads;
        let mut tensors: Vec<(String, Vec<usize>)> = [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape))
        .into();
        let mut network = |gate: String, up: String, down: String| {
            tensors.extend([(gate, vec![ffn, hidden]), (up, vec![ffn, hidden])]);
            tensors.push((down, vec![hidden, ffn]));
        };
        if self.experts == 0 {
            let [gate, up, down] = ["gate", "up", "down"].map(|of| format!("mlp.{of}_proj"));
            network(gate, up, down);
        }
        for expert in 0..self.experts {
            let name = |of| format!("block_sparse_moe.experts.{expert}.{of}");
            network(name("w1"), name("w3"), name("w2"));
        }
        if self.experts > 0 {
            tensors.push(("block_sparse_moe.gate".into(), vec![self.experts, hidden]));
        }
        let full = |(name, shape)| (format!("model.layers.{block}.{name}.weight"), shape);
        tensors.into_iter().map(full).collect()
    }
}

/// Writes one shard; returns its number of parameters.
fn write_shard(path: &Path, tensors: &[(String, Vec<usize>)], seed: u64) -> Outcome<usize> {
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut header = serde_json::Map::new();
    let mut count = 0;
    for (name, shape) in tensors {
        let end = count + shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [2 * count, 2 * end]}),
        );
        count = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(fail)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    file.write_all(header.as_bytes()).map_err(fail)?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (_, shape) in tensors {
        let norm = shape.len() == 1;
        // Standard deviation 1/sqrt(inputs): activations keep their size through the blocks.
        let deviation = 1.0 / (*shape.last().unwrap_or(&1) as f32).sqrt();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let value = if norm { 1.0 } else { deviation * nearly_gaussian(mix(state)) };
            file.write_all(&((value.to_bits() >> 16) as u16).to_le_bytes()).map_err(fail)?;
        }
    }
    file.into_inner().map_err(|e| fail(e.into_error()))?.sync_all().map_err(fail)?;
    Ok(count)
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sum of four uniform numbers, of mean 0 and variance 1.
fn nearly_gaussian(bits: u64) -> f32 {
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
}

fn write_json(path: &Path, value: &serde_json::Value) -> Outcome {
    std::fs::write(path, format!("{value:#}\n")).map_err(|e| format!("{}: {e}", path.display()))
}
