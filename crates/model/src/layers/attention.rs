use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, s};
use tensorpress_tensor::{Result, Scratch, linalg};

use super::{Linear, Norm, Rope, as_matrix, buffer, math};
use crate::cache::KvCache;

/// Multi-head attention with grouped key and value heads.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Norm>,
    pub(crate) k_norm: Option<Norm>,
    /// Absent in encoders, whose tokens see the whole sequence.
    pub(crate) rope: Option<Arc<Rope>>,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
}

impl Attention {
    /// Mixes the tokens of one sequence, or of its continuation where there is a cache: from projected q, k, v
    /// `[tokens, heads * head_dim]` to `out`, shaped like q.
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
        if let Some(norm) = &self.q_norm {
            norm.apply(q.view_mut());
        }
        if let Some(norm) = &self.k_norm {
            norm.apply(k.view_mut());
        }
        if let Some(rope) = &self.rope {
            rope.apply(q.view_mut(), first);
            rope.apply(k.view_mut(), first);
        }
        let dim = self.head_dim;
        let (q, k, v) = (heads(q.view(), dim), heads(k.view(), dim), heads(v, dim));
        let out = heads_mut(out, dim);
        if let Some(cache) = cache {
            cache.append(k, v)?;
            return cache.attend(q, first, self.window, out, scratch);
        }
        let visible = match self.rope {
            Some(_) => Visible::Causal { window: self.window },
            None => Visible::All { bias: &[] },
        };
        attend(q, k, v, visible, out, scratch);
        Ok(())
    }

    /// [`Attention::mix`] of a whole sequence without positions, with something added to the scores of each key.
    pub(crate) fn mix_weighted(
        &self,
        mut q: ArrayViewMut2<'_, f32>,
        mut k: ArrayViewMut2<'_, f32>,
        v: ArrayView2<'_, f32>,
        bias: &[f32],
        out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        if let Some(norm) = &self.q_norm {
            norm.apply(q.view_mut());
        }
        if let Some(norm) = &self.k_norm {
            norm.apply(k.view_mut());
        }
        let dim = self.head_dim;
        let (q, k, v) = (heads(q.view(), dim), heads(k.view(), dim), heads(v, dim));
        attend(q, k, v, Visible::All { bias }, heads_mut(out, dim), scratch);
        Ok(())
    }
}

/// What a token sees.
#[derive(Debug, Clone, Copy)]
enum Visible<'a> {
    /// The whole sequence; `bias` is added to the scores of each key, if it is not empty.
    All { bias: &'a [f32] },
    /// Itself and what comes before it, at most `window` tokens.
    Causal { window: Option<usize> },
}

impl Visible<'_> {
    /// Keys seen by query `row`, of `keys` there are.
    fn keys(self, row: usize, keys: usize) -> Range<usize> {
        match self {
            Self::All { .. } => 0..keys,
            Self::Causal { window } => window.map_or(0, |w| (row + 1).saturating_sub(w))..row + 1,
        }
    }
}

/// Queries scored at a time: a good matrix product, and few scores of keys that none of them sees.
const QUERIES: usize = 64;

/// softmax(q kᵀ / sqrt(d)) v for queries `[tokens, heads, d]`, and keys and values `[tokens, kv_heads, d]` of a whole
/// sequence.
fn attend(
    q: ArrayView3<'_, f32>,
    k: ArrayView3<'_, f32>,
    v: ArrayView3<'_, f32>,
    visible: Visible<'_>,
    mut out: ArrayViewMut3<'_, f32>,
    scratch: &mut Scratch,
) {
    let (tokens, heads, dim) = q.dim();
    let group = heads / k.dim().1;
    let scale = 1.0 / (dim as f32).sqrt();
    for start in (0..tokens).step_by(QUERIES) {
        let rows = start..(start + QUERIES).min(tokens);
        let seen = |row| visible.keys(row, tokens);
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
                if let Visible::All { bias } = visible {
                    p.iter_mut().zip(bias).for_each(|(p, bias)| *p += bias / scale);
                }
                math::softmax(&mut p[seen.start - span.start..seen.end - span.start], scale);
            }
            let out = out.slice_mut(s![rows.clone(), head, ..]);
            linalg::matmul(probabilities.view(), v, out, false, scratch.par());
        }
        scratch.put(scores);
    }
}

fn heads(x: ArrayView2<'_, f32>, dim: usize) -> ArrayView3<'_, f32> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / dim, dim)).expect("contiguous, whole heads")
}

fn heads_mut(x: ArrayViewMut2<'_, f32>, dim: usize) -> ArrayViewMut3<'_, f32> {
    let (tokens, width) = x.dim();
    x.into_shape_with_order((tokens, width / dim, dim)).expect("contiguous, whole heads")
}
