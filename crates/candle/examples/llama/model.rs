//! A small Llama in candle: RMS norm, rotary embedding, grouped-query attention, SwiGLU, and matrices that are nodes.

use candle_core::{D, DType, Device, IndexOp, Module, Result, Tensor, bail};
use candle_nn::kv_cache::KvCache;
use candle_nn::ops::{silu, softmax_last_dim};
use candle_nn::rotary_emb::rope;
use candle_nn::{RmsNorm, VarBuilder, rms_norm};
use tensorpress::model::{Config, Rope, Source};
use tensorpress_candle::{Embedding, Linear, var_builder};

/// Heads and their width; as many queries share a key and a value as there are.
#[derive(Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    dim: usize,
}

struct Block {
    heads: Heads,
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The model.
pub struct Llama {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    /// Angle a position of each pair of dimensions.
    frequencies: Vec<f32>,
    context: usize,
}

impl Llama {
    /// The model of a source. Matrices stay as they are stored, or are laid out for this machine; norms are decoded.
    pub fn load(source: &Source, prepack: bool) -> Result<Self> {
        let config = source.config();
        let kind = source.raw_config()["model_type"].as_str().unwrap_or("unknown").to_owned();
        if kind != "llama" || config.shapes.is_some() {
            bail!(
                "a model of kind {kind}, or with blocks of different sizes: this is a plain Llama"
            );
        }
        let Some(rope) = &config.rope else { bail!("there is no rotary embedding") };
        let rope = Rope::new(rope, config.head_dim, config.context);
        if !rope.is_plain() {
            bail!("a rotary embedding whose angles depend on the length");
        }
        let vars = var_builder(source, DType::F32, &Device::Cpu);
        let linear = |name: &str| match prepack {
            true => Linear::load_prepacked(source, name),
            false => Linear::load(source, name),
        };
        let blocks = (0..config.blocks).map(|block| Block::load(config, block, &vars, &linear));
        let blocks = blocks.collect::<Result<_>>()?;
        // What they are called, and whether they are one, the source knows.
        let (table, head) = (source.embedding(), source.head());
        let table = table.map_err(candle_core::Error::wrap)?.table().name().to_owned();
        let head = linear(head.map_err(candle_core::Error::wrap)?.linear().name())?;
        let embedding = match table == head.name() {
            true => Embedding::new(head.node().clone()),
            false => Embedding::load(source, &table)?,
        };
        let norm = rms_norm(config.hidden, config.norm_eps.into(), vars.pp("model.norm"))?;
        let (frequencies, context) = (rope.frequencies().to_vec(), config.context);
        Ok(Self { embedding, blocks, norm, head, frequencies, context })
    }

    /// Keys and values of no token.
    pub fn cache(&self) -> Vec<KvCache> {
        self.blocks.iter().map(|_| KvCache::new(1, self.context.min(512))).collect()
    }

    /// Logits `[vocabulary]` behind the last of some tokens.
    pub fn forward(&self, ids: &[u32], cache: &mut [KvCache]) -> Result<Tensor> {
        let seen = cache.first().map_or(0, |cache| cache.k_cache().current_seq_len());
        let angles = self.angles(seen, ids.len())?;
        let mask = mask(seen, ids.len())?;
        let mut x = self.embedding.forward(&Tensor::new(ids, &Device::Cpu)?)?;
        for (block, cache) in self.blocks.iter().zip(cache) {
            x = block.forward(&x, &angles, &mask, cache)?;
        }
        let last = x.i(ids.len() - 1..)?;
        self.head.forward(&self.norm.forward(&last)?)?.squeeze(0)
    }

    /// Continues a prompt by the most probable tokens, until the end of the text (which is not given), or so many.
    pub fn greedy(&self, prompt: &[u32], most: usize, ends: &[u32]) -> Result<Vec<u32>> {
        let (mut cache, mut new) = (self.cache(), Vec::new());
        let mut next = prompt.to_vec();
        while new.len() < most && prompt.len() + new.len() <= self.context {
            let token = self.forward(&next, &mut cache)?.argmax(D::Minus1)?.to_scalar::<u32>()?;
            if ends.contains(&token) {
                break;
            }
            new.push(token);
            next = vec![token];
        }
        Ok(new)
    }

    /// Cosines and sines `[tokens, dim / 2]`.
    fn angles(&self, first: usize, tokens: usize) -> Result<[Tensor; 2]> {
        let shape = (tokens, self.frequencies.len());
        let positions = first..first + tokens;
        let angles: Vec<f32> = positions
            .flat_map(|at| self.frequencies.iter().map(move |frequency| at as f32 * frequency))
            .collect();
        let angles = Tensor::from_vec(angles, shape, &Device::Cpu)?;
        Ok([angles.cos()?, angles.sin()?])
    }
}

/// What is added to the scores `[tokens, seen + tokens]`: -inf where a token would see a later one.
fn mask(seen: usize, tokens: usize) -> Result<Tensor> {
    let hidden = |token: usize, at: usize| if at > seen + token { f32::NEG_INFINITY } else { 0.0 };
    let all = seen + tokens;
    let values: Vec<f32> =
        (0..tokens).flat_map(|token| (0..all).map(move |at| hidden(token, at))).collect();
    Tensor::from_vec(values, (tokens, all), &Device::Cpu)
}

impl Block {
    fn load(
        config: &Config,
        block: usize,
        vars: &VarBuilder<'_>,
        linear: &dyn Fn(&str) -> Result<Linear>,
    ) -> Result<Self> {
        let prefix = format!("model.layers.{block}");
        let layer = |name: &str| linear(&format!("{prefix}.{name}.weight"));
        let norm =
            |name: &str| rms_norm(config.hidden, config.norm_eps.into(), vars.pp(&prefix).pp(name));
        Ok(Self {
            heads: Heads { queries: config.heads, keys: config.kv_heads, dim: config.head_dim },
            attention_norm: norm("input_layernorm")?,
            q: layer("self_attn.q_proj")?,
            k: layer("self_attn.k_proj")?,
            v: layer("self_attn.v_proj")?,
            o: layer("self_attn.o_proj")?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate: layer("mlp.gate_proj")?,
            up: layer("mlp.up_proj")?,
            down: layer("mlp.down_proj")?,
        })
    }

    /// `x` is `[tokens, hidden]`.
    fn forward(
        &self,
        x: &Tensor,
        angles: &[Tensor; 2],
        mask: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let x = (x + self.attend(&normed, angles, mask, cache)?)?;
        let normed = self.mlp_norm.forward(&x)?;
        let inner = (silu(&self.gate.forward(&normed)?)? * self.up.forward(&normed)?)?;
        x + self.down.forward(&inner)?
    }

    fn attend(
        &self,
        x: &Tensor,
        [cos, sin]: &[Tensor; 2],
        mask: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let (tokens, Heads { queries, keys, dim }) = (x.dim(0)?, self.heads);
        // [heads, tokens, dim]
        let heads =
            |x: Tensor, count| x.reshape((tokens, count, dim))?.transpose(0, 1)?.contiguous();
        let turn = |x: Tensor| rope(&x.unsqueeze(0)?, cos, sin)?.squeeze(0);
        let q = turn(heads(self.q.forward(x)?, queries)?)?;
        let k = turn(heads(self.k.forward(x)?, keys)?)?;
        let v = heads(self.v.forward(x)?, keys)?;
        let (k, v) = cache.append(&k, &v)?;
        let (k, v, group) = (k.contiguous()?, v.contiguous()?, queries / keys);
        // The queries that share a key stand one below the other.
        let q = q.reshape((keys, group * tokens, dim))?;
        let scores = (q.matmul(&k.transpose(1, 2)?)? / (dim as f64).sqrt())?;
        let scores = scores.reshape((keys, group, tokens, ()))?.broadcast_add(mask)?;
        let weights = softmax_last_dim(&scores)?.reshape((keys, group * tokens, ()))?;
        let mixed = weights.matmul(&v)?.reshape((queries, tokens, dim))?;
        let mixed = mixed.transpose(0, 1)?.reshape((tokens, queries * dim))?;
        self.o.forward(&mixed)
    }
}
