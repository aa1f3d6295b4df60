//! Shape and parameters of a Llama, and how they are stored in a Hugging Face folder.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// The fields of a Hugging Face Llama configuration that the arithmetic needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Longest sequence.
    pub max_position_embeddings: usize,
}

impl Config {
    /// The demo model's shape: about 1.3 million parameters, every row a multiple of 128 long, so
    /// that groups of 32, 64 and 128 divide it.
    pub fn demo(vocab_size: usize) -> Self {
        Config {
            hidden_size: 128,
            intermediate_size: 384,
            num_hidden_layers: 6,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            vocab_size,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: 512,
        }
    }

    /// Width of the queries.
    pub fn q_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the keys, and of the values.
    pub fn kv_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Width of queries, keys and values together.
    pub fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }
}

/// Where each block's parameters lie in the flat vector. Matrices are row-major `[out, in]`;
/// query, key and value (and gate and up) lie one after the other, so each set is one product.
#[derive(Clone, Debug)]
pub struct Block {
    /// Norm before the attention.
    pub norm1: Range<usize>,
    /// Query, key and value projections.
    pub qkv: Range<usize>,
    /// Output projection.
    pub out: Range<usize>,
    /// Norm before the gated layer.
    pub norm2: Range<usize>,
    /// Gate and up projections.
    pub gate_up: Range<usize>,
    /// Down projection.
    pub down: Range<usize>,
}

/// Where all parameters lie in the flat vector.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Embedding, also the head.
    pub embed: Range<usize>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Final norm.
    pub norm: Range<usize>,
    /// Number of parameters.
    pub len: usize,
}

impl Layout {
    /// Layout for a shape.
    pub fn new(c: &Config) -> Self {
        let mut len = 0;
        let mut take = |n: usize| {
            len += n;
            len - n..len
        };
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        let embed = take(c.vocab_size * d);
        let blocks = (0..c.num_hidden_layers)
            .map(|_| Block {
                norm1: take(d),
                qkv: take(c.qkv_dim() * d),
                out: take(d * c.q_dim()),
                norm2: take(d),
                gate_up: take(2 * ff * d),
                down: take(d * ff),
            })
            .collect();
        let norm = take(d);
        Layout { embed, blocks, norm, len }
    }

    /// Name, place and shape of every tensor of the Hugging Face layout.
    pub fn tensors(&self, c: &Config) -> Vec<(String, Range<usize>, Vec<usize>)> {
        let (d, ff, q, kv) = (c.hidden_size, c.intermediate_size, c.q_dim(), c.kv_dim());
        let mut all =
            vec![("model.embed_tokens.weight".into(), self.embed.clone(), vec![c.vocab_size, d])];
        for (i, b) in self.blocks.iter().enumerate() {
            let mut push = |name: &str, start: usize, shape: Vec<usize>| {
                let len = shape.iter().product::<usize>();
                all.push((format!("model.layers.{i}.{name}.weight"), start..start + len, shape));
            };
            push("input_layernorm", b.norm1.start, vec![d]);
            push("self_attn.q_proj", b.qkv.start, vec![q, d]);
            push("self_attn.k_proj", b.qkv.start + q * d, vec![kv, d]);
            push("self_attn.v_proj", b.qkv.start + (q + kv) * d, vec![kv, d]);
            push("self_attn.o_proj", b.out.start, vec![d, q]);
            push("post_attention_layernorm", b.norm2.start, vec![d]);
            push("mlp.gate_proj", b.gate_up.start, vec![ff, d]);
            push("mlp.up_proj", b.gate_up.start + ff * d, vec![ff, d]);
            push("mlp.down_proj", b.down.start, vec![d, ff]);
        }
        all.push(("model.norm.weight".into(), self.norm.clone(), vec![d]));
        all
    }
}

/// A Llama in f32.
#[derive(Clone, Debug)]
pub struct Llama {
    /// Its shape.
    pub config: Config,
    /// Where its parameters lie.
    pub layout: Layout,
    /// Its parameters.
    pub params: Vec<f32>,
}

impl Llama {
    /// A freshly initialised model: normal weights of deviation `fan_in^-1/2`, smaller ones for
    /// the embedding and for the projections that write into the residual stream.
    pub fn init(config: Config, seed: u64) -> Self {
        let layout = Layout::new(&config);
        let mut params = vec![1.0; layout.len];
        let mut rng = Rng::new(seed, 0);
        for (name, range, shape) in layout.tensors(&config) {
            if shape.len() < 2 {
                continue;
            }
            let residual = name.contains("o_proj") || name.contains("down_proj");
            let std = match () {
                _ if name.contains("embed") => 0.04,
                _ if residual => {
                    (shape[1] as f32 * 2.0 * config.num_hidden_layers as f32).sqrt().recip()
                }
                _ => (shape[1] as f32).sqrt().recip(),
            };
            for p in &mut params[range] {
                *p = std * rng.normal();
            }
        }
        Llama { config, layout, params }
    }

    /// Reads a Hugging Face folder (f32 or bf16, tied embedding).
    pub fn load(folder: &Path) -> Result<Self> {
        let config = std::fs::read(folder.join("config.json"))
            .with_context(|| format!("cannot read the model in {}", folder.display()))?;
        let config: Config = serde_json::from_slice(&config)?;
        let layout = Layout::new(&config);
        let mut params = vec![0.0; layout.len];
        let bytes = std::fs::read(folder.join("model.safetensors"))?;
        let file = SafeTensors::deserialize(&bytes)?;
        for (name, range, shape) in layout.tensors(&config) {
            let tensor = file.tensor(&name)?;
            ensure!(tensor.shape() == shape, "{name} has shape {:?}", tensor.shape());
            let values: Vec<f32> = match tensor.dtype() {
                Dtype::F32 => {
                    tensor.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
                }
                Dtype::BF16 => {
                    let pairs = tensor.data().as_chunks().0.iter();
                    pairs.map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
                }
                other => anyhow::bail!("{name} is {other:?}"),
            };
            params[range].copy_from_slice(&values);
        }
        Ok(Llama { config, layout, params })
    }

    /// The parameters as a bf16 safetensors file.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let data: Vec<u8> =
            self.params.iter().flat_map(|&p| bf16::from_f32(p).to_le_bytes()).collect();
        let mut views = BTreeMap::new();
        for (name, range, shape) in self.layout.tensors(&self.config) {
            let bytes = &data[2 * range.start..2 * range.end];
            views.insert(name, TensorView::new(Dtype::BF16, shape, bytes)?);
        }
        let format = [("format".to_string(), "pt".to_string())];
        Ok(safetensors::serialize(views, Some(format.into_iter().collect()))?)
    }
}

/// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
#[derive(Clone, Debug)]
pub struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Tables for a shape.
    pub fn new(c: &Config) -> Self {
        let half = c.head_dim / 2;
        let angle = |i: usize| {
            let exponent = (i % half) as f64 / half as f64;
            (i / half) as f64 * (c.rope_theta as f64).powf(-exponent)
        };
        let n = c.max_position_embeddings * half;
        let cos = (0..n).map(|i| angle(i).cos() as f32).collect();
        let sin = (0..n).map(|i| angle(i).sin() as f32).collect();
        Rope { half, cos, sin }
    }

    /// Turns every head of `x` (one token) to `position`; `direction` -1 turns back.
    pub fn rotate(&self, x: &mut [f32], position: usize, direction: f32) {
        let at = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        for head in x.chunks_exact_mut(2 * self.half) {
            let (a, b) = head.split_at_mut(self.half);
            for i in 0..self.half {
                let (c, s) = (cos[i], sin[i] * direction);
                (a[i], b[i]) = (a[i] * c - b[i] * s, b[i] * c + a[i] * s);
            }
        }
    }
}
