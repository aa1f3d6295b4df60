//! Shape and parameters of a Llama or, with experts, a Mixtral, and how they are stored in a
//! Hugging Face folder.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// The fields of a Hugging Face Llama or Mixtral configuration that the arithmetic needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated layer, and of each expert where there are any.
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
    /// What makes it a Mixtral; a Llama has none.
    #[serde(flatten)]
    pub experts: Option<Experts>,
}

/// The fields that Mixtral adds: experts in place of each block's gated layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experts {
    /// Experts of a block.
    #[serde(rename = "num_local_experts")]
    pub count: usize,
    /// Experts that a token goes to.
    #[serde(rename = "num_experts_per_tok")]
    pub chosen: usize,
    /// Coefficient of the balance loss.
    #[serde(rename = "router_aux_loss_coef")]
    pub balance: f32,
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
            experts: None,
        }
    }

    /// The small mixture's shape: with eight experts about 1.5 million parameters, of which a
    /// token meets 0.6 million.
    pub fn mixture(vocab_size: usize, experts: Experts) -> Self {
        Config {
            intermediate_size: 128,
            num_hidden_layers: 3,
            experts: Some(experts),
            ..Config::demo(vocab_size)
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
    /// The layer after the attention.
    pub mlp: Mlp,
}

/// Where the parameters of the layer after the attention lie.
#[derive(Clone, Debug)]
pub enum Mlp {
    /// One gated layer.
    Gated(Gated),
    /// Several, of which a router chooses for each token.
    Mixture {
        /// The router, `[experts, hidden]`.
        router: Range<usize>,
        /// The experts.
        experts: Vec<Gated>,
    },
}

/// Where a gated layer's parameters lie.
#[derive(Clone, Debug)]
pub struct Gated {
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
        let gated = |take: &mut dyn FnMut(usize) -> Range<usize>| Gated {
            gate_up: take(2 * ff * d),
            down: take(d * ff),
        };
        let blocks = (0..c.num_hidden_layers)
            .map(|_| Block {
                norm1: take(d),
                qkv: take(c.qkv_dim() * d),
                out: take(d * c.q_dim()),
                norm2: take(d),
                mlp: match c.experts {
                    None => Mlp::Gated(gated(&mut take)),
                    Some(experts) => Mlp::Mixture {
                        router: take(experts.count * d),
                        experts: (0..experts.count).map(|_| gated(&mut take)).collect(),
                    },
                },
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
            let mut push = |name: String, start: usize, shape: Vec<usize>| {
                let len = shape.iter().product::<usize>();
                all.push((format!("model.layers.{i}.{name}.weight"), start..start + len, shape));
            };
            push("input_layernorm".into(), b.norm1.start, vec![d]);
            push("self_attn.q_proj".into(), b.qkv.start, vec![q, d]);
            push("self_attn.k_proj".into(), b.qkv.start + q * d, vec![kv, d]);
            push("self_attn.v_proj".into(), b.qkv.start + (q + kv) * d, vec![kv, d]);
            push("self_attn.o_proj".into(), b.out.start, vec![d, q]);
            push("post_attention_layernorm".into(), b.norm2.start, vec![d]);
            let mut gated = |[gate, up, down]: [String; 3], g: &Gated| {
                push(gate, g.gate_up.start, vec![ff, d]);
                push(up, g.gate_up.start + ff * d, vec![ff, d]);
                push(down, g.down.start, vec![d, ff]);
            };
            match &b.mlp {
                Mlp::Gated(g) => gated(["gate", "up", "down"].map(|n| format!("mlp.{n}_proj")), g),
                Mlp::Mixture { router, experts } => {
                    for (e, g) in experts.iter().enumerate() {
                        let name = |n| format!("block_sparse_moe.experts.{e}.{n}");
                        gated(["w1", "w3", "w2"].map(name), g);
                    }
                    push("block_sparse_moe.gate".into(), router.start, vec![experts.len(), d]);
                }
            }
        }
        all.push(("model.norm.weight".into(), self.norm.clone(), vec![d]));
        all
    }
}

/// A Llama or Mixtral in f32.
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
    /// the embedding, the routers and the projections that write into the residual stream.
    pub fn init(config: Config, seed: u64) -> Self {
        let layout = Layout::new(&config);
        let mut params = vec![1.0; layout.len];
        let mut rng = Rng::new(seed, 0);
        for (name, range, shape) in layout.tensors(&config) {
            if shape.len() < 2 {
                continue;
            }
            let residual = ["o_proj", "down_proj", "w2"].iter().any(|n| name.contains(n));
            let std = match () {
                _ if name.contains("embed") => 0.04,
                // Small, so that at first all experts are about as likely.
                _ if name.contains("moe.gate") => 0.02,
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
