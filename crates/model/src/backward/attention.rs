//! Attention on the way back.

use std::ops::ControlFlow;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut3, s};
use tensorpress_tensor::{Result, Scratch, linalg};

use super::sweep::Sweep;
use crate::block::{Observer, SharedInput};
use crate::layers::attend::QUERIES;
use crate::layers::attention::{heads, heads_mut};
use crate::layers::{Attention, Latent, Projection, RowsAt, as_matrix, buffer};

/// What attention leaves on the way forward.
pub(super) struct AttentionTape {
    x: Arc<Array2<f32>>,
    /// The latents of queries, and of keys and values, as their matrices read them.
    latents: Latents,
    /// What the norms of queries and keys read.
    raw: Option<[Array2<f32>; 2]>,
    /// Queries, keys and values as they meet.
    q: Array2<f32>,
    k: Array2<f32>,
    v: Array2<f32>,
    /// What the last matrix reads.
    pub(super) out: Arc<Array2<f32>>,
}

#[derive(Default)]
struct Latents {
    queries: Option<Arc<Array2<f32>>>,
    rest: Option<Arc<Array2<f32>>>,
}

impl Observer for Latents {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        match input {
            SharedInput::QueryLatent => self.queries = Some(Arc::new(x.to_owned())),
            SharedInput::KeyValueLatent => self.rest = Some(Arc::new(x.to_owned())),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Attention {
    pub(super) fn record(
        &self,
        x: Arc<Array2<f32>>,
        sweep: &mut Sweep<'_, '_>,
    ) -> Result<AttentionTape> {
        let tokens = x.nrows();
        let [mut q, mut k, mut v] = self.widths().map(|width| Array2::zeros((tokens, width)));
        let mut latents = Latents::default();
        let views = [q.view_mut(), k.view_mut(), v.view_mut()];
        // It never breaks off.
        let _ = self.project(x.view(), views, &mut latents, sweep.scratch)?;
        let normed = self.q_norm.is_some() || self.k_norm.is_some();
        let mut raw = None;
        if !self.norm_last {
            raw = normed.then(|| [q.clone(), k.clone()]);
            self.norm_heads(&mut q.view_mut(), &mut k.view_mut());
        }
        if let Some(rope) = &self.rope {
            rope.apply(q.view_mut(), 0);
            rope.apply(k.view_mut(), 0);
        }
        if self.norm_last {
            raw = normed.then(|| [q.clone(), k.clone()]);
            self.norm_heads(&mut q.view_mut(), &mut k.view_mut());
        }
        self.warm(&mut q.view_mut(), RowsAt::From(0));
        let mut out = Array2::zeros((tokens, self.width()));
        let (dim, values) = (self.head_dim, self.value_dim);
        let all = [heads(q.view(), dim), heads(k.view(), dim), heads(v.view(), values)];
        self.attend(all, &[], heads_mut(out.view_mut(), values), sweep.scratch);
        Ok(AttentionTape { x, latents, raw, q, k, v, out: Arc::new(out) })
    }

    /// From gradients `g` of what it made to those of what it read.
    pub(super) fn back(
        &self,
        tape: AttentionTape,
        g: Array2<f32>,
        sweep: &mut Sweep<'_, '_>,
    ) -> Result<Array2<f32>> {
        let AttentionTape { x, latents, raw, q, k, v, out } = tape;
        let mut by_out = Array2::zeros(out.dim());
        sweep.back(&self.o, &out, g, &mut by_out);
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|a| Array2::zeros(a.dim()));
        let (dim, values) = (self.head_dim, self.value_dim);
        self.unattend(
            [heads(q.view(), dim), heads(k.view(), dim), heads(v.view(), values)],
            heads(by_out.view(), values),
            [
                heads_mut(dq.view_mut(), dim),
                heads_mut(dk.view_mut(), dim),
                heads_mut(dv.view_mut(), values),
            ],
            sweep.scratch,
        );
        self.warm(&mut dq.view_mut(), RowsAt::From(0));
        let unnorm = |dq: &mut Array2<f32>, dk: &mut Array2<f32>| {
            let Some([q, k]) = &raw else { return };
            self.q_norm.iter().for_each(|norm| norm.back(q.view(), dq.view_mut()));
            self.k_norm.iter().for_each(|norm| norm.back(k.view(), dk.view_mut()));
        };
        if self.norm_last {
            unnorm(&mut dq, &mut dk);
        }
        if let Some(rope) = &self.rope {
            rope.back(dq.view_mut(), 0);
            rope.back(dk.view_mut(), 0);
        }
        if !self.norm_last {
            unnorm(&mut dq, &mut dk);
        }
        let mut dx = Array2::zeros(x.dim());
        match &self.project {
            Projection::Separate { q, k, v } => {
                sweep.back(q, &x, dq, &mut dx);
                sweep.back(k, &x, dk, &mut dx);
                sweep.back(v, &x, dv, &mut dx);
            }
            Projection::Fused { qkv, order } => {
                let mut all = Array2::zeros((x.nrows(), qkv.shape()[0]));
                for (to, which, from) in self.places(*order) {
                    let from = [&dq, &dk, &dv][which].slice(s![.., from]);
                    all.slice_mut(s![.., to]).assign(&from);
                }
                sweep.back(qkv, &x, all, &mut dx);
            }
            Projection::Latent(latent) => {
                self.contract(latent, &x, latents, [dq, dk, dv], &mut dx, sweep)?;
            }
        }
        Ok(dx)
    }

    /// Adds to `dx` what gradients of queries, keys and values make of what their latents are of.
    fn contract(
        &self,
        latent: &Latent,
        x: &Arc<Array2<f32>>,
        latents: Latents,
        [dq, dk, dv]: [Array2<f32>; 3],
        dx: &mut Array2<f32>,
        sweep: &mut Sweep<'_, '_>,
    ) -> Result<()> {
        let Latent { q_down, q_up, kv_down, kv_norm, kv_up, rank, turned } = latent;
        match (q_down, latents.queries) {
            (Some((down, norm)), Some(short)) => {
                let mut by_short = Array2::zeros(short.dim());
                sweep.back(q_up, &short, dq, &mut by_short);
                norm.back(sweep.forward(down, x.view())?.view(), by_short.view_mut());
                sweep.back(down, x, by_short, dx);
            }
            _ => sweep.back(q_up, x, dq, dx),
        }
        let (tokens, rank) = (x.nrows(), *rank);
        let (dim, values) = (self.head_dim, self.value_dim);
        let fixed = dim - turned;
        let mut by_up = Array2::zeros((tokens, kv_up.shape()[0]));
        let mut by_both = Array2::zeros((tokens, rank + turned));
        for head in 0..self.heads {
            let (at, to) = (head * dim, head * (fixed + values));
            by_up.slice_mut(s![.., to..to + fixed]).assign(&dk.slice(s![.., at..at + fixed]));
            let mut shared = by_both.slice_mut(s![.., rank..]);
            shared += &dk.slice(s![.., at + fixed..at + dim]);
            let of_values = dv.slice(s![.., head * values..(head + 1) * values]);
            by_up.slice_mut(s![.., to + fixed..to + fixed + values]).assign(&of_values);
        }
        if let Some(short) = latents.rest {
            let mut by_short = Array2::zeros(short.dim());
            sweep.back(kv_up, &short, by_up, &mut by_short);
            let both = sweep.forward(kv_down, x.view())?;
            let raw = both.slice(s![.., ..rank]).to_owned();
            kv_norm.back(raw.view(), by_short.view_mut());
            by_both.slice_mut(s![.., ..rank]).assign(&by_short);
        }
        sweep.back(kv_down, x, by_both, dx);
        Ok(())
    }

    /// Fills the gradients of queries `[tokens, heads, d]`, keys and values `[tokens, kv_heads, d]` (which are all 0) from
    /// those of the weighted sums.
    fn unattend(
        &self,
        [q, k, v]: [ArrayView3<'_, f32>; 3],
        g: ArrayView3<'_, f32>,
        [mut dq, mut dk, mut dv]: [ArrayViewMut3<'_, f32>; 3],
        scratch: &mut Scratch,
    ) {
        let tokens = q.dim().0;
        let group = self.heads / self.kv_heads;
        let scale = self.scoring.scale_of(self.head_dim);
        let (mut special, mut products) = (Vec::new(), Vec::<f32>::new());
        for start in (0..tokens).step_by(QUERIES) {
            let rows = start..(start + QUERIES).min(tokens);
            let span = self.seen(rows.start, tokens).start..self.seen(rows.end - 1, tokens).end;
            let par = scratch.par();
            let mut memory = [0; 2].map(|_| buffer(scratch, rows.len(), span.len()));
            let [weights, by_weights] = &mut memory;
            for head in 0..self.heads {
                let of = head / group;
                let q = q.slice(s![rows.clone(), head, ..]);
                let k = k.slice(s![span.clone(), of, ..]);
                let v = v.slice(s![span.clone(), of, ..]);
                let g = g.slice(s![rows.clone(), head, ..]);
                let mut weights = as_matrix(weights, span.len());
                let mut by_weights = as_matrix(by_weights, span.len());
                linalg::matmul_nt(q, k, weights.view_mut(), false, par);
                if self.scoring.softcap.is_some() {
                    products.clear();
                    products.extend(weights.iter());
                }
                for (row, mut p) in rows.clone().zip(weights.rows_mut()) {
                    let p = p.as_slice_mut().expect("rows are contiguous");
                    self.weigh(head, row, tokens, span.start, &[], p, &mut special);
                }
                linalg::matmul_nt(g, v, by_weights.view_mut(), false, par);
                let dv = dv.slice_mut(s![span.clone(), of, ..]);
                linalg::matmul_tn(weights.view(), g, dv, true, par);
                for (p, mut by) in weights.rows().into_iter().zip(by_weights.rows_mut()) {
                    let p = p.to_slice().expect("rows are contiguous");
                    let by = by.as_slice_mut().expect("rows are contiguous");
                    let pairs = p.iter().zip(&*by);
                    let mean = pairs.map(|(p, g)| f64::from(*p) * f64::from(*g)).sum::<f64>();
                    by.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - mean as f32) * scale);
                }
                if let Some(cap) = self.scoring.softcap {
                    for (g, product) in by_weights.iter_mut().zip(&products) {
                        *g *= 1.0 - (scale * product / cap).tanh().powi(2);
                    }
                }
                let dq = dq.slice_mut(s![rows.clone(), head, ..]);
                linalg::matmul(by_weights.view(), k, dq, false, par);
                let dk = dk.slice_mut(s![span.clone(), of, ..]);
                linalg::matmul_tn(by_weights.view(), q, dk, true, par);
            }
            memory.into_iter().for_each(|memory| scratch.put(memory));
        }
    }
}
