use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, s};
use tensorpress_tensor::{Result, Scratch, linalg};

use super::{Linear, Norm, Rope, as_matrix, buffer, math};
use crate::architecture::Fused;
use crate::cache::KvCache;

/// Multi-head attention with grouped key and value heads.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) project: Projection,
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Norm>,
    pub(crate) k_norm: Option<Norm>,
    /// The norms come behind the rotation.
    pub(crate) norm_last: bool,
    pub(crate) rope: Option<Arc<Rope>>,
    /// Queries at position p are multiplied by 1 + b ln(1 + floor((p + 1) / a)).
    pub(crate) temperature: Option<(f32, f32)>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) scoring: Arc<Scoring>,
}

/// Where queries, keys and values come from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a layer, moved once")]
pub(crate) enum Projection {
    Separate { q: Linear, k: Linear, v: Linear },
    Fused { qkv: Linear, order: Fused },
    Latent(Box<Latent>),
}

/// Multi-head latent attention.
#[derive(Debug)]
pub(crate) struct Latent {
    pub(crate) q_down: Option<(Linear, Norm)>,
    pub(crate) q_up: Linear,
    pub(crate) kv_down: Linear,
    pub(crate) kv_norm: Norm,
    pub(crate) kv_up: Linear,
    pub(crate) rank: usize,
    /// Dimensions of a key that all heads share; they come last.
    pub(crate) turned: usize,
}

/// What becomes of the products of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scoring {
    /// A token sees itself and what comes before it; else the whole sequence.
    pub(crate) causal: bool,
    /// At most so many tokens back, itself included.
    pub(crate) window: Option<usize>,
    /// No further back than the last multiple of this.
    pub(crate) chunk: Option<usize>,
    pub(crate) scale: f32,
    /// cap tanh(score / cap)
    pub(crate) softcap: Option<f32>,
    /// One more score a query head, without a value.
    pub(crate) sinks: Vec<f32>,
    /// Added to the score of a key for each position, a query head (ALiBi).
    pub(crate) slopes: Vec<f32>,
    /// A learned bias for each distance.
    pub(crate) relative: Option<Relative>,
}

/// Biases of scores by distance (T5, Raffel et al. 2020): half of the buckets are for keys to the right; of each half, the
/// first half are distances, and the others grow as logarithms do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Relative {
    /// `[buckets, heads]`.
    pub(crate) table: Array2<f32>,
    /// Distances from here on share a bucket.
    pub(crate) most: usize,
}

impl Relative {
    fn bucket(&self, query: usize, key: usize) -> usize {
        let half = self.table.nrows() / 2;
        let (side, distance) = if key > query { (half, key - query) } else { (0, query - key) };
        let exact = half / 2;
        if distance < exact {
            return side + distance;
        }
        let grown = (distance as f32 / exact as f32).ln() / (self.most as f32 / exact as f32).ln();
        side + (exact + (grown * (half - exact) as f32) as usize).min(half - 1)
    }
}

impl Scoring {
    /// Causal softmax(q kᵀ / sqrt(head_dim)), perhaps within a window: what every store can.
    pub(crate) fn is_plain(&self, head_dim: usize) -> bool {
        let Self { causal, window: _, chunk, scale, softcap, sinks, slopes, relative } = self;
        let usual = (scale * (head_dim as f32).sqrt() - 1.0).abs() < 1e-6;
        *causal
            && usual
            && chunk.is_none()
            && softcap.is_none()
            && sinks.is_empty()
            && slopes.is_empty()
            && relative.is_none()
    }

    /// Keys that the query at a position sees, of so many.
    fn keys(&self, position: usize, keys: usize) -> Range<usize> {
        if !self.causal {
            let near = self.window.map_or(keys, |window| window / 2);
            return position.saturating_sub(near)..(position + near + 1).min(keys);
        }
        let window = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let chunk = self.chunk.map_or(0, |chunk| position / chunk * chunk);
        window.max(chunk)..(position + 1).min(keys)
    }
}

/// The slopes of attention with linear biases (Press et al. 2022) for so many heads: powers of 2^(-8/n) for the next lower
/// power of two n, and every other power of the next one's for the rest.
pub(crate) fn alibi_slopes(heads: usize) -> Vec<f32> {
    let power = |n: usize, i: usize| (-8.0 * (i + 1) as f64 / n as f64).exp2() as f32;
    let lower = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let rest = (0..heads - lower).map(|i| power(2 * lower, 2 * i));
    (0..lower).map(|i| power(lower, i)).chain(rest).collect()
}

impl Attention {
    /// Values of all query heads, of all keys, and of all values.
    pub(crate) fn widths(&self) -> [usize; 3] {
        let Self { heads, kv_heads, head_dim, value_dim, .. } = self;
        [heads * head_dim, kv_heads * head_dim, kv_heads * value_dim]
    }

    /// Values of all heads' outputs.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.value_dim
    }

    pub(crate) fn linears(&self) -> Vec<&Linear> {
        let mut all = match &self.project {
            Projection::Separate { q, k, v } => vec![q, k, v],
            Projection::Fused { qkv, .. } => vec![qkv],
            Projection::Latent(latent) => {
                let down = latent.q_down.iter().map(|(down, _)| down);
                down.chain([&latent.q_up, &latent.kv_down, &latent.kv_up]).collect()
            }
        };
        all.push(&self.o);
        all
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = match &mut self.project {
            Projection::Separate { q, k, v } => vec![q, k, v],
            Projection::Fused { qkv, .. } => vec![qkv],
            Projection::Latent(latent) => {
                let Latent { q_down, q_up, kv_down, kv_up, .. } = &mut **latent;
                let down = q_down.iter_mut().map(|(down, _)| down);
                down.chain([q_up, kv_down, kv_up]).collect()
            }
        };
        all.push(&mut self.o);
        all
    }

    /// Norms and positions of queries and keys whose first token is at position `first`.
    fn prepare(
        &self,
        q: &mut ArrayViewMut2<'_, f32>,
        k: &mut ArrayViewMut2<'_, f32>,
        first: usize,
    ) {
        let norms = |q: &mut ArrayViewMut2<'_, f32>, k: &mut ArrayViewMut2<'_, f32>| {
            self.q_norm.iter().for_each(|norm| norm.apply(q.view_mut()));
            self.k_norm.iter().for_each(|norm| norm.apply(k.view_mut()));
        };
        if !self.norm_last {
            norms(q, k);
        }
        if let Some(rope) = &self.rope {
            rope.apply(q.view_mut(), first);
            rope.apply(k.view_mut(), first);
        }
        if self.norm_last {
            norms(q, k);
        }
        if let Some((floor, grows)) = self.temperature {
            for (t, mut row) in q.rows_mut().into_iter().enumerate() {
                let steps = ((first + t + 1) as f32 / floor).floor();
                row *= 1.0 + grows * (1.0 + steps).ln();
            }
        }
    }

    /// Mixes the tokens of one sequence, or of its continuation where there is a cache: from projected q, k, v
    /// `[tokens, heads * head_dim]` to `out`.
    pub(crate) fn mix(
        &self,
        mut q: ArrayViewMut2<'_, f32>,
        mut k: ArrayViewMut2<'_, f32>,
        v: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
        cache: Option<&mut dyn KvCache>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let first = cache.as_ref().map_or(0, |cache| cache.len());
        self.prepare(&mut q, &mut k, first);
        let (dim, values) = (self.head_dim, self.value_dim);
        let (q, k, v) = (heads(q.view(), dim), heads(k.view(), dim), heads(v, values));
        let out = heads_mut(out, values);
        if let Some(cache) = cache {
            cache.append(k, v)?;
            return cache.attend(q, first, self.scoring.window, out, scratch);
        }
        attend(q, k, v, &self.scoring, 0, &[], out, scratch);
        Ok(())
    }

    /// [`Attention::mix`] of a whole sequence, with something added to the scores of each key.
    pub(crate) fn mix_weighted(
        &self,
        mut q: ArrayViewMut2<'_, f32>,
        mut k: ArrayViewMut2<'_, f32>,
        v: ArrayView2<'_, f32>,
        bias: &[f32],
        out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.prepare(&mut q, &mut k, 0);
        let (dim, values) = (self.head_dim, self.value_dim);
        let (q, k, v) = (heads(q.view(), dim), heads(k.view(), dim), heads(v, values));
        attend(q, k, v, &self.scoring, 0, bias, heads_mut(out, values), scratch);
        Ok(())
    }
}

/// Queries scored at a time: a good matrix product, and few scores of keys that none of them sees.
const QUERIES: usize = 64;

/// softmax(scores) v for queries `[tokens, heads, d]` from position `first` on, and all keys and values
/// `[keys, kv_heads, d]` of a sequence; `bias` is added to the scores of each key, if it is not empty.
#[expect(clippy::too_many_arguments, reason = "what attention is made of")]
pub(crate) fn attend(
    q: ArrayView3<'_, f32>,
    k: ArrayView3<'_, f32>,
    v: ArrayView3<'_, f32>,
    scoring: &Scoring,
    first: usize,
    bias: &[f32],
    mut out: ArrayViewMut3<'_, f32>,
    scratch: &mut Scratch,
) {
    let (tokens, heads, _) = q.dim();
    let (keys, kv_heads, _) = k.dim();
    let group = heads / kv_heads;
    let plain = scoring.softcap.is_none() && scoring.sinks.is_empty();
    for start in (0..tokens).step_by(QUERIES) {
        let rows = start..(start + QUERIES).min(tokens);
        let seen = |row: usize| scoring.keys(first + row, keys);
        let span = seen(rows.start).start..seen(rows.end - 1).end;
        let mut scores = buffer(scratch, rows.len(), span.len());
        for head in 0..heads {
            let q = q.slice(s![rows.clone(), head, ..]);
            let k = k.slice(s![span.clone(), head / group, ..]);
            let v = v.slice(s![span.clone(), head / group, ..]);
            let mut probabilities = as_matrix(&mut scores, span.len());
            linalg::matmul_nt(q, k, probabilities.view_mut(), false, scratch.par());
            for (row, mut p) in rows.clone().zip(probabilities.rows_mut()) {
                let p = p.as_slice_mut().expect("rows are contiguous");
                let seen = seen(row);
                p[..seen.start - span.start].fill(0.0);
                p[seen.end - span.start..].fill(0.0);
                let p = &mut p[seen.start - span.start..seen.end - span.start];
                if let Some(slope) = scoring.slopes.get(head) {
                    let slope = slope / scoring.scale;
                    let keys = seen.clone();
                    p.iter_mut().zip(keys).for_each(|(p, key)| *p += slope * key as f32);
                }
                if let Some(relative) = &scoring.relative {
                    for (p, key) in p.iter_mut().zip(seen.clone()) {
                        let bias = relative.table[[relative.bucket(first + row, key), head]];
                        *p += bias / scoring.scale;
                    }
                }
                if !bias.is_empty() {
                    let bias = &bias[seen.clone()];
                    p.iter_mut().zip(bias).for_each(|(p, bias)| *p += bias / scoring.scale);
                }
                match plain {
                    true => math::softmax(p, scoring.scale),
                    false => special(p, scoring, head),
                }
            }
            let out = out.slice_mut(s![rows.clone(), head, ..]);
            linalg::matmul(probabilities.view(), v, out, false, scratch.par());
        }
        scratch.put(scores);
    }
}

/// Softmax of scores that are capped, or that share with one more that has no value.
fn special(p: &mut [f32], scoring: &Scoring, head: usize) {
    let cap = |score: f32| scoring.softcap.map_or(score, |cap| cap * (score / cap).tanh());
    p.iter_mut().for_each(|p| *p = cap(*p * scoring.scale));
    let Some(sink) = scoring.sinks.get(head) else { return math::softmax(p, 1.0) };
    let most = math::max(p).max(*sink);
    p.iter_mut().for_each(|p| *p = math::exp(*p - most));
    let sum = p.iter().sum::<f32>() + math::exp(sink - most);
    p.iter_mut().for_each(|p| *p /= sum);
}

fn heads(x: ArrayView2<'_, f32>, dim: usize) -> ArrayView3<'_, f32> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / dim, dim)).expect("contiguous, whole heads")
}

fn heads_mut(x: ArrayViewMut2<'_, f32>, dim: usize) -> ArrayViewMut3<'_, f32> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / dim, dim)).expect("contiguous, whole heads")
}
