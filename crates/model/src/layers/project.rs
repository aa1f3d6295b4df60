//! From hidden states to queries, keys and values.

use std::ops::{ControlFlow, Range};

use ndarray::{ArrayView2, ArrayViewMut2, s};
use tensorpress_tensor::node::Input;
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{Result, Scratch};

use super::attention::{Attention, Latent, Projection};
use super::{as_matrix, buffer};
use crate::architecture::Fused;
use crate::block::Observer;

impl Attention {
    /// Fills q, k and v `[tokens, heads * dim]` from what the attention reads.
    pub(crate) fn project(
        &self,
        x: ArrayView2<'_, f32>,
        [mut q, mut k, mut v]: [ArrayViewMut2<'_, f32>; 3],
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        match &self.project {
            Projection::Separate { q: to_q, k: to_k, v: to_v } => {
                Input::with(x, scratch, |x, scratch| {
                    to_q.forward(x, q, scratch)?;
                    to_k.forward(x, k, scratch)?;
                    to_v.forward(x, v, scratch)
                })?;
            }
            Projection::Fused { qkv, order } => {
                let rows = qkv.shape()[0];
                let mut memory = buffer(scratch, x.nrows(), rows);
                let mut all = as_matrix(&mut memory, rows);
                Input::with(x, scratch, |x, scratch| qkv.forward(x, all.view_mut(), scratch))?;
                for (from, which, to) in self.places(*order) {
                    let target = [&mut q, &mut k, &mut v][which].slice_mut(s![.., to]);
                    all.slice(s![.., from]).assign_to(target);
                }
                scratch.put(memory);
            }
            Projection::Latent(latent) => {
                return self.expand(latent, x, [q, k, v], observer, scratch);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Which columns of the fused product go to which columns of q (0), k (1) and v (2).
    pub(crate) fn places(&self, order: Fused) -> Vec<(Range<usize>, usize, Range<usize>)> {
        let [q, k, v] = self.widths();
        if order == Fused::Blocks {
            return vec![(0..q, 0, 0..q), (q..q + k, 1, 0..k), (q + k..q + k + v, 2, 0..v)];
        }
        let [q, k, v] = [q, k, v].map(|width| width / self.kv_heads);
        let group = |i: usize| {
            let at = i * (q + k + v);
            let place = |from: usize, width: usize| from..from + width;
            [
                (place(at, q), 0, place(i * q, q)),
                (place(at + q, k), 1, place(i * k, k)),
                (place(at + q + k, v), 2, place(i * v, v)),
            ]
        };
        (0..self.kv_heads).flat_map(group).collect()
    }

    /// Queries, keys and values out of their latents.
    fn expand(
        &self,
        latent: &Latent,
        x: ArrayView2<'_, f32>,
        [mut q, mut k, mut v]: [ArrayViewMut2<'_, f32>; 3],
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let Latent { q_down, q_up, kv_down, kv_norm, kv_up, rank, turned } = latent;
        let (tokens, rank, turned) = (x.nrows(), *rank, *turned);
        match q_down {
            None => Input::with(x, scratch, |x, scratch| q_up.forward(x, q.view_mut(), scratch))?,
            Some((down, norm)) => {
                let width = down.shape()[0];
                let mut memory = buffer(scratch, tokens, width);
                let mut short = as_matrix(&mut memory, width);
                Input::with(x, scratch, |x, scratch| down.forward(x, short.view_mut(), scratch))?;
                norm.apply(short.view_mut());
                if observer.input(SharedInput::QueryLatent, short.view())?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                Input::with(short.view(), scratch, |short, scratch| {
                    q_up.forward(short, q.view_mut(), scratch)
                })?;
                scratch.put(memory);
            }
        }
        let mut memory =
            [rank + turned, rank, kv_up.shape()[0]].map(|width| buffer(scratch, tokens, width));
        let [both, short, up] = &mut memory;
        let mut both = as_matrix(both, rank + turned);
        let (mut short, mut up) = (as_matrix(short, rank), as_matrix(up, kv_up.shape()[0]));
        Input::with(x, scratch, |x, scratch| kv_down.forward(x, both.view_mut(), scratch))?;
        short.assign(&both.slice(s![.., ..rank]));
        kv_norm.apply(short.view_mut());
        if observer.input(SharedInput::KeyValueLatent, short.view())?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        Input::with(short.view(), scratch, |short, scratch| {
            kv_up.forward(short, up.view_mut(), scratch)
        })?;
        let (dim, values) = (self.head_dim, self.value_dim);
        let fixed = dim - turned;
        for head in 0..self.heads {
            let (at, from) = (head * dim, head * (fixed + values));
            k.slice_mut(s![.., at..at + fixed]).assign(&up.slice(s![.., from..from + fixed]));
            k.slice_mut(s![.., at + fixed..at + dim]).assign(&both.slice(s![.., rank..]));
            let from = from + fixed;
            v.slice_mut(s![.., head * values..(head + 1) * values])
                .assign(&up.slice(s![.., from..from + values]));
        }
        memory.into_iter().for_each(|memory| scratch.put(memory));
        Ok(ControlFlow::Continue(()))
    }
}
