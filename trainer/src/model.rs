//! Forward and backward pass of a Llama or Mixtral over a batch of segments.

use std::ops::Range;

use crate::llama::{Llama, Mlp, Rope};
use crate::math::{
    axpy, gemm, gemm_add, rms_norm, rms_norm_backward, softmax, swiglu, swiglu_backward, view,
};
use crate::{attention, mixture};

/// Texts laid end to end: token `i` of a segment predicts the segment's `targets[i]`.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Input tokens.
    pub inputs: Vec<u32>,
    /// The token after each.
    pub targets: Vec<u32>,
    /// Where each text lies.
    pub segments: Vec<Range<usize>>,
}

impl Batch {
    /// Appends a text (begin token included).
    pub fn push(&mut self, tokens: impl ExactSizeIterator<Item = u32> + Clone) {
        let start = self.inputs.len();
        self.inputs.extend(tokens.clone().take(tokens.len() - 1));
        self.targets.extend(tokens.skip(1));
        self.segments.push(start..self.inputs.len());
    }
}

/// What a block's backward pass needs of its forward pass.
#[derive(Debug, Default)]
struct Saved {
    x: Vec<f32>,
    rstd1: Vec<f32>,
    qkv: Vec<f32>,
    heads: Vec<f32>,
    lse: Vec<f32>,
    x2: Vec<f32>,
    rstd2: Vec<f32>,
    gate_up: Vec<f32>,
    mixture: mixture::Saved,
}

/// Memory of a pass, kept from batch to batch.
#[derive(Debug)]
pub struct Workspace {
    rope: Rope,
    saved: Vec<Saved>,
    scratch: attention::Scratch,
    mixture: mixture::Scratch,
    x: Vec<f32>,
    dx: Vec<f32>,
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    rstd: Vec<f32>,
    act: Vec<f32>,
    dact: Vec<f32>,
    dheads: Vec<f32>,
    dqkv: Vec<f32>,
    logits: Vec<f32>,
}

impl Workspace {
    /// Memory for a model; it grows to the largest batch.
    pub fn new(model: &Llama) -> Self {
        Workspace {
            rope: Rope::new(&model.config),
            saved: model.layout.blocks.iter().map(|_| Saved::default()).collect(),
            scratch: Default::default(),
            mixture: Default::default(),
            x: vec![],
            dx: vec![],
            normed: vec![],
            dnormed: vec![],
            rstd: vec![],
            act: vec![],
            dact: vec![],
            dheads: vec![],
            dqkv: vec![],
            logits: vec![],
        }
    }

    /// Tokens of the last batch that went to each expert, of each block; none of a Llama.
    pub fn routed(&self) -> impl Iterator<Item = Vec<usize>> {
        self.saved.iter().map(|s| s.mixture.routed())
    }

    /// Loss (nats) of every prediction.
    pub fn losses(&mut self, model: &Llama, batch: &Batch) -> Vec<f32> {
        self.forward(model, batch);
        let rows = self.logits.chunks_exact_mut(model.config.vocab_size).zip(&batch.targets);
        rows.map(|(row, &target)| {
            let logit = row[target as usize];
            softmax(row) - logit
        })
        .collect()
    }

    /// Adds to `grad` the gradient of `scale` x (sum of the losses, plus the balance loss of each
    /// mixture for each token); returns the sum of the losses.
    pub fn backward(&mut self, model: &Llama, batch: &Batch, scale: f32, grad: &mut [f32]) -> f64 {
        let (c, p, layout) = (&model.config, &model.params, &model.layout);
        let (n, d, ff, vocab) =
            (batch.inputs.len(), c.hidden_size, c.intermediate_size, c.vocab_size);
        self.forward(model, batch);
        let mut loss = 0.0;
        for (row, &target) in self.logits.chunks_exact_mut(vocab).zip(&batch.targets) {
            let logit = row[target as usize];
            loss += (softmax(row) - logit) as f64;
            row[target as usize] -= 1.0;
            for v in row {
                *v *= scale;
            }
        }
        let embed = &p[layout.embed.clone()];
        gemm_add(
            &mut grad[layout.embed.clone()],
            view(&self.logits, n, vocab).t(),
            view(&self.normed, n, d),
        );
        gemm(&mut self.dnormed, view(&self.logits, n, vocab), view(embed, vocab, d));
        self.dx.fill(0.0);
        let norm = &p[layout.norm.clone()];
        let dnorm = &mut grad[layout.norm.clone()];
        rms_norm_backward(&mut self.dx, dnorm, &self.dnormed, &self.x, &self.rstd, norm);

        for (b, s) in layout.blocks.iter().zip(&mut self.saved).rev() {
            // Gated layer; its inputs and activations are cheaper to compute again than to keep.
            let norm2 = &p[b.norm2.clone()];
            rms_norm(&mut self.normed, &mut s.rstd2, &s.x2, norm2, c.rms_norm_eps);
            match &b.mlp {
                Mlp::Gated(g) => {
                    let dx = view(&self.dx, n, d);
                    swiglu(&mut self.act, &s.gate_up, ff);
                    gemm_add(&mut grad[g.down.clone()], dx.t(), view(&self.act, n, ff));
                    gemm(&mut self.dact, dx, view(&p[g.down.clone()], d, ff));
                    swiglu_backward(&mut s.gate_up, &self.dact, ff);
                    let dgate_up = view(&s.gate_up, n, 2 * ff);
                    gemm_add(&mut grad[g.gate_up.clone()], dgate_up.t(), view(&self.normed, n, d));
                    gemm(&mut self.dnormed, dgate_up, view(&p[g.gate_up.clone()], 2 * ff, d));
                }
                Mlp::Mixture { router, experts } => mixture::backward(
                    c,
                    p,
                    router,
                    experts,
                    &self.normed,
                    &self.dx,
                    scale,
                    &mut s.mixture,
                    grad,
                    &mut self.dnormed,
                    &mut self.mixture,
                ),
            }
            let dnorm = &mut grad[b.norm2.clone()];
            rms_norm_backward(&mut self.dx, dnorm, &self.dnormed, &s.x2, &s.rstd2, norm2);

            // Attention.
            let (q, kv) = (c.q_dim(), c.kv_dim());
            gemm_add(&mut grad[b.out.clone()], view(&self.dx, n, d).t(), view(&s.heads, n, q));
            gemm(&mut self.dheads, view(&self.dx, n, d), view(&p[b.out.clone()], d, q));
            attention::backward(
                c,
                &batch.segments,
                &s.qkv,
                &s.heads,
                &s.lse,
                &self.dheads,
                &mut self.dqkv,
                &mut self.scratch,
            );
            rotate(&self.rope, &mut self.dqkv, c.qkv_dim(), q + kv, &batch.segments, -1.0);
            let norm1 = &p[b.norm1.clone()];
            rms_norm(&mut self.normed, &mut s.rstd1, &s.x, norm1, c.rms_norm_eps);
            let dqkv = view(&self.dqkv, n, c.qkv_dim());
            gemm_add(&mut grad[b.qkv.clone()], dqkv.t(), view(&self.normed, n, d));
            gemm(&mut self.dnormed, dqkv, view(&p[b.qkv.clone()], c.qkv_dim(), d));
            let dnorm = &mut grad[b.norm1.clone()];
            rms_norm_backward(&mut self.dx, dnorm, &self.dnormed, &s.x, &s.rstd1, norm1);
        }
        for (&id, dx) in batch.inputs.iter().zip(self.dx.chunks_exact(d)) {
            let start = layout.embed.start + id as usize * d;
            axpy(&mut grad[start..start + d], 1.0, dx);
        }
        loss
    }

    /// Leaves the logits in `self.logits` and the head's input in `self.normed`.
    fn forward(&mut self, model: &Llama, batch: &Batch) {
        let (c, p, layout) = (&model.config, &model.params, &model.layout);
        let (n, d, ff, vocab) =
            (batch.inputs.len(), c.hidden_size, c.intermediate_size, c.vocab_size);
        let (q, kv, qkv) = (c.q_dim(), c.kv_dim(), c.qkv_dim());
        let residual = [&mut self.x, &mut self.dx, &mut self.normed, &mut self.dnormed];
        for (buffer, width) in residual.into_iter().map(|b| (b, d)).chain([
            (&mut self.rstd, 1),
            (&mut self.act, ff),
            (&mut self.dact, ff),
            (&mut self.dheads, q),
            (&mut self.dqkv, qkv),
            (&mut self.logits, vocab),
        ]) {
            buffer.resize(n * width, 0.0);
        }
        let embed = &p[layout.embed.clone()];
        for (x, &id) in self.x.chunks_exact_mut(d).zip(&batch.inputs) {
            x.copy_from_slice(&embed[id as usize * d..(id as usize + 1) * d]);
        }
        for (b, s) in layout.blocks.iter().zip(&mut self.saved) {
            for (buffer, width) in [
                (&mut s.rstd1, 1),
                (&mut s.qkv, qkv),
                (&mut s.heads, q),
                (&mut s.lse, c.num_attention_heads),
                (&mut s.rstd2, 1),
            ] {
                buffer.resize(n * width, 0.0);
            }
            s.x.clone_from(&self.x);
            rms_norm(&mut self.normed, &mut s.rstd1, &s.x, &p[b.norm1.clone()], c.rms_norm_eps);
            gemm(&mut s.qkv, view(&self.normed, n, d), view(&p[b.qkv.clone()], qkv, d).t());
            rotate(&self.rope, &mut s.qkv, qkv, q + kv, &batch.segments, 1.0);
            let scratch = &mut self.scratch;
            attention::forward(c, &batch.segments, &s.qkv, &mut s.heads, &mut s.lse, scratch);
            gemm_add(&mut self.x, view(&s.heads, n, q), view(&p[b.out.clone()], d, q).t());
            s.x2.clone_from(&self.x);
            rms_norm(&mut self.normed, &mut s.rstd2, &s.x2, &p[b.norm2.clone()], c.rms_norm_eps);
            match &b.mlp {
                Mlp::Gated(g) => {
                    s.gate_up.resize(n * 2 * ff, 0.0);
                    let gate_up = view(&p[g.gate_up.clone()], 2 * ff, d);
                    gemm(&mut s.gate_up, view(&self.normed, n, d), gate_up.t());
                    swiglu(&mut self.act, &s.gate_up, ff);
                    let down = view(&p[g.down.clone()], d, ff);
                    gemm_add(&mut self.x, view(&self.act, n, ff), down.t());
                }
                Mlp::Mixture { router, experts } => mixture::forward(
                    c,
                    p,
                    router,
                    experts,
                    &self.normed,
                    &mut self.x,
                    &mut s.mixture,
                    &mut self.mixture,
                ),
            }
        }
        let norm = &p[layout.norm.clone()];
        rms_norm(&mut self.normed, &mut self.rstd, &self.x, norm, c.rms_norm_eps);
        gemm(&mut self.logits, view(&self.normed, n, d), view(embed, vocab, d).t());
    }
}

/// Turns the first `turned` values (queries and keys) of every row to its place in its segment.
fn rotate(
    rope: &Rope,
    x: &mut [f32],
    width: usize,
    turned: usize,
    segments: &[Range<usize>],
    direction: f32,
) {
    for seg in segments {
        let rows = x[seg.start * width..seg.end * width].chunks_exact_mut(width);
        for (position, row) in rows.enumerate() {
            rope.rotate(&mut row[..turned], position, direction);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::{Config, Experts};
    use crate::rng::Rng;

    fn small(experts: Option<Experts>) -> (Llama, Batch) {
        let config = Config {
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            vocab_size: 19,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: 128,
            experts,
        };
        let mut model = Llama::init(config, 3);
        let mut rng = Rng::new(5, 0);
        for p in &mut model.params {
            *p += 0.1 * rng.normal();
        }
        let mut batch = Batch::default();
        for len in [90, 2, 17] {
            let tokens: Vec<u32> = (0..len).map(|_| rng.below(19) as u32).collect();
            batch.push(tokens.into_iter());
        }
        (model, batch)
    }

    /// Central differences along random directions in each tensor (f32 arithmetic is too coarse
    /// for single parameters).
    #[test]
    fn gradient_agrees_with_finite_differences() {
        check_gradient(small(None));
    }

    /// Every token goes to all experts, so that no step sends one elsewhere and runs over an edge;
    /// the choice and the balance loss are checked in [`mixture`].
    #[test]
    fn gradient_of_a_mixture_agrees_with_finite_differences() {
        check_gradient(small(Some(Experts { count: 3, chosen: 3, balance: 0.01 })));
    }

    fn check_gradient((mut model, batch): (Llama, Batch)) {
        let mut ws = Workspace::new(&model);
        let mut grad = vec![0.0; model.layout.len];
        ws.backward(&model, &batch, 1.0, &mut grad);
        let mut rng = Rng::new(7, 0);
        for (name, range, _) in model.layout.tensors(&model.config) {
            // The gradient's own direction and a random one.
            for along in [true, false] {
                let mut direction: Vec<f32> = match along {
                    true => grad[range.clone()].to_vec(),
                    false => range.clone().map(|_| rng.normal()).collect(),
                };
                let norm = direction.iter().map(|v| v * v).sum::<f32>().sqrt();
                direction.iter_mut().for_each(|v| *v /= norm);
                let expected: f64 = (direction.iter().zip(&grad[range.clone()]))
                    .map(|(&a, &b)| a as f64 * b as f64)
                    .sum();
                let mut total = |model: &Llama| -> f64 {
                    ws.losses(model, &batch).iter().map(|&l| l as f64).sum()
                };
                let step = 4e-3;
                let start = model.params.clone();
                axpy(&mut model.params[range.clone()], step, &direction);
                let up = total(&model);
                model.params.clone_from(&start);
                axpy(&mut model.params[range.clone()], -step, &direction);
                let down = total(&model);
                model.params = start;
                let found = (up - down) / (2.0 * step as f64);
                let scale = grad[range.clone()].iter().map(|v| v * v).sum::<f32>().sqrt() as f64;
                assert!(
                    (found - expected).abs() < 0.01 * scale + 0.02,
                    "{name}: {found} by differences, {expected} by the backward pass"
                );
            }
        }
    }

    #[test]
    fn segments_do_not_see_each_other() {
        let (model, batch) = small(None);
        let mut ws = Workspace::new(&model);
        let together = ws.losses(&model, &batch);
        for seg in &batch.segments {
            let mut alone = Batch::default();
            let tokens = batch.inputs[seg.clone()].iter().chain(&batch.targets[seg.end - 1..][..1]);
            let tokens: Vec<u32> = tokens.copied().collect();
            alone.push(tokens.into_iter());
            let losses = ws.losses(&model, &alone);
            for (a, b) in losses.iter().zip(&together[seg.clone()]) {
                assert!((a - b).abs() < 1e-4, "{a} alone, {b} in the batch");
            }
        }
    }
}
