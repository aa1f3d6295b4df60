//! Sampling of stories: many lanes advance together, one token each a step, so that the linear
//! layers are matrix products; a lane whose story ends starts the next one.

use crate::llama::{Llama, Mlp, Rope};
use crate::math::{axpy, gemm, rms_norm, softmax, swiglu, view};
use crate::mixture;
use crate::rng::Rng;

/// Id of the token that begins a text.
pub const BOS: u32 = 1;
/// Id of the token that ends a text.
pub const EOS: u32 = 2;

/// What and how to sample.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Lanes that advance together.
    pub lanes: usize,
    /// Divides the logits.
    pub temperature: f32,
    /// Stories that do not end within so many tokens are dropped.
    pub max_tokens: usize,
}

/// Keys and values of one lane in one block. Keys lie transposed (`[kv_dim, positions]`), so that
/// the scores of all positions are computed side by side.
struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One story in the making.
struct Lane {
    tokens: Vec<u32>,
    caches: Vec<Cache>,
    rng: Rng,
}

/// Samples stories until `sink` returns false; a story is its tokens without begin and end.
pub fn sample(
    model: &Llama,
    sampling: &Sampling,
    mut rng: Rng,
    mut sink: impl FnMut(&[u32]) -> bool,
) {
    let c = &model.config;
    let limit = sampling.max_tokens.min(c.max_position_embeddings);
    let rope = Rope::new(c);
    let cache =
        || Cache { keys: vec![0.0; c.kv_dim() * limit], values: vec![0.0; c.kv_dim() * limit] };
    let mut lanes: Vec<Lane> = (0..sampling.lanes)
        .map(|_| Lane {
            tokens: vec![BOS],
            caches: (0..c.num_hidden_layers).map(|_| cache()).collect(),
            rng: Rng::new(rng.next_u64(), 0),
        })
        .collect();
    let mut logits = vec![0.0; sampling.lanes * c.vocab_size];
    loop {
        step(model, &rope, limit, &mut lanes, &mut logits);
        for (lane, row) in lanes.iter_mut().zip(logits.chunks_exact_mut(c.vocab_size)) {
            let token = pick(row, sampling.temperature, &mut lane.rng);
            // The shared models begin the next story where one ends; the demo model says EOS.
            let ended = token == BOS || token == EOS;
            if ended && !sink(&lane.tokens[1..]) {
                return;
            }
            if ended || lane.tokens.len() == limit {
                lane.tokens.truncate(1);
            } else {
                lane.tokens.push(token);
            }
        }
    }
}

/// Draws a token from the softmax of `logits / temperature`.
fn pick(logits: &mut [f32], temperature: f32, rng: &mut Rng) -> u32 {
    for v in logits.iter_mut() {
        *v /= temperature;
    }
    softmax(logits);
    let mut left = rng.uniform();
    for (id, &p) in logits.iter().enumerate() {
        left -= p;
        if left < 0.0 {
            return id as u32;
        }
    }
    // Rounding left a little over: the most likely token.
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.unwrap_or(0) as u32
}

/// Logits after every lane's last token.
fn step(model: &Llama, rope: &Rope, limit: usize, lanes: &mut [Lane], logits: &mut [f32]) {
    let (c, p, n) = (&model.config, &model.params, lanes.len());
    let (d, ff, q, kv) = (c.hidden_size, c.intermediate_size, c.q_dim(), c.kv_dim());
    let mut x = Vec::with_capacity(n * d);
    for lane in lanes.iter() {
        let id = lane.tokens[lane.tokens.len() - 1] as usize;
        x.extend_from_slice(&p[model.layout.embed.start..][id * d..(id + 1) * d]);
    }
    let mut normed = vec![0.0; n * d];
    let mut rstd = vec![0.0; n];
    let mut qkv = vec![0.0; n * c.qkv_dim()];
    let mut heads = vec![0.0; n * q];
    let mut gate_up = vec![0.0; n * 2 * ff];
    let mut act = vec![0.0; n * ff];
    let mut out = vec![0.0; n * d];
    for (layer, b) in model.layout.blocks.iter().enumerate() {
        rms_norm(&mut normed, &mut rstd, &x, &p[b.norm1.clone()], c.rms_norm_eps);
        gemm(&mut qkv, view(&normed, n, d), view(&p[b.qkv.clone()], q + 2 * kv, d).t());
        let rows = qkv.chunks_exact_mut(q + 2 * kv).zip(heads.chunks_exact_mut(q));
        for ((row, heads), lane) in rows.zip(lanes.iter_mut()) {
            let position = lane.tokens.len() - 1;
            rope.rotate(&mut row[..q + kv], position, 1.0);
            lane.caches[layer].attend(row, heads, position, limit, model);
        }
        gemm(&mut out, view(&heads, n, q), view(&p[b.out.clone()], d, q).t());
        axpy(&mut x, 1.0, &out);
        rms_norm(&mut normed, &mut rstd, &x, &p[b.norm2.clone()], c.rms_norm_eps);
        match &b.mlp {
            Mlp::Gated(g) => {
                let weights = view(&p[g.gate_up.clone()], 2 * ff, d);
                gemm(&mut gate_up, view(&normed, n, d), weights.t());
                swiglu(&mut act, &gate_up, ff);
                gemm(&mut out, view(&act, n, ff), view(&p[g.down.clone()], d, ff).t());
                axpy(&mut x, 1.0, &out);
            }
            Mlp::Mixture { router, experts } => {
                let (s, scratch) = (&mut Default::default(), &mut Default::default());
                mixture::forward(c, p, router, experts, &normed, &mut x, s, scratch);
            }
        }
    }
    let (norm, embed) = (&p[model.layout.norm.clone()], &p[model.layout.embed.clone()]);
    rms_norm(&mut normed, &mut rstd, &x, norm, c.rms_norm_eps);
    gemm(logits, view(&normed, n, d), view(embed, c.vocab_size, d).t());
}

impl Cache {
    /// Stores this token's key and value and computes its attention. `row` is query, key, value.
    fn attend(
        &mut self,
        row: &[f32],
        out: &mut [f32],
        position: usize,
        limit: usize,
        model: &Llama,
    ) {
        let c = &model.config;
        let (q, kv, hd) = (c.q_dim(), c.kv_dim(), c.head_dim);
        for (i, &k) in row[q..q + kv].iter().enumerate() {
            self.keys[i * limit + position] = k;
        }
        self.values[position * kv..(position + 1) * kv].copy_from_slice(&row[q + kv..]);
        let scale = (hd as f32).sqrt().recip();
        let group = c.num_attention_heads / c.num_key_value_heads;
        let mut scores = vec![0.0; position + 1];
        for (h, (out, query)) in out.chunks_exact_mut(hd).zip(row.chunks_exact(hd)).enumerate() {
            let first = h / group * hd;
            scores.fill(0.0);
            for (i, &v) in query.iter().enumerate() {
                axpy(&mut scores, v * scale, &self.keys[(first + i) * limit..][..position + 1]);
            }
            softmax(&mut scores);
            out.fill(0.0);
            for (value, &weight) in self.values.chunks_exact(kv).zip(&scores) {
                axpy(out, weight, &value[first..first + hd]);
            }
        }
    }
}
