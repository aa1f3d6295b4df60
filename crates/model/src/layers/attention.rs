use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3};
use tensorpress_kvcache::store::Watch;
use tensorpress_kvcache::{KvShape, Scoring};
use tensorpress_tensor::{Result, Scratch};

use super::{Linear, Norm, Rope, RowsAt};
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
    /// A token sees itself and what comes before it; else the whole sequence.
    pub(crate) causal: bool,
    /// At most so many tokens back, itself included; without `causal`, half as many to each side.
    pub(crate) window: Option<usize>,
    pub(crate) scoring: Scoring,
    /// A learned bias for each distance.
    pub(crate) relative: Option<Relative>,
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
    /// What is added to the score of a key.
    pub(super) fn bias(&self, query: usize, key: usize, head: usize) -> f32 {
        self.table[[self.bucket(query, key), head]]
    }

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

    /// Heads as caches see them.
    pub(crate) fn shape(&self) -> Result<KvShape> {
        KvShape::new(self.heads, self.kv_heads, self.head_dim)?.with_value_dim(self.value_dim)
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

    /// Norms and positions of queries and keys.
    fn prepare(
        &self,
        q: &mut ArrayViewMut2<'_, f32>,
        k: &mut ArrayViewMut2<'_, f32>,
        at: RowsAt<'_>,
    ) {
        if !self.norm_last {
            self.norm_heads(q, k);
        }
        if let Some(rope) = &self.rope {
            rope.apply_at(q.view_mut(), at);
            rope.apply_at(k.view_mut(), at);
        }
        if self.norm_last {
            self.norm_heads(q, k);
        }
        self.warm(q, at);
    }

    /// The norms of queries and keys.
    pub(crate) fn norm_heads(
        &self,
        q: &mut ArrayViewMut2<'_, f32>,
        k: &mut ArrayViewMut2<'_, f32>,
    ) {
        self.q_norm.iter().for_each(|norm| norm.apply(q.view_mut()));
        self.k_norm.iter().for_each(|norm| norm.apply(k.view_mut()));
    }

    /// Multiplies queries, or their gradients, by the temperature of their positions.
    pub(crate) fn warm(&self, q: &mut ArrayViewMut2<'_, f32>, at: RowsAt<'_>) {
        if let Some((floor, grows)) = self.temperature {
            for (t, mut row) in q.rows_mut().into_iter().enumerate() {
                let steps = ((at.position(t) + 1) as f32 / floor).floor();
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
        self.prepare(&mut q, &mut k, RowsAt::From(first));
        let (dim, values) = (self.head_dim, self.value_dim);
        let (q, k, v) = (heads(q.view(), dim), heads(k.view(), dim), heads(v, values));
        let out = heads_mut(out, values);
        if let Some(cache) = cache {
            cache.append(k, v)?;
            return cache.attend(q, first, self.window, out, scratch);
        }
        self.attend([q, k, v], &[], out, scratch);
        Ok(())
    }

    /// [`Attention::mix`] of some tokens, at these positions and each of this size, which a cache takes; whoever watches sees
    /// the weights.
    pub(crate) fn mix_kept(
        &self,
        mut q: ArrayViewMut2<'_, f32>,
        mut k: ArrayViewMut2<'_, f32>,
        v: ArrayView2<'_, f32>,
        (positions, sizes): (&[usize], &[f32]),
        out: ArrayViewMut2<'_, f32>,
        cache: &mut dyn KvCache,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        self.prepare(&mut q, &mut k, RowsAt::Each(positions));
        let (dim, values) = (self.head_dim, self.value_dim);
        let (q, k, v) = (heads(q.view(), dim), heads(k.view(), dim), heads(v, values));
        cache.append_at(k, v, positions, sizes)?;
        cache.attend_at(q, positions, self.window, heads_mut(out, values), scratch, watch)
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
        self.prepare(&mut q, &mut k, RowsAt::From(0));
        let (dim, values) = (self.head_dim, self.value_dim);
        let (q, k, v) = (heads(q.view(), dim), heads(k.view(), dim), heads(v, values));
        // Nothing added is nothing changed, to the bit.
        let bias = if bias.iter().all(|bias| *bias == 0.0) { &[] } else { bias };
        self.attend([q, k, v], bias, heads_mut(out, values), scratch);
        Ok(())
    }
}

/// Rows as heads of so many values.
pub(crate) fn heads(x: ArrayView2<'_, f32>, dim: usize) -> ArrayView3<'_, f32> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / dim, dim)).expect("contiguous, whole heads")
}

/// As [`heads`].
pub(crate) fn heads_mut(x: ArrayViewMut2<'_, f32>, dim: usize) -> ArrayViewMut3<'_, f32> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / dim, dim)).expect("contiguous, whole heads")
}
