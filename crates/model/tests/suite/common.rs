//! Small random models on disk, and what the tests share.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tensorpress_model::{Decoder, KvCache, Source};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{DType, Part, PartKind, PartSink, Registry, Result, Scratch};

pub fn open(folder: impl AsRef<Path>) -> Result<Source> {
    Source::open(folder, &Registry::default())
}

/// Logits of a whole sequence, without a cache.
pub fn logits(model: &Decoder, ids: &[u32]) -> Result<Array2<f32>> {
    let mut scratch = Scratch::default();
    let hidden = model.hidden(ids, &mut scratch)?;
    model.head().logits(hidden.view(), &mut scratch)
}

/// Logits of a sequence that comes in pieces of these lengths, through the cache.
pub fn logits_in_pieces(model: &Decoder, ids: &[u32], pieces: &[usize]) -> Result<Array2<f32>> {
    logits_through(model, model.cache(), ids, pieces)
}

/// The same through caches of any form.
pub fn logits_through(
    model: &Decoder,
    mut cache: Vec<Box<dyn KvCache>>,
    ids: &[u32],
    pieces: &[usize],
) -> Result<Array2<f32>> {
    let mut scratch = Scratch::default();
    let mut all = Array2::zeros((0, model.config().vocab));
    let mut rest = ids;
    for piece in pieces {
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        all.append(
            tensorpress_tensor::ndarray::Axis(0),
            model.forward(now, &mut cache, &mut scratch)?.view(),
        )
        .expect("rows of one width");
        rest = later;
    }
    Ok(all)
}

pub fn max_difference(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A random model with Llama's layout.
#[derive(Debug, Clone)]
pub struct Tiny {
    pub config: Value,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
}

impl Tiny {
    /// A Llama of 2 blocks.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let (hidden, inner, vocab) = (24, 40, 61);
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
            "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab,
            "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "bos_token_id": 1,
            "eos_token_id": [2, 3], "torch_dtype": "float32", "hidden_act": "silu",
        });
        let mut tiny = Self { config, tensors: BTreeMap::new(), metadata: BTreeMap::new() };
        tiny.add("model.embed_tokens.weight", &[vocab, hidden]);
        tiny.add("lm_head.weight", &[vocab, hidden]);
        tiny.add("model.norm.weight", &[hidden]);
        for block in 0..2 {
            let mut add = |name: &str, shape: &[usize]| {
                tiny.add(&format!("model.layers.{block}.{name}.weight"), shape);
            };
            add("input_layernorm", &[hidden]);
            add("post_attention_layernorm", &[hidden]);
            add("self_attn.q_proj", &[heads * head_dim, hidden]);
            add("self_attn.k_proj", &[kv_heads * head_dim, hidden]);
            add("self_attn.v_proj", &[kv_heads * head_dim, hidden]);
            add("self_attn.o_proj", &[hidden, heads * head_dim]);
            add("mlp.gate_proj", &[inner, hidden]);
            add("mlp.up_proj", &[inner, hidden]);
            add("mlp.down_proj", &[hidden, inner]);
        }
        tiny
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let seed = self.tensors.len() as u64;
        let scale = if shape.len() == 1 { 0.1 } else { 0.3 };
        let shift = if shape.len() == 1 { 1.0 } else { 0.0 };
        let value = |i| (shift + scale * gaussian(seed, i as u64)) as f32;
        let count: usize = shape.iter().product();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), (0..count).map(value).collect()));
    }

    /// Writes config.json and model.safetensors.
    pub fn write(&self, folder: &Path) {
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
        write_shard(&folder.join("model.safetensors"), &self.metadata, &mut produce).unwrap();
    }

    /// Opens it from a temporary folder.
    pub fn source(&self) -> (tempfile::TempDir, Result<Source>) {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        let source = open(folder.path());
        (folder, source)
    }

    pub fn decoder(&self) -> Decoder {
        let (_folder, source) = self.source();
        source.unwrap().decoder().unwrap().materialise().unwrap()
    }
}
