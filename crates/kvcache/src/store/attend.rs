//! Attention over the heads of a layer.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, s};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Result, Scratch, linalg, ndarray};

use super::form::StoreForm;
use super::head::Tier;
use super::reader::Reading;
use super::scoring::Sight;
use super::{Bias, Causal, Layer, Watch};

/// Queries handled at a time: a good matrix product, and few scores of keys that none of them sees.
pub(super) const QUERIES: usize = 64;

/// Up to this many queries the products run over the stored form; more of them pay for decoding.
const FUSED: usize = 16;

/// Heads are shared among threads from this many products on: below, waking threads costs more.
pub(super) const SHARED: usize = 1 << 20;

/// Some tokens' queries to one head of keys and values.
pub(super) struct Block<'a> {
    pub(super) ask: Ask<'a>,
    pub(super) head: usize,
    pub(super) tiers: Vec<&'a Tier>,
    /// Keys and, where they are not in those, values of every tier, where the products do not run over the stored form.
    dense: Vec<(Array2<f32>, Option<Array2<f32>>)>,
    /// What is added up by the weights is so wide: values, or keys that begin with them.
    pub(super) width: usize,
    /// Tokens among the queries.
    pub(super) tokens: Range<usize>,
}

/// What one call asks of all heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) reading: Reading<'a>,
    pub(super) sight: Sight,
    pub(super) bias: Option<Bias<'a>>,
}

impl Layer {
    pub(super) fn attend_heads(
        &self,
        reading: Reading<'_>,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
        mut out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        mut watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        let Reading { shape, scoring } = reading;
        shape.check_queries(queries.dim(), out.dim())?;
        let (group, heads, tokens) = (shape.group(), self.heads.len(), queries.dim().0);
        bias.as_ref().map_or(Ok(()), |bias| bias.check(shape.heads, tokens))?;
        let bias = bias.as_ref().map(Bias::borrow);
        let ask = Ask { reading, sight: Sight { causal, chunk: scoring.chunk }, bias };
        let fused = tokens * group <= FUSED && self.rope.is_none() && self.mixes_in_place();
        if watch.is_none() {
            if tokens == 0 {
                return Ok(());
            }
            if fused {
                self.attend_stored(ask, queries, &mut out, scratch);
            } else {
                self.attend_decoded(ask, queries, &mut out, scratch);
            }
            return Ok(());
        }
        // Who watches sees whole rows of weights.
        let work = heads * tokens * group * self.len * self.shape.head_dim;
        if fused && heads > 1 && scratch.par().threads() > 1 && work >= SHARED {
            let blocks: Vec<_> =
                (0..heads).map(|head| Block::new(self, head, true, ask, 0..tokens)).collect();
            let mut buffers: Vec<_> = blocks.iter().map(|b| b.buffers(scratch)).collect();
            let work = blocks.iter().zip(&mut buffers);
            scratch.par().for_each(work, |(block, [q, scores, mixed])| {
                block.weights(queries, q, scores, Par::Seq);
                block.mix(scores, mixed, Par::Seq);
            });
            for (block, [q, scores, mixed]) in blocks.iter().zip(buffers) {
                block.show(&scores, &mut watch);
                block.put(&mixed, &mut out);
                [q, scores, mixed].into_iter().for_each(|buffer| scratch.put(buffer));
            }
            return Ok(());
        }
        let step = (QUERIES / group).max(1);
        for head in 0..heads {
            let mut block = Block::new(self, head, fused, ask, 0..0);
            for start in (0..tokens).step_by(step) {
                block.tokens = start..(start + step).min(tokens);
                let [mut q, mut scores, mut mixed] = block.buffers(scratch);
                block.weights(queries, &mut q, &mut scores, scratch.par());
                block.show(&scores, &mut watch);
                block.mix(&scores, &mut mixed, scratch.par());
                block.put(&mixed, &mut out);
                [q, scores, mixed].into_iter().for_each(|buffer| scratch.put(buffer));
            }
        }
        Ok(())
    }

    /// Whatever is added up by the weights can be where it lies.
    fn mixes_in_place(&self) -> bool {
        !self.values_in_keys
            || std::iter::once(&self.form).chain(&self.low).all(StoreForm::mixes_keys)
    }
}

impl<'a> Block<'a> {
    pub(super) fn new(
        layer: &'a Layer,
        head: usize,
        fused: bool,
        ask: Ask<'a>,
        tokens: Range<usize>,
    ) -> Self {
        let tiers = layer.heads[head].tiers();
        let dense = |t: &&Tier| {
            let values = (!layer.values_in_keys).then(|| t.decode_values());
            (layer.rotated(t), values)
        };
        let dense = if fused { Vec::new() } else { tiers.iter().map(dense).collect() };
        let width = tiers[0].mixed().dim();
        Self { ask, head, tiers, dense, width, tokens }
    }

    /// Queries: those of every token, one after another for each query head of the group.
    pub(super) fn queries(&self) -> usize {
        self.tokens.len() * self.ask.reading.shape.group()
    }

    /// Room for queries, scores (tier after tier, each `[queries, len]`) and sums.
    fn buffers(&self, scratch: &mut Scratch) -> [Vec<f32>; 3] {
        let (n, dim) = (self.queries(), self.ask.reading.shape.head_dim);
        let total: usize = self.tiers.iter().map(|t| t.len()).sum();
        [n * dim, n * total, n * self.width].map(|len| scratch.take(len))
    }

    /// The query head and the token of query `i`.
    pub(super) fn place(&self, i: usize) -> (usize, usize) {
        let group = self.ask.reading.shape.group();
        (self.head * group + i % group, self.tokens.start + i / group)
    }

    /// Each tier, where its scores begin, and the slots that some of the queries may see.
    fn parts(&self) -> impl Iterator<Item = (usize, &Tier, usize, Range<usize>)> {
        let sight = self.ask.sight;
        let first = sight.causal.first + self.tokens.start;
        let last = sight.causal.first + self.tokens.end - 1;
        let mut at = 0;
        self.tiers.iter().enumerate().map(move |(i, tier)| {
            let start = at;
            at += tier.len() * self.queries();
            (i, *tier, start, tier.span(sight, first, last))
        })
    }

    /// What every query gives to every slot; what it does not see weighs 0.
    fn weights(&self, queries: ArrayView3<'_, f32>, q: &mut [f32], scores: &mut [f32], par: Par) {
        let (n, dim) = (self.queries(), self.ask.reading.shape.head_dim);
        for (i, to) in q.chunks_exact_mut(dim).enumerate() {
            let (head, token) = self.place(i);
            let row = queries.slice(s![token, head, ..]);
            to.iter_mut().zip(row).for_each(|(to, q)| *to = *q);
        }
        let q = ArrayView2::from_shape((n, dim), q).expect("n x dim");
        for (i, tier, at, span) in self.parts() {
            let part = &mut scores[at..][..tier.len() * n];
            match self.dense.get(i) {
                None => tier.keys.dots(q, span, part),
                Some((keys, _)) => {
                    let to = ArrayViewMut2::from_shape((n, tier.len()), part).expect("n x len");
                    linalg::matmul_nt(q, keys.view(), to, false, par);
                }
            }
        }
        self.weigh(scores);
    }

    /// Shows the weights of each query.
    fn show(&self, scores: &[f32], watch: &mut Option<&mut Watch<'_>>) {
        let Some(watch) = watch else { return };
        let mut weights = Vec::with_capacity(scores.len() / self.queries());
        for i in 0..self.queries() {
            weights.clear();
            for (_, tier, at, _) in self.parts() {
                weights.extend(&scores[at + i * tier.len()..][..tier.len()]);
            }
            let (head, token) = self.place(i);
            watch(head, token, &weights);
        }
    }

    /// The values' sums by these weights.
    fn mix(&self, scores: &[f32], mixed: &mut [f32], par: Par) {
        let n = self.queries();
        mixed.fill(0.0);
        let mut to = ArrayViewMut2::from_shape((n, self.width), mixed).expect("n x width");
        for (i, tier, at, span) in self.parts() {
            let part = &scores[at..][..tier.len() * n];
            match self.dense.get(i) {
                None => tier.mixed().mix(part, span, to.view_mut()),
                Some((keys, values)) => {
                    let part = ArrayView2::from_shape((n, tier.len()), part).expect("n x len");
                    let values = values.as_ref().unwrap_or(keys);
                    linalg::matmul(part, values.view(), to.view_mut(), true, par);
                }
            }
        }
    }

    pub(super) fn put(&self, mixed: &[f32], out: &mut ArrayViewMut3<'_, f32>) {
        for (i, from) in mixed.chunks_exact(self.width).enumerate() {
            let (head, token) = self.place(i);
            let mut row = out.slice_mut(s![token, head, ..]);
            row.iter_mut().zip(from).for_each(|(to, v)| *to = *v);
        }
    }
}
