//! A made checkpoint of 1.04 billion parameters: the shapes of a real model, random weights, sharded, bf16.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::{Outcome, root};

const HIDDEN: usize = 2048;
const FFN: usize = 8192;
const LAYERS: usize = 16;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const VOCABULARY: usize = 32_000;
/// Blocks in a shard: 0.5 GB.
const BLOCKS_A_SHARD: usize = 4;

/// Writes the checkpoint into `folder`, with the demo model's tokenizer.
pub fn write(folder: &Path) -> Outcome {
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut shards = vec![vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]];
    for first in (0..LAYERS).step_by(BLOCKS_A_SHARD) {
        shards.push((first..first + BLOCKS_A_SHARD).flat_map(block_tensors).collect());
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
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN / HEADS,
        "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "max_position_embeddings": 2048, "tie_word_embeddings": true, "attention_bias": false,
        "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    });
    write_json(&folder.join("config.json"), &config)?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let from = root().join("crates/model/demo").join(file);
        std::fs::copy(&from, folder.join(file)).map_err(|e| format!("{}: {e}", from.display()))?;
    }
    println!("{}: {total} parameters", folder.display());
    Ok(())
}

fn block_tensors(block: usize) -> Vec<(String, Vec<usize>)> {
    let kv = HIDDEN / HEADS * KV_HEADS;
    [
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.k_proj", vec![kv, HIDDEN]),
        ("self_attn.v_proj", vec![kv, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("mlp.gate_proj", vec![FFN, HIDDEN]),
        ("mlp.up_proj", vec![FFN, HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, FFN]),
        ("input_layernorm", vec![HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
    ]
    .into_iter()
    .map(|(name, shape)| (format!("model.layers.{block}.{name}.weight"), shape))
    .collect()
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
