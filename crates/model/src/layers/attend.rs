//! Attention over whole sequences, without a cache.

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3, s};
use tensorpress_tensor::{Scratch, linalg};

use super::{Attention, as_matrix, buffer, math};

/// Queries scored at a time: a good matrix product, and few scores of keys that none of them sees.
pub(crate) const QUERIES: usize = 64;

impl Attention {
    /// Weighted sums of the values for queries `[tokens, heads, d]`, and keys and values `[tokens, kv_heads, d]` of a whole
    /// sequence; `bias` is added to the scores of each key, if it is not empty.
    pub(crate) fn attend(
        &self,
        [q, k, v]: [ArrayView3<'_, f32>; 3],
        bias: &[f32],
        mut out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let tokens = q.dim().0;
        let group = self.heads / self.kv_heads;
        let mut special = Vec::new();
        for start in (0..tokens).step_by(QUERIES) {
            let rows = start..(start + QUERIES).min(tokens);
            let span = self.seen(rows.start, tokens).start..self.seen(rows.end - 1, tokens).end;
            let par = scratch.par();
            let mut scores = buffer(scratch, rows.len(), span.len());
            for head in 0..self.heads {
                let q = q.slice(s![rows.clone(), head, ..]);
                let k = k.slice(s![span.clone(), head / group, ..]);
                let v = v.slice(s![span.clone(), head / group, ..]);
                let mut probabilities = as_matrix(&mut scores, span.len());
                linalg::matmul_nt(q, k, probabilities.view_mut(), false, par);
                for (row, mut p) in rows.clone().zip(probabilities.rows_mut()) {
                    let p = p.as_slice_mut().expect("rows are contiguous");
                    self.weigh(head, row, tokens, span.start, bias, p, &mut special);
                }
                let out = out.slice_mut(s![rows.clone(), head, ..]);
                linalg::matmul(probabilities.view(), v, out, false, par);
            }
            scratch.put(scores);
        }
    }

    /// Replaces the products of the query at `row` with the keys from `first` on by their weights: 0 where it does not see
    /// them. `special` is memory.
    pub(crate) fn weigh(
        &self,
        head: usize,
        row: usize,
        tokens: usize,
        first: usize,
        bias: &[f32],
        p: &mut [f32],
        special: &mut Vec<f32>,
    ) {
        let scale = self.scoring.scale_of(self.head_dim);
        let seen = self.seen(row, tokens);
        p[..seen.start - first].fill(0.0);
        p[seen.end - first..].fill(0.0);
        let p = &mut p[seen.start - first..seen.end - first];
        if self.scoring.is_plain() && self.relative.is_none() && bias.is_empty() {
            math::softmax(p, scale);
            return;
        }
        self.scoring.score(scale, head, row, seen.clone(), p);
        special.clear();
        special.extend(p.iter().zip(seen).map(|(score, key)| {
            let learned = self.relative.as_ref().map_or(0.0, |r| r.bias(row, key, head));
            score + learned + bias.get(key).unwrap_or(&0.0)
        }));
        self.scoring.soften(head, special);
        p.copy_from_slice(special);
    }

    /// Keys that the query at a position sees, of so many.
    pub(crate) fn seen(&self, position: usize, keys: usize) -> Range<usize> {
        if !self.causal {
            let near = self.window.map_or(keys, |window| window / 2);
            return position.saturating_sub(near)..(position + near + 1).min(keys);
        }
        let window = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let chunk = self.scoring.chunk.map_or(0, |chunk| position / chunk * chunk);
        window.max(chunk)..position + 1
    }
}
