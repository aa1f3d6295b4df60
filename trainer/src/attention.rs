//! Causal attention of whole segments, forward and backward.
//!
//! A batch is a row of segments (texts) laid end to end; each attends to itself only. Queries go
//! in blocks, so that a block's products skip most of the keys after it.

use std::ops::Range;

use crate::llama::Config;
use crate::math::{dot, exp, gemm, gemm_add, softmax, view};

/// Queries that share one product.
const BLOCK: usize = 64;

/// Scratch memory, kept from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    dout: Vec<f32>,
    scores: Vec<f32>,
    dscores: Vec<f32>,
    block: Vec<f32>,
}

/// Copies columns `at..at + dst_width` of the rows `rows` of a `width` wide matrix, times `scale`.
fn gather(
    dst: &mut Vec<f32>,
    src: &[f32],
    width: usize,
    rows: &Range<usize>,
    at: usize,
    dst_width: usize,
    scale: f32,
) {
    dst.clear();
    for row in src[rows.start * width..rows.end * width].chunks_exact(width) {
        dst.extend(row[at..at + dst_width].iter().map(|&v| v * scale));
    }
}

/// Writes `src` into columns `at..` of the rows `rows`, times `scale`.
fn scatter(
    dst: &mut [f32],
    width: usize,
    rows: &Range<usize>,
    at: usize,
    src: &[f32],
    src_width: usize,
    scale: f32,
) {
    let dst = dst[rows.start * width..rows.end * width].chunks_exact_mut(width);
    for (row, src) in dst.zip(src.chunks_exact(src_width)) {
        for (d, &s) in row[at..at + src_width].iter_mut().zip(src) {
            *d = s * scale;
        }
    }
}

/// Query blocks of a segment, from its start.
fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(len))
}

/// `out` (`[tokens, q_dim]`) = attention of `qkv` (`[tokens, qkv_dim]`, rotated); `lse`
/// (`[tokens, heads]`) receives the logarithms of the softmax denominators for the backward pass.
pub fn forward(
    c: &Config,
    segments: &[Range<usize>],
    qkv: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
    s: &mut Scratch,
) {
    let (hd, width, qd) = (c.head_dim, c.qkv_dim(), c.q_dim());
    let heads = c.num_attention_heads;
    let scale = (hd as f32).sqrt().recip();
    for seg in segments {
        for h in 0..heads {
            let kv = h * c.num_key_value_heads / heads;
            gather(&mut s.q, qkv, width, seg, h * hd, hd, scale);
            gather(&mut s.k, qkv, width, seg, qd + kv * hd, hd, 1.0);
            gather(&mut s.v, qkv, width, seg, qd + c.kv_dim() + kv * hd, hd, 1.0);
            for b in blocks(seg.len()) {
                let (n, keys) = (b.len(), b.end);
                s.scores.resize(n * keys, 0.0);
                gemm(&mut s.scores, view(&s.q[b.start * hd..], n, hd), view(&s.k, keys, hd).t());
                for (i, row) in s.scores.chunks_exact_mut(keys).enumerate() {
                    let (seen, hidden) = row.split_at_mut(b.start + i + 1);
                    lse[(seg.start + b.start + i) * heads + h] = softmax(seen);
                    hidden.fill(0.0);
                }
                s.block.resize(n * hd, 0.0);
                gemm(&mut s.block, view(&s.scores, n, keys), view(&s.v, keys, hd));
                let rows = seg.start + b.start..seg.start + b.end;
                scatter(out, qd, &rows, h * hd, &s.block, hd, 1.0);
            }
        }
    }
}

/// Backward of [`forward`]: `dqkv` is overwritten by the gradient of `qkv`.
pub fn backward(
    c: &Config,
    segments: &[Range<usize>],
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
    s: &mut Scratch,
) {
    let (hd, width, qd) = (c.head_dim, c.qkv_dim(), c.q_dim());
    let heads = c.num_attention_heads;
    let group = heads / c.num_key_value_heads;
    let scale = (hd as f32).sqrt().recip();
    for seg in segments {
        for kv in 0..c.num_key_value_heads {
            let (k_at, v_at) = (qd + kv * hd, qd + c.kv_dim() + kv * hd);
            gather(&mut s.k, qkv, width, seg, k_at, hd, 1.0);
            gather(&mut s.v, qkv, width, seg, v_at, hd, 1.0);
            for grad in [&mut s.dk, &mut s.dv] {
                grad.clear();
                grad.resize(seg.len() * hd, 0.0);
            }
            for h in kv * group..(kv + 1) * group {
                gather(&mut s.q, qkv, width, seg, h * hd, hd, scale);
                gather(&mut s.dout, dout, qd, seg, h * hd, hd, 1.0);
                for b in blocks(seg.len()) {
                    let (n, keys) = (b.len(), b.end);
                    let q = view(&s.q[b.start * hd..], n, hd);
                    let d = view(&s.dout[b.start * hd..], n, hd);
                    s.scores.resize(n * keys, 0.0);
                    s.dscores.resize(n * keys, 0.0);
                    gemm(&mut s.scores, q, view(&s.k, keys, hd).t());
                    gemm(&mut s.dscores, d, view(&s.v, keys, hd).t());
                    let rows = s.scores.chunks_exact_mut(keys);
                    for (i, (p, dp)) in rows.zip(s.dscores.chunks_exact_mut(keys)).enumerate() {
                        let (at, token) = (b.start + i, seg.start + b.start + i);
                        let head = token * qd + h * hd..token * qd + (h + 1) * hd;
                        let mean = dot(&out[head.clone()], &dout[head]);
                        let lse = lse[token * heads + h];
                        let seen = p[..=at].iter_mut().zip(&mut dp[..=at]);
                        for (p, dp) in seen {
                            *p = exp(*p - lse);
                            *dp = *p * (*dp - mean);
                        }
                        p[at + 1..].fill(0.0);
                        dp[at + 1..].fill(0.0);
                    }
                    let (p, dp) = (view(&s.scores, n, keys), view(&s.dscores, n, keys));
                    gemm_add(&mut s.dv, p.t(), d);
                    gemm_add(&mut s.dk, dp.t(), q);
                    s.block.resize(n * hd, 0.0);
                    gemm(&mut s.block, dp, view(&s.k, keys, hd));
                    let rows = seg.start + b.start..seg.start + b.end;
                    scatter(dqkv, width, &rows, h * hd, &s.block, hd, scale);
                }
            }
            scatter(dqkv, width, seg, k_at, &s.dk, hd, 1.0);
            scatter(dqkv, width, seg, v_at, &s.dv, hd, 1.0);
        }
    }
}
