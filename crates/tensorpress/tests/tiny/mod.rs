//! Small random decoders on disk, with the demo model's tokenizer.

#![allow(dead_code)] // each test that includes this uses a part of it

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tensorpress::prelude::*;
use tensorpress::tensor::checkpoint::write_shard;
use tensorpress::tensor::linalg::gaussian;
use tensorpress::tensor::{Part, PartKind, PartSink, Tensor};

pub const HIDDEN: usize = 24;

/// Files of a folder and their contents.
pub fn folder_bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let listing = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let read = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    listing.map(read).collect()
}

/// A random model.
#[derive(Debug, Clone)]
pub struct Tiny {
    pub config: Value,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    seed: u64,
}

impl Tiny {
    /// A model of two blocks of an architecture with Llama's names; `biased` where its config has keys for that.
    pub fn new(
        kind: &str,
        heads: (usize, usize),
        dim: usize,
        inner: usize,
        biased: bool,
        seed: u64,
    ) -> Self {
        Self::deep(kind, 2, heads, dim, inner, biased, seed)
    }

    /// The same with more blocks.
    pub fn deep(
        kind: &str,
        blocks: usize,
        (heads, kv_heads): (usize, usize),
        dim: usize,
        inner: usize,
        biased: bool,
        seed: u64,
    ) -> Self {
        let vocab = Source::demo(&registry()).unwrap().config().vocab;
        let config = json!({
            "model_type": kind, "hidden_size": HIDDEN, "intermediate_size": inner,
            "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": dim, "vocab_size": vocab, "max_position_embeddings": 96,
            "rms_norm_eps": 1e-5, "rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "attention_bias": biased, "mlp_bias": biased,
        });
        let mut tiny = Self { config, tensors: BTreeMap::new(), seed };
        tiny.add("model.embed_tokens.weight", &[vocab, HIDDEN]);
        tiny.add("lm_head.weight", &[vocab, HIDDEN]);
        tiny.add("model.norm.weight", &[HIDDEN]);
        let own = kind == "qwen2";
        let full = biased && (kind == "llama" || kind == "qwen3");
        let mlp = biased && kind == "llama";
        for block in 0..blocks {
            let mut add = |name: &str, shape: &[usize]| {
                tiny.add(&format!("model.layers.{block}.{name}"), shape);
            };
            add("input_layernorm.weight", &[HIDDEN]);
            add("post_attention_layernorm.weight", &[HIDDEN]);
            if kind == "qwen3" {
                add("self_attn.q_norm.weight", &[dim]);
                add("self_attn.k_norm.weight", &[dim]);
            }
            let (q, kv) = (heads * dim, kv_heads * dim);
            for (name, shape, bias) in [
                ("self_attn.q_proj", [q, HIDDEN], own || full),
                ("self_attn.k_proj", [kv, HIDDEN], own || full),
                ("self_attn.v_proj", [kv, HIDDEN], own || full),
                ("self_attn.o_proj", [HIDDEN, q], full),
                ("mlp.gate_proj", [inner, HIDDEN], mlp),
                ("mlp.up_proj", [inner, HIDDEN], mlp),
                ("mlp.down_proj", [HIDDEN, inner], mlp),
            ] {
                add(&format!("{name}.weight"), &shape);
                if bias {
                    add(&format!("{name}.bias"), &shape[..1]);
                }
            }
        }
        tiny
    }

    /// All that an opened model has.
    pub fn of(source: &Source) -> Self {
        let checkpoint = source.checkpoint();
        let read = |name: &str| {
            let tensor = checkpoint.tensor(name).unwrap();
            let values = tensor.to_matrix().unwrap().into_raw_vec_and_offset().0;
            (name.to_owned(), (tensor.shape().to_vec(), values))
        };
        let tensors = checkpoint.names().map(read).collect();
        Self { config: source.raw_config().clone(), tensors, seed: 0 }
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let seed = self.seed.wrapping_mul(1000).wrapping_add(self.tensors.len() as u64);
        let (scale, shift) = if name.contains("norm") { (0.1, 1.0) } else { (0.3, 0.0) };
        let value = |i| (shift + scale * gaussian(seed, i as u64)) as f32;
        let count: usize = shape.iter().product();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), (0..count).map(value).collect()));
    }

    /// Sets all columns of a matrix to 0 but these.
    pub fn switch_off(&mut self, name: &str, kept: &[usize]) {
        let (shape, values) = self.tensors.get_mut(name).unwrap();
        let width = shape[1];
        let gone = values.iter_mut().enumerate().filter(|(i, _)| !kept.contains(&(i % width)));
        gone.for_each(|(_, value)| *value = 0.0);
    }

    /// Writes it to a new folder, and opens it.
    pub fn source(&self, folder: &Path) -> Source {
        std::fs::create_dir(folder).unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(demo.join(name), folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let mut produce = |sink: &mut dyn PartSink| {
            for (name, (shape, values)) in &self.tensors {
                let mut bytes = Vec::new();
                DType::F32.write_f32(values, &mut bytes)?;
                sink.part(Part {
                    name: name.clone(),
                    kind: PartKind::Values,
                    dtype: DType::F32,
                    shape: shape.clone(),
                    bytes: Cow::Owned(bytes),
                })?;
            }
            Ok(())
        };
        write_shard(&folder.join("model.safetensors"), &BTreeMap::new(), &mut produce).unwrap();
        open_model(folder).unwrap()
    }
}
